//! From an RPC to a synchronous call of the service, and back.
//!
//! Every RPC has one [`Ticket`], from its first byte to its last. It bounds how many there are, carries
//! cancellation (dropping it, as tonic does when a client goes away, tells the work to stop), and is what
//! the figures record.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use librorum_rpc::{Failure, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::conn::Connection;
use super::pool::BufferPool;
use crate::admin::Admin;
use crate::logbook::LogBook;
use crate::metrics::{Metrics, Operation, Timer, Transport};
use crate::nodes::Nodes;
use crate::service::{Call, Caller, Service};

/// RPCs under way, streams included. More are refused at once: a queue would only hide the overload.
const CALLS_MAX: usize = 1024;

/// Calls of the service that run at a time. They wait for the disk, so there are more than cores.
const WORKERS_MAX: usize = 64;

/// Streams of file bytes at a time: each may hold a few MiB that its client does not fetch.
const STREAMS_MAX: usize = 64;

/// RPCs that wait for something to happen, such as a line in the log.
const WAITERS_MAX: usize = 16;

/// What the runtime needs for all of them.
pub(super) const BLOCKING_THREADS_MAX: usize = WORKERS_MAX + WAITERS_MAX + 16;

const RETRY_AFTER_MS: u32 = 100;

/// Who asks, by which connection, and until when. The door ([`super::auth`]) puts it into every request.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) caller: Caller,
    pub(super) connection: Arc<Connection>,
    pub(super) trace_id: u64,
    pub(super) deadline: Option<Instant>,
}

impl Context {
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        Self::of_extensions(request.extensions().get())
    }

    /// A request without it did not come through the door.
    pub(super) fn of_extensions(found: Option<&Self>) -> Result<Self, Status> {
        found
            .cloned()
            .ok_or_else(|| Failure::new(Reason::Unauthenticated, "nobody has said who asks").into())
    }

    pub(super) fn transport(&self) -> Transport {
        self.connection.transport
    }

    fn call(&self, cancel: &Arc<AtomicBool>) -> Call {
        Call {
            caller: self.caller.clone(),
            cancel: Arc::clone(cancel),
            deadline: self.deadline.map(Instant::into_std),
            trace_id: self.trace_id,
            connection: self.connection.id,
        }
    }
}

/// What every service of this server works with.
#[derive(Clone)]
pub(super) struct Shared(Arc<Inner>);

/// See [`Shared`].
pub(super) struct Inner {
    pub(super) service: Service,
    pub(super) admin: Admin,
    pub(super) metrics: Metrics,
    pub(super) logs: LogBook,
    pub(super) nodes: Nodes,
    pub(super) buffers: BufferPool,
    /// Becomes true when the server is to stop.
    pub(super) closing: watch::Receiver<bool>,
    calls: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
}

impl std::ops::Deref for Shared {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Shared")
    }
}

/// How much an RPC may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// One message in, one out.
    Single,
    /// Bytes of files, one piece after the other.
    Stream,
    /// A thread, perhaps for long.
    Waiter,
}

impl Shared {
    pub(super) fn new(
        service: Service,
        admin: Admin,
        metrics: Metrics,
        logs: LogBook,
        nodes: Nodes,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self(Arc::new(Inner {
            service,
            admin,
            metrics,
            logs,
            nodes,
            buffers: BufferPool::new(),
            closing,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            workers: Arc::new(Semaphore::new(WORKERS_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            waiters: Arc::new(Semaphore::new(WAITERS_MAX)),
        }))
    }

    /// Lets an RPC in, or says that there are too many.
    pub(super) fn begin(
        &self,
        context: Context,
        name: &'static str,
        path: Bytes,
        weight: Weight,
    ) -> Result<Ticket, Status> {
        let span = tracing::debug_span!(
            "rpc",
            name,
            request = format_args!("{:016x}", context.trace_id),
            connection = context.connection.id,
            uid = context.caller.uid,
        );
        let mut ticket = Ticket {
            shared: self.clone(),
            timer: Some(self.metrics.begin()),
            name,
            context,
            path,
            bytes: 0,
            // What is dropped without an answer was withdrawn.
            code: 1,
            cancel: Arc::new(AtomicBool::new(false)),
            span,
            weight,
            permits: Vec::new(),
        };
        let second = match weight {
            Weight::Single => None,
            Weight::Stream => Some(&self.streams),
            Weight::Waiter => Some(&self.waiters),
        };
        for semaphore in [&self.calls].into_iter().chain(second) {
            match Arc::clone(semaphore).try_acquire_owned() {
                Ok(permit) => ticket.permits.push(permit),
                Err(_full) => {
                    let mut failure = Failure::new(
                        Reason::Overloaded,
                        "too many requests are under way; try again a little later",
                    );
                    failure.retry_after_ms = RETRY_AFTER_MS;
                    return Err(ticket.fail(failure));
                }
            }
        }
        Ok(ticket)
    }

    /// A request that is one message, answered by one synchronous call.
    pub(super) async fn unary<Q, R, P, W>(
        &self,
        request: Request<Q>,
        name: &'static str,
        path: P,
        work: W,
    ) -> Result<Response<R>, Status>
    where
        Q: Send + 'static,
        R: Send + 'static,
        P: FnOnce(&Q) -> Bytes,
        W: FnOnce(&Inner, &Call, &Q) -> Result<R, Failure> + Send + 'static,
    {
        self.weighed(request, name, Weight::Single, path, work).await
    }

    /// As [`Shared::unary`], for one that may hold more than a moment.
    pub(super) async fn weighed<Q, R, P, W>(
        &self,
        request: Request<Q>,
        name: &'static str,
        weight: Weight,
        path: P,
        work: W,
    ) -> Result<Response<R>, Status>
    where
        Q: Send + 'static,
        R: Send + 'static,
        P: FnOnce(&Q) -> Bytes,
        W: FnOnce(&Inner, &Call, &Q) -> Result<R, Failure> + Send + 'static,
    {
        let context = Context::of(&request)?;
        let request = request.into_inner();
        let mut ticket = self.begin(context, name, path(&request), weight)?;
        let shared = self.clone();
        let done = ticket.work(move |call| work(&shared, call, &request)).await;
        ticket.settle(done).map(Response::new)
    }
}

static NEXT_TRACE_ID: AtomicU64 = AtomicU64::new(0);

/// A number for a request whose client gave it none. The start differs between processes, so that two
/// logs do not have the same ones.
pub(super) fn new_trace_id() -> u64 {
    static START: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let start = START.get_or_init(|| u64::from_le_bytes(librorum_sys::entropy::random()));
    let next = NEXT_TRACE_ID.fetch_add(1, Ordering::Relaxed);
    // An odd factor: every number comes once before any comes twice.
    start.wrapping_add(next).wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1)
}

/// An RPC under way.
pub(super) struct Ticket {
    shared: Shared,
    timer: Option<Timer>,
    name: &'static str,
    context: Context,
    path: Bytes,
    bytes: u64,
    code: u32,
    cancel: Arc<AtomicBool>,
    span: tracing::Span,
    weight: Weight,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        let Some(timer) = self.timer.take() else { return };
        timer.end(Operation {
            name: self.name,
            transport: self.context.transport(),
            bytes: self.bytes,
            code: self.code,
            path: &self.path,
            uid: self.context.caller.uid,
            connection: self.context.connection.id,
            trace_id: self.context.trace_id,
            demoted_because: None,
        });
        if self.code > 1 {
            self.span.in_scope(|| tracing::debug!(code = self.code, "the call failed"));
        }
    }
}

impl Ticket {
    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// Tells what the call is about, where that is known only later.
    pub(super) fn set_path(&mut self, path: Bytes) {
        self.path = path;
    }

    /// So many bytes of files went through.
    pub(super) fn count_bytes(&mut self, count: usize) {
        self.bytes += count as u64;
    }

    /// Calls the service on a thread that may wait. The future owns all it needs, so that it can be
    /// spawned; it ends at the deadline even if the work does not.
    pub(super) fn work<T, W>(
        &self,
        work: W,
    ) -> impl Future<Output = Result<T, Failure>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce(&Call) -> Result<T, Failure> + Send + 'static,
    {
        let call = self.context.call(&self.cancel);
        let deadline = self.context.deadline;
        let workers = Arc::clone(&self.shared.workers);
        let is_waiter = self.weight == Weight::Waiter;
        let span = self.span.clone();
        let waited = async move {
            // A waiter has its own threads and must not hold those that others need.
            let permit = if is_waiter { None } else { Some(workers.acquire_owned().await) };
            let inside = tracing::Span::current();
            let done = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                inside.in_scope(|| {
                    call.check()?;
                    work(&call)
                })
            });
            done.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a call did not end well");
                Err(Failure::new(Reason::Internal, "the daemon made a mistake; its log has more"))
            })
        }
        .instrument(span);
        async move {
            match deadline {
                None => waited.await,
                Some(deadline) => tokio::time::timeout_at(deadline, waited)
                    .await
                    .unwrap_or_else(|_elapsed| Err(deadline_exceeded())),
            }
        }
    }

    /// Ends the call with this failure.
    pub(super) fn fail(&mut self, failure: Failure) -> Status {
        self.code = failure.code();
        failure.into()
    }

    /// The call has succeeded.
    pub(super) fn succeed(&mut self) {
        self.code = 0;
    }

    /// Ends the call with what came of it.
    pub(super) fn settle<T>(&mut self, done: Result<T, Failure>) -> Result<T, Status> {
        match done {
            Ok(value) => {
                self.succeed();
                Ok(value)
            }
            Err(failure) => Err(self.fail(failure)),
        }
    }
}

pub(super) fn deadline_exceeded() -> Failure {
    Failure::new(Reason::DeadlineExceeded, "the time that the client gave is up")
}

/// When a request has to be answered, from `grpc-timeout`.
///
/// tonic has a clock of its own that answers CANCELLED; ours is a little earlier, so that the client is
/// told what it was.
pub(super) fn deadline(headers: &http::HeaderMap) -> Option<Instant> {
    const EARLIER: Duration = Duration::from_millis(2);
    let given = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = given.split_at_checked(given.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let duration = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    let now = tokio::time::Instant::now();
    now.checked_add(duration.saturating_sub(EARLIER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_deadline_is_what_the_header_says() {
        let of = |text: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            deadline(&headers).map(|at| at.saturating_duration_since(Instant::now()))
        };
        let seconds = of("10S").unwrap();
        assert!(seconds > Duration::from_secs(9) && seconds <= Duration::from_secs(10));
        assert!(of("500m").unwrap() <= Duration::from_millis(500));
        for nonsense in ["", "S", "10", "10x", "-1S", "123456789S", "é"] {
            assert!(
                http::HeaderValue::from_str(nonsense).is_err() || of(nonsense).is_none(),
                "{nonsense}"
            );
        }
    }

    #[test]
    fn numbers_of_requests_differ() {
        let ids: std::collections::HashSet<u64> = (0..1000).map(|_| new_trace_id()).collect();
        assert_eq!(ids.len(), 1000);
    }
}
