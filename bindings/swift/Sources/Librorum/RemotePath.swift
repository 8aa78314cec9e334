/// A path in a volume. It is bytes, as in the kernel, and need not be UTF-8.
///
/// Components are separated by "/"; the empty path is the root.
public struct RemotePath: Sendable, Hashable, ExpressibleByStringLiteral, CustomStringConvertible {
    public let bytes: [UInt8]

    public init(bytes: some Sequence<UInt8>) {
        self.bytes = Array(bytes)
    }

    public init(_ text: String) {
        bytes = Array(text.utf8)
    }

    public init(stringLiteral text: String) {
        self.init(text)
    }

    /// For people: what is not UTF-8 is replaced.
    public var description: String { String(decoding: bytes, as: UTF8.self) }

    /// Calls with the path as C has it. A zero byte would end it early there, so that is refused here.
    func withCString<Result>(_ body: (UnsafePointer<CChar>) throws -> Result) throws -> Result {
        guard !bytes.contains(0) else {
            throw LibrorumError.invalidArgument("a path has a zero byte")
        }
        let terminated = bytes.map { CChar(bitPattern: $0) } + [0]
        return try terminated.withUnsafeBufferPointer { buffer in
            // It has at least the zero, so there is a base address.
            try body(buffer.baseAddress!)
        }
    }
}
