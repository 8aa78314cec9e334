import CLibrorum

/// How to connect.
public struct ConnectOptions: Sendable {
    /// Ways that bytes must not take.
    public struct Transports: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        public static let descriptor = Transports(rawValue: UInt32(LB_TRANSPORT_FD))
        public static let arena = Transports(rawValue: UInt32(LB_TRANSPORT_ARENA))
        public static let inline = Transports(rawValue: UInt32(LB_TRANSPORT_INLINE))
    }

    /// Program and version, for the daemon's log.
    public var name = "librorum-swift"
    /// What the daemon asks for beside the user.
    public var token: [UInt8] = []
    /// A user, beside root and this process's, whose daemon is trusted.
    public var expectedUID: UInt32?
    public var forbidden: Transports = []
    public var connectTimeoutMilliseconds: UInt32 = 10_000
    /// How long to try again what can be tried again; 0: not at all.
    public var retryForMilliseconds: UInt32 = 10_000
    /// How long each call may take, with all tries; 0: as long as it takes.
    public var deadlineMilliseconds: UInt32 = 0

    public init() {}
}

/// A connection to the daemon of a socket, or of a gRPC address. Any number of threads may use it.
///
/// The calls wait; those of the same names that are `async` do so on a thread of their own.
public final class Client: Sendable {
    let handle: lb_client

    /// Connects to the socket at an absolute path, or to `http://`, `https://` or `unix:`.
    public init(_ target: String, options: ConnectOptions = ConnectOptions()) throws {
        guard lb_abi_version() >> 16 == UInt32(LB_ABI_VERSION) >> 16 else {
            throw LibrorumError.invalidArgument("liblibrorum_client is of another version")
        }
        var raw = lb_connect_options()
        try check(lb_connect_options_init(&raw))
        raw.forbid = options.forbidden.rawValue
        raw.connect_timeout_ms = options.connectTimeoutMilliseconds
        raw.retry_for_ms = options.retryForMilliseconds
        raw.deadline_ms = options.deadlineMilliseconds
        if let uid = options.expectedUID {
            raw.flags |= UInt32(LB_CONNECT_EXPECTED_UID)
            raw.expected_uid = uid
        }
        var client: lb_client = 0
        try RemotePath(target).withCString { target in
            try RemotePath(options.name).withCString { name in
                try options.token.withUnsafeBytes { token in
                    raw.name = name
                    raw.token = token.baseAddress
                    raw.token_len = token.count
                    try check(lb_connect(target, &raw, &client))
                }
            }
        }
        handle = client
    }

    deinit {
        // It was open, and numbers are never given out twice: this cannot fail.
        _ = lb_disconnect(handle)
    }

    /// What a name stands for. An empty `volume` is the daemon's only or first one.
    public func stat(_ path: RemotePath, volume: String = "") throws -> Entry {
        try answer(path, volume) { lb_stat(handle, $1, $0, $2) }
    }

    /// Makes a directory; with `parents` what lacks on the way, and what is there is no error.
    @discardableResult
    public func makeDirectory(
        _ path: RemotePath, mode: UInt32 = 0o777, parents: Bool = false, volume: String = ""
    ) throws -> Entry {
        let flags = parents ? UInt32(LB_MKDIR_PARENTS) : 0
        return try answer(path, volume) { lb_mkdir(handle, $1, $0, mode, flags, $2) }
    }

    /// What becomes of a directory.
    public enum Removal: Sendable {
        /// It is an error.
        case file
        /// As rmdir(2), only an empty directory is removed.
        case emptyDirectory
        /// It is removed with all that is in it.
        case tree
    }

    /// Removes a name. Answers how many were removed.
    @discardableResult
    public func remove(
        _ path: RemotePath, as removal: Removal = .file, missingOK: Bool = false,
        volume: String = ""
    ) throws -> UInt64 {
        var flags = missingOK ? UInt32(LB_REMOVE_MISSING_OK) : 0
        switch removal {
        case .file: break
        case .emptyDirectory: flags |= UInt32(LB_REMOVE_DIRECTORY)
        case .tree: flags |= UInt32(LB_REMOVE_RECURSIVE)
        }
        var removed: UInt64 = 0
        try path.withCString { path in
            try RemotePath(volume).withCString { volume in
                try check(lb_remove(handle, volume, path, flags, &removed))
            }
        }
        return removed
    }

    /// Renames, or exchanges two names. Answers what `target` is now.
    @discardableResult
    public func rename(
        _ source: RemotePath, to target: RemotePath, replace: Replace = .yes, volume: String = ""
    ) throws -> Entry {
        try target.withCString { target in
            try answer(source, volume) {
                lb_rename(handle, $1, $0, target, replace.rawValue, $2)
            }
        }
    }

    /// Copies a file without moving its bytes. Answers what `target` is now.
    @discardableResult
    public func copy(
        _ source: RemotePath, to target: RemotePath, replace: Replace = .yes, volume: String = ""
    ) throws -> Entry {
        try target.withCString { target in
            try answer(source, volume) {
                lb_copy(handle, $1, $0, target, replace.rawValue, $2)
            }
        }
    }

    /// Makes a symbolic link at `path` that leads to `target`.
    @discardableResult
    public func makeSymlink(
        _ path: RemotePath, to target: RemotePath, volume: String = ""
    ) throws -> Entry {
        try target.withCString { target in
            try answer(path, volume) { lb_symlink(handle, $1, $0, target, $2) }
        }
    }

    /// Where a symbolic link leads.
    public func readLink(_ path: RemotePath, volume: String = "") throws -> RemotePath {
        try path.withCString { path in
            try RemotePath(volume).withCString { volume in
                try withGrowingText { text, size, length in
                    lb_read_link(handle, volume, path, text, size, length)
                }
            }
        }
    }

    /// Makes durable what was written before.
    public func sync(volume: String = "") throws {
        try RemotePath(volume).withCString { try check(lb_sync(handle, $0)) }
    }

    /// A call about a path and a volume that answers an entry.
    func answer(
        _ path: RemotePath, _ volume: String,
        _ call: (UnsafePointer<CChar>, UnsafePointer<CChar>, UnsafeMutablePointer<lb_entry>) -> Int32
    ) throws -> Entry {
        var entry = lb_entry()
        try path.withCString { path in
            try RemotePath(volume).withCString { volume in
                try check(call(path, volume, &entry))
            }
        }
        return Entry(entry)
    }
}

/// Calls with a buffer for a text, again with a larger one if it was too short.
func withGrowingText(
    _ call: (UnsafeMutablePointer<CChar>?, Int, UnsafeMutablePointer<Int>) -> Int32
) throws -> RemotePath {
    var size = 4096
    while true {
        var length = 0
        var text = [CChar](repeating: 0, count: size)
        let code = text.withUnsafeMutableBufferPointer { call($0.baseAddress, size, &length) }
        if code == LB_OUT_OF_RANGE && length >= size {
            size = length + 1
            continue
        }
        try check(code)
        return RemotePath(bytes: text.prefix(length).map { UInt8(bitPattern: $0) })
    }
}
