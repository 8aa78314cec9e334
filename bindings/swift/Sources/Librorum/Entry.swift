import CLibrorum

/// What a name stands for.
public struct Entry: Sendable, Hashable {
    public enum Kind: UInt32, Sendable {
        case unknown = 0
        case regular, directory, symlink, blockDevice, charDevice, fifo, socket
    }

    /// A moment since 1970.
    public struct Time: Sendable, Hashable {
        public var seconds: Int64
        public var nanoseconds: UInt32

        public init(seconds: Int64, nanoseconds: UInt32 = 0) {
            self.seconds = seconds
            self.nanoseconds = nanoseconds
        }

        init(_ time: lb_time) {
            self.init(seconds: time.seconds, nanoseconds: time.nanos)
        }
    }

    public let ino: UInt64
    public let kind: Kind
    /// The low 12 bits of `st_mode`.
    public let mode: UInt32
    public let linkCount: UInt32
    public let uid: UInt32
    public let gid: UInt32
    public let byteCount: UInt64
    public let allocatedByteCount: UInt64
    /// Changes whenever the content does.
    public let contentVersion: UInt64
    public let accessed: Time
    public let modified: Time
    public let changed: Time
    public let born: Time

    init(_ entry: lb_entry) {
        ino = entry.ino
        kind = Kind(rawValue: entry.kind) ?? .unknown
        mode = entry.mode
        linkCount = entry.nlink
        uid = entry.uid
        gid = entry.gid
        byteCount = entry.size_bytes
        allocatedByteCount = entry.allocated_bytes
        contentVersion = entry.content_version
        accessed = Time(entry.atime)
        modified = Time(entry.mtime)
        changed = Time(entry.ctime)
        born = Time(entry.btime)
    }
}

/// What becomes of that which has a name already.
public enum Replace: UInt32, Sendable {
    case yes = 0
    case no
    /// Both names are exchanged; of renames only.
    case exchange
}
