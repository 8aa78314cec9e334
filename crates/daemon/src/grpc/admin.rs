//! `librorum.v1.Admin`.

use bytes::Bytes;
use librorum_rpc::proto::v1;
use tonic::{Request, Response, Status};

use super::call::{Shared, Weight};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct AdminService(pub(super) Shared);

fn no_path<T>(_request: &T) -> Bytes {
    Bytes::new()
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminService {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        self.0
            .unary(request, "STATUS", no_path, |to, call, request| to.admin.status(call, request))
            .await
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Answer<v1::StatsResponse> {
        self.0
            .unary(request, "STATS", no_path, |to, call, request| to.admin.stats(call, request))
            .await
    }

    async fn trace(&self, request: Request<v1::TraceRequest>) -> Answer<v1::TraceResponse> {
        self.0
            .unary(request, "TRACE", no_path, |to, call, request| to.admin.trace(call, request))
            .await
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<v1::LogsResponse> {
        // The one method here that may wait long on purpose.
        let weight = if request.get_ref().wait_ms == 0 { Weight::Single } else { Weight::Waiter };
        self.0
            .weighed(request, "LOGS", weight, no_path, |to, call, request| {
                to.admin.logs(call, request)
            })
            .await
    }

    async fn nodes(&self, request: Request<v1::NodesRequest>) -> Answer<v1::NodesResponse> {
        self.0
            .unary(request, "NODES", no_path, |to, call, request| to.admin.nodes(call, request))
            .await
    }

    async fn mount(&self, request: Request<v1::MountRequest>) -> Answer<v1::MountResponse> {
        self.0
            .unary(
                request,
                "MOUNT",
                |request| request.mountpoint.clone(),
                |to, call, request| to.admin.mount(call, request),
            )
            .await
    }

    async fn unmount(&self, request: Request<v1::UnmountRequest>) -> Answer<v1::UnmountResponse> {
        self.0
            .unary(
                request,
                "UNMOUNT",
                |request| request.mountpoint.clone(),
                |to, call, request| to.admin.unmount(call, request),
            )
            .await
    }

    async fn reload(&self, request: Request<v1::ReloadRequest>) -> Answer<v1::ReloadResponse> {
        self.0
            .unary(request, "RELOAD", no_path, |to, call, request| to.admin.reload(call, request))
            .await
    }

    async fn shutdown(
        &self,
        request: Request<v1::ShutdownRequest>,
    ) -> Answer<v1::ShutdownResponse> {
        self.0
            .unary(request, "SHUTDOWN", no_path, |to, call, request| {
                to.admin.shutdown(call, request)
            })
            .await
    }

    async fn config(&self, request: Request<v1::ConfigRequest>) -> Answer<v1::ConfigResponse> {
        self.0
            .unary(request, "CONFIG", no_path, |to, call, request| to.admin.config(call, request))
            .await
    }
}
