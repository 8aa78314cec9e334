//! What a request asks for, and where it is done.

use bytes::Bytes;
use librorum_rpc::frame::{Opcode, Transfer};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};

/// Bytes that are moved in the connection's own thread: about what a switch to another one costs.
const MOVED_HERE_MAX: u32 = 64 << 10;
/// Entries that are listed there.
const LISTED_HERE_MAX: u32 = 64;

/// A control message.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Capabilities(v1::CapabilitiesRequest),
    Stat(v1::StatRequest),
    List(v1::ListRequest),
    MakeDirectory(v1::MakeDirectoryRequest),
    Remove(v1::RemoveRequest),
    Rename(v1::RenameRequest),
    Copy(v1::CopyRequest),
    MakeSymlink(v1::MakeSymlinkRequest),
    Link(v1::LinkRequest),
    SetAttributes(v1::SetAttributesRequest),
    Usage(v1::UsageRequest),
    Sync(v1::SyncRequest),
    Put(v1::PutRequest),
    ReadOpen(v1::OpenReadRequest),
    Read(Transfer),
    ReadClose(v1::ReadCloseRequest),
    ReadPieces(v1::ReadPiecesRequest),
    WriteOpen(v1::OpenWriteRequest),
    Write(Transfer),
    Commit(v1::CommitRequest),
    Abort(v1::AbortRequest),
    QueryUpload(v1::QueryUploadRequest),
    ArenaOpen(v1::ArenaOpenRequest),
    LeaseRelease(v1::LeaseReleaseRequest),
    Status(v1::StatusRequest),
    Stats(v1::StatsRequest),
    Trace(v1::TraceRequest),
    Logs(v1::LogsRequest),
    Nodes(v1::NodesRequest),
    Mount(v1::MountRequest),
    Unmount(v1::UnmountRequest),
    Reload(v1::ReloadRequest),
    Shutdown(v1::ShutdownRequest),
    Config(v1::ConfigRequest),
}

/// Who does a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The connection's own thread: it never waits.
    Here,
    /// The same, unless more requests are there already: it hardly ever waits.
    HereIfAlone,
    /// A worker: it may wait for the disk.
    Worker,
    /// It is made to wait.
    Waiter,
}

impl Message {
    pub(super) fn decode(opcode: Opcode, bytes: Bytes) -> Result<Self, Failure> {
        fn message<M: prost::Message + Default>(
            bytes: Bytes,
            make: impl FnOnce(M) -> Message,
        ) -> Result<Message, Failure> {
            M::decode(bytes).map(make).map_err(|error| {
                Failure::new(Reason::Protocol, format!("the control message: {error}"))
            })
        }
        fn transfer(
            bytes: &Bytes,
            make: impl FnOnce(Transfer) -> Message,
        ) -> Result<Message, Failure> {
            Transfer::decode(bytes)
                .map(make)
                .map_err(|error| Failure::new(Reason::Protocol, error.to_string()))
        }
        match opcode {
            Opcode::CAPABILITIES => message(bytes, Self::Capabilities),
            Opcode::STAT => message(bytes, Self::Stat),
            Opcode::LIST => message(bytes, Self::List),
            Opcode::MAKE_DIRECTORY => message(bytes, Self::MakeDirectory),
            Opcode::REMOVE => message(bytes, Self::Remove),
            Opcode::RENAME => message(bytes, Self::Rename),
            Opcode::COPY => message(bytes, Self::Copy),
            Opcode::MAKE_SYMLINK => message(bytes, Self::MakeSymlink),
            Opcode::LINK => message(bytes, Self::Link),
            Opcode::SET_ATTRIBUTES => message(bytes, Self::SetAttributes),
            Opcode::USAGE => message(bytes, Self::Usage),
            Opcode::SYNC => message(bytes, Self::Sync),
            Opcode::PUT => message(bytes, Self::Put),
            Opcode::READ_OPEN => message(bytes, Self::ReadOpen),
            Opcode::READ => transfer(&bytes, Self::Read),
            Opcode::READ_CLOSE => message(bytes, Self::ReadClose),
            Opcode::READ_PIECES => message(bytes, Self::ReadPieces),
            Opcode::WRITE_OPEN => message(bytes, Self::WriteOpen),
            Opcode::WRITE => transfer(&bytes, Self::Write),
            Opcode::COMMIT => message(bytes, Self::Commit),
            Opcode::ABORT => message(bytes, Self::Abort),
            Opcode::QUERY_UPLOAD => message(bytes, Self::QueryUpload),
            Opcode::ARENA_OPEN => message(bytes, Self::ArenaOpen),
            Opcode::LEASE_RELEASE => message(bytes, Self::LeaseRelease),
            Opcode::STATUS => message(bytes, Self::Status),
            Opcode::STATS => message(bytes, Self::Stats),
            Opcode::TRACE => message(bytes, Self::Trace),
            Opcode::LOGS => message(bytes, Self::Logs),
            Opcode::NODES => message(bytes, Self::Nodes),
            Opcode::MOUNT => message(bytes, Self::Mount),
            Opcode::UNMOUNT => message(bytes, Self::Unmount),
            Opcode::RELOAD => message(bytes, Self::Reload),
            Opcode::SHUTDOWN => message(bytes, Self::Shutdown),
            Opcode::CONFIG => message(bytes, Self::Config),
            Opcode::HELLO => {
                Err(Failure::new(Reason::FailedPrecondition, "HELLO has been said already"))
            }
            Opcode(number) => Err(Failure::new(
                Reason::Unimplemented,
                format!("this daemon knows no operation {number:#04x}"),
            )),
        }
    }

    pub(super) fn place(&self) -> Place {
        match self {
            Self::Capabilities(_) | Self::LeaseRelease(_) => Place::Here,
            Self::Stat(request) if !request.chunks => Place::Here,
            Self::List(request)
                if !request.recursive && (1..=LISTED_HERE_MAX).contains(&request.limit) =>
            {
                Place::HereIfAlone
            }
            Self::Read(transfer) | Self::Write(transfer) if transfer.len <= MOVED_HERE_MAX => {
                Place::HereIfAlone
            }
            Self::ReadClose(_) => Place::HereIfAlone,
            Self::Logs(request) if request.wait_ms > 0 => Place::Waiter,
            Self::Stat(_)
            | Self::List(_)
            | Self::MakeDirectory(_)
            | Self::Remove(_)
            | Self::Rename(_)
            | Self::Copy(_)
            | Self::MakeSymlink(_)
            | Self::Link(_)
            | Self::SetAttributes(_)
            | Self::Usage(_)
            | Self::Sync(_)
            | Self::Put(_)
            | Self::ReadOpen(_)
            | Self::Read(_)
            | Self::ReadPieces(_)
            | Self::WriteOpen(_)
            | Self::Write(_)
            | Self::Commit(_)
            | Self::Abort(_)
            | Self::QueryUpload(_)
            | Self::ArenaOpen(_)
            | Self::Status(_)
            | Self::Stats(_)
            | Self::Trace(_)
            | Self::Logs(_)
            | Self::Nodes(_)
            | Self::Mount(_)
            | Self::Unmount(_)
            | Self::Reload(_)
            | Self::Shutdown(_)
            | Self::Config(_) => Place::Worker,
        }
    }

    /// Whether a key has a meaning: it changes something, once.
    pub(super) fn changes(&self) -> bool {
        matches!(
            self,
            Self::MakeDirectory(_)
                | Self::Remove(_)
                | Self::Rename(_)
                | Self::Copy(_)
                | Self::MakeSymlink(_)
                | Self::Link(_)
                | Self::SetAttributes(_)
                | Self::Put(_)
                | Self::Commit(_)
                | Self::Abort(_)
                | Self::Mount(_)
                | Self::Unmount(_)
        )
    }

    /// The bytes that it asks to be sent.
    pub(super) fn asked_bytes(&self) -> u64 {
        match self {
            Self::Read(transfer) if transfer.slot.is_none() => u64::from(transfer.len),
            Self::ReadOpen(request) => u64::from(request.inline_bytes_max.min(MOVED_HERE_MAX)),
            Self::Read(_)
            | Self::Capabilities(_)
            | Self::Stat(_)
            | Self::List(_)
            | Self::MakeDirectory(_)
            | Self::Remove(_)
            | Self::Rename(_)
            | Self::Copy(_)
            | Self::MakeSymlink(_)
            | Self::Link(_)
            | Self::SetAttributes(_)
            | Self::Usage(_)
            | Self::Sync(_)
            | Self::Put(_)
            | Self::ReadClose(_)
            | Self::ReadPieces(_)
            | Self::WriteOpen(_)
            | Self::Write(_)
            | Self::Commit(_)
            | Self::Abort(_)
            | Self::QueryUpload(_)
            | Self::ArenaOpen(_)
            | Self::LeaseRelease(_)
            | Self::Status(_)
            | Self::Stats(_)
            | Self::Trace(_)
            | Self::Logs(_)
            | Self::Nodes(_)
            | Self::Mount(_)
            | Self::Unmount(_)
            | Self::Reload(_)
            | Self::Shutdown(_)
            | Self::Config(_) => 0,
        }
    }

    /// What it is about, for the trace.
    pub(super) fn path(&self) -> &[u8] {
        match self {
            Self::Stat(request) => &request.path,
            Self::List(request) => &request.path,
            Self::MakeDirectory(request) => &request.path,
            Self::Remove(request) => &request.path,
            Self::Rename(request) => &request.from,
            Self::Copy(request) => &request.from,
            Self::MakeSymlink(request) => &request.path,
            Self::Link(request) => &request.from,
            Self::SetAttributes(request) => &request.path,
            Self::Usage(request) => &request.path,
            Self::Put(request) => &request.path,
            Self::ReadOpen(request) => &request.path,
            Self::WriteOpen(request) => &request.path,
            Self::Commit(request) => &request.path,
            Self::Mount(request) => &request.mountpoint,
            Self::Unmount(request) => &request.mountpoint,
            Self::Capabilities(_)
            | Self::Sync(_)
            | Self::Read(_)
            | Self::ReadClose(_)
            | Self::ReadPieces(_)
            | Self::Write(_)
            | Self::Abort(_)
            | Self::QueryUpload(_)
            | Self::ArenaOpen(_)
            | Self::LeaseRelease(_)
            | Self::Status(_)
            | Self::Stats(_)
            | Self::Trace(_)
            | Self::Logs(_)
            | Self::Nodes(_)
            | Self::Reload(_)
            | Self::Shutdown(_)
            | Self::Config(_) => &[],
        }
    }
}
