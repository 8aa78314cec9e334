//! `log.LogService`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use librorum_rpc::proto::log;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::require_owner;
use crate::grpc::call::{Context, Shared, Ticket, Weight};
use crate::logbook::Record;

/// How long a follower's thread waits before it looks whether the client is still there.
const WAIT: Duration = Duration::from_secs(1);

/// The log tells what everybody does, so not everybody may read it.
const READ: &str = "read the log";

/// See the module.
#[derive(Clone, Debug)]
pub(in crate::grpc) struct LogService(pub(in crate::grpc) Shared);

fn no_path<T>(_request: &T) -> Bytes {
    Bytes::new()
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl log::log_service_server::LogService for LogService {
    async fn get_logs(
        &self,
        request: Request<log::GetLogsRequest>,
    ) -> Answer<log::GetLogsResponse> {
        self.0
            .unary(request, "GetLogs", no_path, |to, call, request| {
                require_owner(to, call, READ)?;
                to.logs.get(request)
            })
            .await
    }

    type StreamLogsStream = Pin<Box<dyn Stream<Item = Result<log::LogEntry, Status>> + Send>>;

    async fn stream_logs(
        &self,
        request: Request<log::StreamLogsRequest>,
    ) -> Answer<Self::StreamLogsStream> {
        let context = Context::of(&request)?;
        let request = request.into_inner();
        let weight = if request.follow { Weight::Waiter } else { Weight::Single };
        let mut ticket = self.0.begin(context, "StreamLogs", Bytes::new(), weight)?;
        let shared = self.0.clone();
        let wanted = ticket.work(move |call| {
            require_owner(&shared, call, READ)?;
            Ok((shared.logs.stream_filter(&request)?, request.follow))
        });
        let ((filter, tail), follow) = wanted.await.map_err(|failure| ticket.fail(failure))?;
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(stream(self.0.clone(), ticket, filter, tail, follow, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn clear_logs(
        &self,
        request: Request<log::ClearLogsRequest>,
    ) -> Answer<log::ClearLogsResponse> {
        self.0
            .unary(request, "ClearLogs", no_path, |to, call, request| {
                require_owner(to, call, "clear the log")?;
                to.logs.clear_request(request)
            })
            .await
    }

    async fn export_logs(
        &self,
        request: Request<log::ExportLogsRequest>,
    ) -> Answer<log::ExportLogsResponse> {
        self.0
            .unary(request, "ExportLogs", no_path, |to, call, request| {
                require_owner(to, call, READ)?;
                to.logs.export(request)
            })
            .await
    }

    async fn get_log_stats(
        &self,
        request: Request<log::GetLogStatsRequest>,
    ) -> Answer<log::GetLogStatsResponse> {
        self.0
            .unary(request, "GetLogStats", no_path, |to, call, request| {
                require_owner(to, call, READ)?;
                to.logs.stats(request)
            })
            .await
    }
}

async fn stream(
    shared: Shared,
    mut ticket: Ticket,
    mut filter: crate::logbook::Filter,
    mut tail: usize,
    follow: bool,
    sender: mpsc::Sender<Result<log::LogEntry, Status>>,
) {
    loop {
        let (logs, wanted) = (shared.logs.clone(), filter.clone());
        let wait = if follow { WAIT } else { Duration::ZERO };
        let found = ticket
            .work(move |_call| Ok(logs.wait_for(&wanted, tail, wait, &AtomicBool::new(false))));
        let found: Vec<Arc<Record>> = tokio::select! {
            found = found => match found {
                Ok(found) => found,
                Err(failure) => {
                    let status = ticket.fail(failure);
                    // The client may be gone, which ends it as well.
                    drop(sender.send(Err(status)).await);
                    return;
                }
            },
            () = sender.closed() => break,
        };
        // Only the first time: what comes later is all wanted.
        tail = 0;
        for record in found {
            filter.after = record.sequence;
            if sender.send(Ok(record.to_entry())).await.is_err() {
                ticket.succeed();
                return;
            }
        }
        if !follow || *shared.closing.borrow() || sender.is_closed() {
            break;
        }
    }
    ticket.succeed();
}
