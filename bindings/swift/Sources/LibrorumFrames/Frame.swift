/// The header of a frame: the first 32 bytes, as `docs/protocol.md` has them. Integers are little-endian.
public struct FrameHeader: Sendable, Hashable {
    public static let byteCount = 32
    /// The newest version of the protocol, and the only one.
    public static let version: UInt8 = 1

    public enum Kind: UInt8, Sendable, CaseIterable {
        case request = 1
        case response, data, credit, cancel, ping, goAway
    }

    public struct Flags: OptionSet, Sendable, Hashable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// A PING is an answer.
        public static let acknowledged = Flags(rawValue: 0x0000_0001)
        /// An idempotency key follows the prefix of a request.
        public static let key = Flags(rawValue: 0x0001_0000)
        /// Who does not know one of these must not go on.
        static let mustUnderstand = Flags(rawValue: 0xffff_0000)
    }

    public let kind: Kind
    public let opcode: UInt16
    public let flags: Flags
    public let payloadByteCount: UInt32
    public let requestID: UInt64
    public let metaByteCount: UInt16
    public let descriptorCount: UInt8
    /// A code of gRPC in a response, else 0.
    public let status: UInt8

    /// Reads a header. The rules are looked at in the order of `FrameError`'s cases.
    public init(_ bytes: some Collection<UInt8>, limits: FrameLimits) throws {
        let bytes = Array(bytes.prefix(Self.byteCount))
        guard bytes.count == Self.byteCount else { throw FrameError.short }
        guard bytes[0..<4].elementsEqual("LBRU".utf8) else { throw FrameError.magic }
        guard bytes[4] == Self.version else { throw FrameError.version }
        guard crc32c(bytes[0..<28]) == integer(bytes, at: 28) as UInt32 else {
            throw FrameError.checksum
        }
        guard let kind = Kind(rawValue: bytes[5]) else { throw FrameError.kind }
        flags = Flags(rawValue: integer(bytes, at: 8))
        guard flags.intersection(.mustUnderstand).subtracting(.key).isEmpty else {
            throw FrameError.flags
        }
        self.kind = kind
        opcode = integer(bytes, at: 6)
        payloadByteCount = integer(bytes, at: 12)
        requestID = integer(bytes, at: 16)
        metaByteCount = integer(bytes, at: 24)
        descriptorCount = bytes[26]
        status = bytes[27]

        let payloadMax = kind == .ping ? min(limits.payloadByteCount, 64) : limits.payloadByteCount
        guard payloadByteCount <= payloadMax else { throw FrameError.payload }
        guard metaByteCount <= limits.metaByteCount else { throw FrameError.meta }
        guard descriptorCount <= limits.descriptorCount else { throw FrameError.descriptors }
    }

    /// How many bytes follow the header.
    public var bodyByteCount: Int { Int(metaByteCount) + Int(payloadByteCount) }
}

/// How much a frame may have.
public struct FrameLimits: Sendable, Hashable {
    public var payloadByteCount: UInt32
    public var metaByteCount: UInt16
    public var descriptorCount: UInt8

    public init(payloadByteCount: UInt32, metaByteCount: UInt16, descriptorCount: UInt8) {
        self.payloadByteCount = payloadByteCount
        self.metaByteCount = metaByteCount
        self.descriptorCount = descriptorCount
    }

    /// Those of a connection that has not agreed on any.
    public static let beforeHello =
        FrameLimits(payloadByteCount: 0, metaByteCount: 4096, descriptorCount: 0)
    /// All that HELLO can agree on.
    public static let widest =
        FrameLimits(payloadByteCount: 1 << 20, metaByteCount: .max, descriptorCount: 64)
}

/// Why bytes are no frame. All but `short` end the connection: nothing after it can be trusted.
public enum FrameError: String, Error, Sendable {
    /// There are fewer bytes than needed.
    case short
    case magic, version, checksum, kind, flags, payload, meta, descriptors
}

/// A frame whose bytes are all there.
public struct Frame: Sendable, Hashable {
    public let header: FrameHeader
    public let meta: [UInt8]
    public let payload: [UInt8]

    /// Reads the frame that `bytes` begin with; what is behind it is left alone.
    public init(_ bytes: some Collection<UInt8>, limits: FrameLimits) throws {
        header = try FrameHeader(bytes, limits: limits)
        let body = Array(bytes.dropFirst(FrameHeader.byteCount).prefix(header.bodyByteCount))
        guard body.count == header.bodyByteCount else { throw FrameError.short }
        meta = Array(body.prefix(Int(header.metaByteCount)))
        payload = Array(body.dropFirst(Int(header.metaByteCount)))
    }
}

/// What the meta of a request begins with.
public struct RequestPrefix: Sendable, Hashable {
    /// Milliseconds from receipt, 0 for none.
    public let deadlineMilliseconds: UInt32
    /// 0 or what the client calls this request.
    public let traceID: UInt64
    /// By which the daemon knows a change again.
    public let key: [UInt8]?
    /// How many bytes of the meta it takes; the control message follows.
    public let byteCount: Int

    public init(_ frame: Frame) throws {
        let isKeyed = frame.header.flags.contains(.key)
        byteCount = isKeyed ? 32 : 16
        guard frame.meta.count >= byteCount else { throw FrameError.short }
        deadlineMilliseconds = integer(frame.meta, at: 0)
        traceID = integer(frame.meta, at: 8)
        key = isKeyed ? Array(frame.meta[16..<32]) : nil
    }
}

/// The control message of READ and WRITE.
public struct Transfer: Sendable, Hashable {
    public static let byteCount = 24

    public let handle: UInt64
    public let offset: UInt64
    public let byteCount: UInt32
    /// Where in the arena the bytes are, if they are not in the frame.
    public let slot: UInt32?

    public init(_ message: [UInt8]) throws {
        guard message.count == Self.byteCount else { throw FrameError.short }
        handle = integer(message, at: 0)
        offset = integer(message, at: 8)
        byteCount = integer(message, at: 16)
        let slot: UInt32 = integer(message, at: 20)
        self.slot = slot == .max ? nil : slot
    }
}

/// The integer whose least significant byte is at `offset`. The caller has looked that it is there.
private func integer<Value: FixedWidthInteger>(_ bytes: [UInt8], at offset: Int) -> Value {
    var value: Value = 0
    for index in (0..<Value.bitWidth / 8).reversed() {
        value = value << 8 | Value(bytes[offset + index])
    }
    return value
}

/// CRC-32C (Castagnoli), bit by bit: 28 bytes at a time are not worth a table.
func crc32c(_ bytes: some Sequence<UInt8>) -> UInt32 {
    var register: UInt32 = .max
    for byte in bytes {
        register ^= UInt32(byte)
        for _ in 0..<8 {
            register = register & 1 == 0 ? register >> 1 : register >> 1 ^ 0x82f6_3b78
        }
    }
    return ~register
}
