//! `librorum.v1.Files`: the methods that are one message each way. The others are in [`super::bulk`].

use bytes::Bytes;
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use tonic::{Request, Response, Status, Streaming};

use super::call::{Context, Shared};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct FilesService(pub(super) Shared);

fn no_path<T>(_request: &T) -> Bytes {
    Bytes::new()
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::files_server::Files for FilesService {
    async fn capabilities(
        &self,
        request: Request<v1::CapabilitiesRequest>,
    ) -> Answer<v1::CapabilitiesResponse> {
        let work =
            |to: &super::call::Inner, call: &_, request: &_| to.service.capabilities(call, request);
        self.0.unary(request, "CAPABILITIES", no_path, work).await
    }

    async fn stat(&self, request: Request<v1::StatRequest>) -> Answer<v1::StatResponse> {
        self.0
            .unary(
                request,
                "STAT",
                |request| request.path.clone(),
                |to, call, request| to.service.stat(call, request),
            )
            .await
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListResponse> {
        self.0
            .unary(
                request,
                "LIST",
                |request| request.path.clone(),
                |to, call, request| to.service.list(call, request),
            )
            .await
    }

    async fn make_directory(
        &self,
        request: Request<v1::MakeDirectoryRequest>,
    ) -> Answer<v1::EntryResponse> {
        self.0
            .unary(
                request,
                "MAKE_DIRECTORY",
                |request| request.path.clone(),
                |to, call, request| to.service.make_directory(call, request),
            )
            .await
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Answer<v1::RemoveResponse> {
        self.0
            .unary(
                request,
                "REMOVE",
                |request| request.path.clone(),
                |to, call, request| to.service.remove(call, request),
            )
            .await
    }

    async fn rename(&self, request: Request<v1::RenameRequest>) -> Answer<v1::EntryResponse> {
        self.0
            .unary(
                request,
                "RENAME",
                |request| request.from.clone(),
                |to, call, request| to.service.rename(call, request),
            )
            .await
    }

    async fn copy(&self, request: Request<v1::CopyRequest>) -> Answer<v1::EntryResponse> {
        self.0
            .unary(
                request,
                "COPY",
                |request| request.from.clone(),
                |to, call, request| to.service.copy(call, request),
            )
            .await
    }

    async fn make_symlink(
        &self,
        request: Request<v1::MakeSymlinkRequest>,
    ) -> Answer<v1::EntryResponse> {
        self.0
            .unary(
                request,
                "MAKE_SYMLINK",
                |request| request.path.clone(),
                |to, call, request| to.service.make_symlink(call, request),
            )
            .await
    }

    async fn link(&self, request: Request<v1::LinkRequest>) -> Answer<v1::EntryResponse> {
        self.0
            .unary(
                request,
                "LINK",
                |request| request.from.clone(),
                |to, call, request| to.service.link(call, request),
            )
            .await
    }

    async fn set_attributes(
        &self,
        request: Request<v1::SetAttributesRequest>,
    ) -> Answer<v1::EntryResponse> {
        self.0
            .unary(
                request,
                "SET_ATTRIBUTES",
                |request| request.path.clone(),
                |to, call, request| to.service.set_attributes(call, request),
            )
            .await
    }

    async fn usage(&self, request: Request<v1::UsageRequest>) -> Answer<v1::UsageResponse> {
        self.0
            .unary(
                request,
                "USAGE",
                |request| request.path.clone(),
                |to, call, request| to.service.usage(call, request),
            )
            .await
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Answer<v1::SyncResponse> {
        self.0
            .unary(request, "SYNC", no_path, |to, call, request| to.service.sync(call, request))
            .await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Answer<v1::EntryResponse> {
        self.0
            .unary(
                request,
                "PUT",
                |request| request.path.clone(),
                |to, call, request| to.service.put(call, request, &request.data),
            )
            .await
    }

    async fn open_write(
        &self,
        request: Request<v1::OpenWriteRequest>,
    ) -> Answer<v1::OpenWriteResponse> {
        let connection = Context::of(&request)?.connection;
        self.0
            .unary(
                request,
                "WRITE_OPEN",
                |request| request.path.clone(),
                move |to, call, request| {
                    let upload = to.service.open_write(call, request)?;
                    connection.keep_upload(upload.id);

                    let demoted_because = match request.want() {
                        v1::Transport::Fd | v1::Transport::Arena | v1::Transport::Inline => {
                            "gRPC carries neither descriptors nor shared memory".to_owned()
                        }
                        v1::Transport::Unknown | v1::Transport::Grpc => String::new(),
                    };
                    Ok(v1::OpenWriteResponse {
                        upload: upload.id,
                        transport: v1::Transport::Grpc.into(),
                        demoted_because,
                        received: upload.received(),
                    })
                },
            )
            .await
    }

    async fn write(
        &self,
        _request: Request<Streaming<v1::WriteRequest>>,
    ) -> Answer<v1::WriteResponse> {
        Err(in_front())
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answer<v1::EntryResponse> {
        let connection = Context::of(&request)?.connection;
        self.0
            .unary(
                request,
                "COMMIT",
                |request| request.path.clone(),
                move |to, call, request| {
                    let committed = to.service.commit(call, request)?;
                    connection.forget_upload(request.upload);
                    Ok(committed)
                },
            )
            .await
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Answer<v1::AbortResponse> {
        let connection = Context::of(&request)?.connection;
        self.0
            .unary(request, "ABORT", no_path, move |to, call, request| {
                connection.forget_upload(request.upload);
                to.service.abort(call, request)
            })
            .await
    }

    type ReadStream = tokio_stream::Empty<Result<v1::ReadResponse, Status>>;

    async fn read(&self, _request: Request<v1::ReadRequest>) -> Answer<Self::ReadStream> {
        Err(in_front())
    }
}

/// The answer of methods that [`super::bulk`] answers before they get here.
pub(super) fn in_front() -> Status {
    tracing::error!("a bulk method was called without what stands in front of it");
    Failure::new(Reason::Internal, "the daemon made a mistake; its log has more").into()
}
