import CLibrorum
import Foundation

extension Client {
    /// Opens a file for reading.
    public func open(_ path: RemotePath, volume: String = "") throws -> File {
        var file: lb_file = 0
        let entry = try answer(path, volume) { lb_open(handle, $1, $0, &file, $2) }
        return File(handle: file, entry: entry)
    }
}

/// A file that is open for reading. Any number of threads may read from it.
public final class File: Sendable {
    private let handle: lb_file
    /// What it was when it was opened.
    public let entry: Entry

    init(handle: lb_file, entry: Entry) {
        self.handle = handle
        self.entry = entry
    }

    deinit {
        _ = lb_close(handle)
    }

    /// Reads bytes from `offset` on into a buffer. Answers how many there were, fewer than it holds only at
    /// the end of the file. A buffer that is used again is much faster than a fresh one.
    public func read(
        at offset: UInt64 = 0, into buffer: UnsafeMutableRawBufferPointer
    ) throws -> Int {
        var count = 0
        try check(lb_read_into(handle, offset, buffer.baseAddress, buffer.count, &count))
        return count
    }

    /// Bytes from `offset` on, in place if they lie in one piece of a file that the daemon lends; fewer
    /// than `count` only at the end of the file. They stay when the file and the client are gone.
    ///
    /// - Important: Keep it in a `let`. The bytes are read-only, and a `Data` that is changed while nobody
    ///   else has it is changed where it is.
    public func map(at offset: UInt64 = 0, count: Int = .max) throws -> Data {
        var mapping: lb_mapping = 0
        var start: UnsafeRawPointer?
        var mapped = 0
        try check(lb_map_range(handle, offset, count, &mapping, &start, &mapped))
        guard mapped > 0, let start else {
            try check(lb_unmap(mapping))
            return Data()
        }
        let number = mapping
        return Data(
            bytesNoCopy: UnsafeMutableRawPointer(mutating: start),
            count: mapped,
            deallocator: .custom { _, _ in _ = lb_unmap(number) }
        )
    }
}
