//! The operations by their numbers.

use std::fmt;

/// An operation, known or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Opcode(pub u16);

macro_rules! opcodes {
    ($($name:ident = $number:literal $about:literal $path:expr),* $(,)?) => {
        impl Opcode {
            $(#[doc = concat!("`", stringify!($name), "`: ", $about, ".")] pub const $name: Self = Self($number);)*

            /// All that the protocol knows.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// What the protocol calls it.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// The method of gRPC that does the same, as in a request's path.
            #[must_use]
            pub fn grpc_path(self) -> Option<&'static str> {
                match self.0 {
                    $($number => $path,)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    NONE = 0x00 "CREDIT, CANCEL, PING and GOAWAY have no operation" None,
    HELLO = 0x01 "the first request" None,
    CAPABILITIES = 0x03 "as in the schema" Some("/librorum.v1.Files/Capabilities"),
    STAT = 0x10 "as in the schema" Some("/librorum.v1.Files/Stat"),
    LIST = 0x11 "as in the schema" Some("/librorum.v1.Files/List"),
    MAKE_DIRECTORY = 0x12 "as in the schema" Some("/librorum.v1.Files/MakeDirectory"),
    REMOVE = 0x13 "as in the schema" Some("/librorum.v1.Files/Remove"),
    RENAME = 0x14 "as in the schema" Some("/librorum.v1.Files/Rename"),
    COPY = 0x15 "as in the schema" Some("/librorum.v1.Files/Copy"),
    MAKE_SYMLINK = 0x16 "as in the schema" Some("/librorum.v1.Files/MakeSymlink"),
    LINK = 0x17 "as in the schema" Some("/librorum.v1.Files/Link"),
    SET_ATTRIBUTES = 0x18 "as in the schema" Some("/librorum.v1.Files/SetAttributes"),
    USAGE = 0x19 "as in the schema" Some("/librorum.v1.Files/Usage"),
    SYNC = 0x1a "as in the schema" Some("/librorum.v1.Files/Sync"),
    PUT = 0x1b "as in the schema" Some("/librorum.v1.Files/Put"),
    READ_OPEN = 0x20 "opens a file" None,
    READ = 0x21 "reads" None,
    READ_CLOSE = 0x22 "closes a file" None,
    READ_PIECES = 0x23 "asks where bytes lie" None,
    WRITE_OPEN = 0x30 "as in the schema" Some("/librorum.v1.Files/OpenWrite"),
    WRITE = 0x31 "writes" None,
    COMMIT = 0x32 "as in the schema" Some("/librorum.v1.Files/Commit"),
    ABORT = 0x33 "as in the schema" Some("/librorum.v1.Files/Abort"),
    QUERY_UPLOAD = 0x34 "what a keyed upload has" None,
    ARENA_OPEN = 0x40 "the session's shared memory" None,
    LEASE_RELEASE = 0x41 "descriptors that were closed" None,
    STATUS = 0x50 "as in the schema" Some("/librorum.v1.Admin/Status"),
    STATS = 0x51 "as in the schema" Some("/librorum.v1.Admin/Stats"),
    TRACE = 0x52 "as in the schema" Some("/librorum.v1.Admin/Trace"),
    LOGS = 0x53 "as in the schema" Some("/librorum.v1.Admin/Logs"),
    NODES = 0x54 "as in the schema" Some("/librorum.v1.Admin/Nodes"),
    MOUNT = 0x55 "as in the schema" Some("/librorum.v1.Admin/Mount"),
    UNMOUNT = 0x56 "as in the schema" Some("/librorum.v1.Admin/Unmount"),
    RELOAD = 0x57 "as in the schema" Some("/librorum.v1.Admin/Reload"),
    SHUTDOWN = 0x58 "as in the schema" Some("/librorum.v1.Admin/Shutdown"),
    CONFIG = 0x59 "as in the schema" Some("/librorum.v1.Admin/Config"),
}

impl fmt::Debug for Opcode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "{:#04x}", self.0),
        }
    }
}
