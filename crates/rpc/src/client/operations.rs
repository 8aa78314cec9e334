//! The small operations: each is one message there and one back.

use super::call::Repeat;
use super::pipeline::{Pipeline, Ticket};
use super::{Backend, Client};
use crate::failure::Failure;
use crate::frame::Opcode;
use crate::proto::v1;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident: $opcode:ident($request:ident) -> $response:ident, $repeat:ident;)*) => {
        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                ///
                /// What the daemon answers; [`crate::Reason::Disconnected`] if it cannot be reached.
                pub fn $name(&self, request: &v1::$request) -> Result<v1::$response, Failure> {
                    self.unary(Opcode::$opcode, request, Repeat::$repeat)
                }
            )*
        }

        impl Pipeline<'_> {
            $(
                $(#[$doc])*
                pub fn $name(&mut self, request: &v1::$request) -> Ticket<v1::$response> {
                    self.add(Opcode::$opcode, request, Repeat::$repeat)
                }
            )*
        }
    };
}

operations! {
    /// What the daemon is and serves.
    capabilities: CAPABILITIES(CapabilitiesRequest) -> CapabilitiesResponse, Always;
    /// What a name stands for, and the chunks of a file.
    stat: STAT(StatRequest) -> StatResponse, Always;
    /// One page of a directory; [`Client::entries`] goes through all.
    list: LIST(ListRequest) -> ListResponse, Always;
    /// Makes a directory.
    make_directory: MAKE_DIRECTORY(MakeDirectoryRequest) -> EntryResponse, Keyed;
    /// Removes a file or a directory.
    remove: REMOVE(RemoveRequest) -> RemoveResponse, Keyed;
    /// Renames, or exchanges two names.
    rename: RENAME(RenameRequest) -> EntryResponse, Keyed;
    /// Copies a file without its bytes being moved.
    copy: COPY(CopyRequest) -> EntryResponse, Keyed;
    /// Makes a symbolic link.
    make_symlink: MAKE_SYMLINK(MakeSymlinkRequest) -> EntryResponse, Keyed;
    /// Gives a file another name.
    link: LINK(LinkRequest) -> EntryResponse, Keyed;
    /// Changes mode, owner or times.
    set_attributes: SET_ATTRIBUTES(SetAttributesRequest) -> EntryResponse, Keyed;
    /// How much a file or a tree holds.
    usage: USAGE(UsageRequest) -> UsageResponse, Always;
    /// Makes durable what was written before.
    sync: SYNC(SyncRequest) -> SyncResponse, Always;
    /// What the daemon is doing.
    status: STATUS(StatusRequest) -> StatusResponse, Always;
    /// Counts since the daemon started.
    stats: STATS(StatsRequest) -> StatsResponse, Always;
    /// The daemon's newest operations.
    trace: TRACE(TraceRequest) -> TraceResponse, Always;
    /// The daemon's log.
    logs: LOGS(LogsRequest) -> LogsResponse, Always;
    /// The other nodes; also adds and removes them.
    nodes: NODES(NodesRequest) -> NodesResponse, Always;
    /// Mounts a volume.
    mount: MOUNT(MountRequest) -> MountResponse, Keyed;
    /// Unmounts a volume.
    unmount: UNMOUNT(UnmountRequest) -> UnmountResponse, Keyed;
    /// Reads the configuration anew.
    reload: RELOAD(ReloadRequest) -> ReloadResponse, Always;
    /// Ends the daemon.
    shutdown: SHUTDOWN(ShutdownRequest) -> ShutdownResponse, Keyed;
    /// The configuration in effect.
    config: CONFIG(ConfigRequest) -> ConfigResponse, Always;
    /// What the daemon has of a keyed upload. Frames only.
    query_upload: QUERY_UPLOAD(QueryUploadRequest) -> QueryUploadResponse, Always;
}

impl Client {
    /// Writes a small file whole, in one message. Its content is `data`; `request.data` is ignored.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it does not fit a message; what the daemon answers.
    pub fn put(&self, request: &v1::PutRequest, data: &[u8]) -> Result<v1::EntryResponse, Failure> {
        use prost::Message;
        let answer = match &self.inner.backend {
            Backend::Frames(_) => {
                let max = self.session()?.payload_bytes_max();
                if data.len() > max {
                    return Err(Failure::file(
                        librorum_format::ErrorKind::InvalidInput,
                        format!("{} bytes are too many for one message of {max}", data.len()),
                    ));
                }
                let request = v1::PutRequest { data: bytes::Bytes::new(), ..request.clone() };
                let message = request.encode_to_vec();
                self.unary_encoded(Opcode::PUT, &message, data, Repeat::Keyed)?
            }
            #[cfg(feature = "grpc")]
            Backend::Grpc(_) => {
                let data = bytes::Bytes::copy_from_slice(data);
                let message = v1::PutRequest { data, ..request.clone() }.encode_to_vec();
                self.unary_encoded(Opcode::PUT, &message, &[], Repeat::Keyed)?
            }
        };
        v1::EntryResponse::decode(answer).map_err(|error| {
            Failure::new(crate::Reason::Protocol, format!("the answer to PUT: {error}"))
        })
    }
}
