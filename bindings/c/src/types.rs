//! What goes over the border by its bytes. All fields are plain numbers or pointers, so that every
//! pattern of bytes is a value.

use std::ffi::{c_char, c_void};

use librorum_rpc::proto::v1;

/// A connection to a daemon. 0 is none.
pub type ClientHandle = u64;
/// A file that is open for reading. 0 is none.
pub type FileHandle = u64;
/// A file that is being written. 0 is none.
pub type UploadHandle = u64;
/// A directory that is being listed. 0 is none.
pub type ListingHandle = u64;
/// Bytes of a file, seen in place. 0 is none.
pub type MappingHandle = u64;

/// Ways for bytes, to be forbidden: descriptors of the daemon.
pub const LB_TRANSPORT_FD: u32 = 1;
/// Shared memory.
pub const LB_TRANSPORT_ARENA: u32 = 2;
/// Frames of the socket.
pub const LB_TRANSPORT_INLINE: u32 = 4;

/// What `kind` of an entry says: something that this version does not know.
pub const LB_KIND_UNKNOWN: u32 = 0;
/// A regular file.
pub const LB_KIND_REGULAR: u32 = 1;
/// A directory.
pub const LB_KIND_DIRECTORY: u32 = 2;
/// A symbolic link.
pub const LB_KIND_SYMLINK: u32 = 3;
/// A block device.
pub const LB_KIND_BLOCK_DEVICE: u32 = 4;
/// A character device.
pub const LB_KIND_CHAR_DEVICE: u32 = 5;
/// A named pipe.
pub const LB_KIND_FIFO: u32 = 6;
/// A socket.
pub const LB_KIND_SOCKET: u32 = 7;

/// What has the name already is replaced.
pub const LB_REPLACE_YES: u32 = 0;
/// What has the name already stays, and the operation fails.
pub const LB_REPLACE_NO: u32 = 1;
/// Both names are exchanged; of renames only.
pub const LB_REPLACE_EXCHANGE: u32 = 2;

/// Of `lb_connect_options.flags`: `expected_uid` is to be looked at.
pub const LB_CONNECT_EXPECTED_UID: u32 = 1;

/// Of `lb_write_options.flags`: the commit ends when the file would survive a power cut.
pub const LB_WRITE_DURABLE: u32 = 1;
/// Of `lb_write_options.flags`: `mtime` is to be looked at.
pub const LB_WRITE_MTIME: u32 = 2;

/// Of `lb_list`: depth first, a directory before what is in it.
pub const LB_LIST_RECURSIVE: u32 = 1;

/// Of `lb_mkdir`: make what lacks on the way; what is there is no error.
pub const LB_MKDIR_PARENTS: u32 = 1;

/// Of `lb_remove`: with all that is in it.
pub const LB_REMOVE_RECURSIVE: u32 = 1;
/// Of `lb_remove`: that it is not there is no error.
pub const LB_REMOVE_MISSING_OK: u32 = 2;
/// Of `lb_remove`: as rmdir(2), only an empty directory.
pub const LB_REMOVE_DIRECTORY: u32 = 4;

/// A moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds in the second.
    pub nanos: u32,
    /// Zero.
    pub reserved: u32,
}

/// What a name stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// Its number in the volume.
    pub ino: u64,
    /// `LB_KIND_`...
    pub kind: u32,
    /// The low 12 bits of `st_mode`.
    pub mode: u32,
    /// How many names it has.
    pub nlink: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The number of a device.
    pub rdev: u32,
    /// How long it is.
    pub size_bytes: u64,
    /// How much of the disk it takes.
    pub allocated_bytes: u64,
    /// Changes whenever the content does.
    pub content_version: u64,
    /// When it was read last.
    pub atime: Time,
    /// When its content changed last.
    pub mtime: Time,
    /// When anything about it changed last.
    pub ctime: Time,
    /// When it was made.
    pub btime: Time,
}

impl From<&v1::Entry> for Entry {
    fn from(entry: &v1::Entry) -> Self {
        let time = |time: &Option<v1::Timestamp>| {
            let time = time.unwrap_or_default();
            Time { seconds: time.seconds, nanos: time.nanos, reserved: 0 }
        };
        Self {
            ino: entry.ino,
            kind: u32::try_from(entry.kind).unwrap_or(LB_KIND_UNKNOWN),
            mode: entry.mode,
            nlink: entry.nlink,
            uid: entry.uid,
            gid: entry.gid,
            rdev: entry.rdev,
            size_bytes: entry.size_bytes,
            allocated_bytes: entry.allocated_bytes,
            content_version: entry.content_version,
            atime: time(&entry.atime),
            mtime: time(&entry.mtime),
            ctime: time(&entry.ctime),
            btime: time(&entry.btime),
        }
    }
}

/// Bytes from `start` to before `end`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    /// The first.
    pub start: u64,
    /// The one after the last.
    pub end: u64,
}

/// How to connect. Filled by `lb_connect_options_init`, then changed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// How long this is; set by the init function.
    pub struct_size: usize,
    /// Program and version, for the daemon's log.
    pub name: *const c_char,
    /// What the daemon asks for beside the user; `token_len` bytes.
    pub token: *const c_void,
    /// See `token`.
    pub token_len: usize,
    /// `LB_CONNECT_`...
    pub flags: u32,
    /// A user, beside root and this process's, whose daemon is trusted.
    pub expected_uid: u32,
    /// `LB_TRANSPORT_`... that bytes must not take.
    pub forbid: u32,
    /// How long to wait for a connection.
    pub connect_timeout_ms: u32,
    /// How long to try again what can be tried again; 0: not at all.
    pub retry_for_ms: u32,
    /// How long each call may take, with all tries; 0: as long as it takes.
    pub deadline_ms: u32,
    /// Of https: certificates of the authorities to believe, in PEM; those of the machine if NULL.
    pub tls_authorities: *const c_char,
    /// Of https: this program's certificate in PEM, or NULL.
    pub tls_certificate: *const c_char,
    /// The certificate's key in PEM, or NULL.
    pub tls_key: *const c_char,
    /// Of https: the name in the daemon's certificate, if it is not the address's.
    pub tls_server_name: *const c_char,
}

/// How a file is to be written. Filled by `lb_write_options_init`, then changed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// How long this is; set by the init function.
    pub struct_size: usize,
    /// How long the file will be; 0 if that is not known. It need not be right.
    pub size_hint: u64,
    /// Its permissions.
    pub mode: u32,
    /// `LB_REPLACE_`...
    pub replace: u32,
    /// `LB_WRITE_`...
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// Its time of modification, with `LB_WRITE_MTIME`; else the time of the commit.
    pub mtime: Time,
    /// 16 bytes by which the upload is found again after a lost connection, or NULL.
    pub key: *const c_void,
    /// What the content has to be, by its BLAKE3 of 32 bytes, or NULL.
    pub blake3: *const c_void,
}
