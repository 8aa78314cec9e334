//! `grpc.health.v1`: serving as long as there is a volume to serve, and nobody has said stop.
//!
//! Every answer is what is true when it is asked for; nothing has to be told to it.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::call::{Context, Shared, Weight};

/// How soon a watcher hears of a change.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// What can be asked about; the empty name is the server.
const SERVICES: [&str; 9] = [
    "",
    "file.FileService",
    "node.NodeService",
    "log.LogService",
    "librorum.v1.Files",
    "librorum.v1.Admin",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct HealthService(pub(super) Shared);

impl HealthService {
    /// None for a service that does not exist.
    fn status(&self, service: &str) -> Option<ServingStatus> {
        let needs_volume =
            !matches!(service, "node.NodeService" | "log.LogService" | "librorum.v1.Admin")
                && !service.starts_with("grpc.");
        if !SERVICES.contains(&service) {
            return None;
        }
        let is_closing = *self.0.closing.borrow();
        let serves = !is_closing && (!needs_volume || !self.0.service.volumes().is_empty());
        Some(if serves { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        let status = self
            .status(service)
            .ok_or_else(|| Status::not_found(format!("there is no service '{service}'")))?;
        Ok(Response::new(response(status)))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let context = Context::of(&request)?;
        // Counted as one that waits: there may be only so many.
        let mut ticket = self.0.begin(context, "Watch", bytes::Bytes::new(), Weight::Waiter)?;
        let service = request.into_inner().service;
        let (sender, receiver) = mpsc::channel(1);
        let this = self.clone();
        let mut closing = self.0.closing.clone();
        tokio::spawn(async move {
            let mut told = None;
            loop {
                // A service that is not known may come to be: the protocol says to go on.
                let status = this.status(&service).unwrap_or(ServingStatus::ServiceUnknown);
                if told != Some(status) {
                    told = Some(status);
                    if sender.send(Ok(response(status))).await.is_err() {
                        break;
                    }
                }
                if *closing.borrow() {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(WATCH_EVERY) => {}
                    changed = closing.changed() => if changed.is_err() { break },
                    () = sender.closed() => break,
                }
            }
            ticket.succeed();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
