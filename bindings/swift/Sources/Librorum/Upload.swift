import CLibrorum
import Foundation

/// How a file is to be written.
public struct WriteOptions: Sendable {
    /// How long it will be; 0 if that is not known. It need not be right.
    public var sizeHint: UInt64 = 0
    public var mode: UInt32 = 0o644
    public var replace: Replace = .yes
    /// The commit ends when the file would survive a power cut.
    public var durable = false
    /// Its time of modification; `nil`: that of the commit.
    public var modified: Entry.Time?
    /// 16 bytes by which the upload is found again after a lost connection.
    public var key: [UInt8]?
    /// What the content has to be, by its BLAKE3 of 32 bytes.
    public var blake3: [UInt8]?

    public init() {}
}

extension Client {
    /// Begins to write a file, which appears whole when it is committed.
    public func create(
        _ path: RemotePath, options: WriteOptions = WriteOptions(), volume: String = ""
    ) throws -> Upload {
        guard options.key.map({ $0.count == 16 }) ?? true,
            options.blake3.map({ $0.count == 32 }) ?? true
        else {
            throw LibrorumError.invalidArgument("a key has 16 bytes, a BLAKE3 32")
        }
        var raw = lb_write_options()
        try check(lb_write_options_init(&raw))
        raw.size_hint = options.sizeHint
        raw.mode = options.mode
        raw.replace = options.replace.rawValue
        if options.durable { raw.flags |= UInt32(LB_WRITE_DURABLE) }
        if let modified = options.modified {
            raw.flags |= UInt32(LB_WRITE_MTIME)
            raw.mtime.seconds = modified.seconds
            raw.mtime.nanos = modified.nanoseconds
        }
        var upload: lb_upload = 0
        try path.withCString { path in
            try RemotePath(volume).withCString { volume in
                try (options.key ?? []).withUnsafeBytes { key in
                    try (options.blake3 ?? []).withUnsafeBytes { blake3 in
                        // An empty array may have an address of its own; here it means none.
                        raw.key = options.key == nil ? nil : key.baseAddress
                        raw.blake3 = options.blake3 == nil ? nil : blake3.baseAddress
                        try check(lb_write_begin(handle, volume, path, &raw, &upload))
                    }
                }
            }
        }
        return Upload(handle: upload)
    }
}

/// A file that is being written. Without a commit nobody ever sees it.
public final class Upload: Sendable {
    private let handle: lb_upload

    init(handle: lb_upload) {
        self.handle = handle
    }

    deinit {
        // After a commit its number belongs to nothing, and nothing happens.
        _ = lb_write_close(handle)
    }

    /// Writes bytes at an offset. They are on their way when this returns; what goes wrong with them later
    /// the next call says, at the latest `commit`.
    public func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws {
        try check(lb_write(handle, offset, bytes.baseAddress, bytes.count))
    }

    /// The same for what has its bytes in one place, such as `Data` and `[UInt8]`.
    public func write(_ bytes: some ContiguousBytes, at offset: UInt64) throws {
        try bytes.withUnsafeBytes { try write($0, at: offset) }
    }

    /// What the daemon had of an upload with a key when it was begun again.
    public func received() throws -> [Range<UInt64>] {
        var count = 0
        try check(lb_write_received(handle, nil, 0, &count))
        var ranges = [lb_range](repeating: lb_range(), count: count)
        // It is what it was when the upload was begun, so it cannot have grown.
        try check(lb_write_received(handle, &ranges, ranges.count, &count))
        return ranges.map { $0.start..<$0.end }
    }

    /// Publishes the file, and closes the upload, also if that fails.
    @discardableResult
    public func commit() throws -> Entry {
        var entry = lb_entry()
        try check(lb_write_commit(handle, &entry))
        return Entry(entry)
    }

    /// Gives it up, also if it has a key.
    public func abort() throws {
        try check(lb_write_abort(handle))
    }
}
