//! What the daemon counts: operations, bytes, waiting, demotions; and the last operations themselves.
//!
//! Recording takes no lock that anybody waits for and no memory: an operation costs about ten atomic
//! additions and one copy of its path. What is expensive (quantiles, text, the volumes' figures) is
//! done when somebody asks.

mod exposition;
mod histogram;
pub mod process;
mod spans;
mod table;
mod trace;
mod volumes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use librorum_rpc::proto::v1;
use librorum_sys::clock;

pub(crate) use exposition::{BUCKET_POWERS, edge_seconds, seconds};
pub use exposition::{Exposition, Family, Kind, Sample, Value, render};
pub use histogram::{Histogram, Snapshot};
pub use spans::{FinishedSpan, SpanSink};
pub use trace::PATH_BYTES_MAX;
pub use volumes::VolumeStatus;

use table::Table;
use trace::Ring;

/// How the bytes of an operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Frames on a local socket; the client read or wrote through a lent descriptor.
    LbruFd,
    /// Frames; the bytes went through shared memory.
    LbruArena,
    /// Frames; the bytes went in them.
    LbruInline,
    /// Frames, without bytes of a file.
    Lbru,
    /// gRPC on a local socket.
    GrpcUds,
    /// gRPC over TCP.
    GrpcTcp,
    /// A mount.
    Mount,
    /// A caller in the daemon's own process.
    Embedded,
}

impl Transport {
    /// Every one, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::LbruFd,
        Self::LbruArena,
        Self::LbruInline,
        Self::Lbru,
        Self::GrpcUds,
        Self::GrpcTcp,
        Self::Mount,
        Self::Embedded,
    ];

    /// As labels and people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LbruFd => "lbru-fd",
            Self::LbruArena => "lbru-arena",
            Self::LbruInline => "lbru-inline",
            Self::Lbru => "lbru",
            Self::GrpcUds => "grpc-uds",
            Self::GrpcTcp => "grpc-tcp",
            Self::Mount => "mount",
            Self::Embedded => "embedded",
        }
    }
}

impl AsRef<str> for Transport {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What there is to say about an operation that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// Its name, from a fixed set: it becomes a label.
    pub name: &'static str,
    /// How its bytes went.
    pub transport: Transport,
    /// Bytes of files that it moved.
    pub bytes: u64,
    /// A status code (`google.rpc.Code`), 0 for success.
    pub code: u32,
    /// The path it was about, if any; only the first [`PATH_BYTES_MAX`] bytes are kept.
    pub path: &'a [u8],
    /// Who asked.
    pub uid: u32,
    /// The connection it came by, 0 for none.
    pub connection: u64,
    /// What the client calls the request, 0 for nothing.
    pub trace_id: u64,
    /// Why the bytes did not go the way that was wanted first.
    pub demoted_because: Option<&'static str>,
}

/// Combinations of operation, ways and reason that are told apart; clients choose some of the words,
/// and must not be able to fill our memory with them.
const DEMOTIONS_MAX: usize = 512;

/// A slow operation is told in the log once in this time at most.
const SLOW_WARNING_EVERY_MS: u64 = 1_000;

/// What is slow if nobody says otherwise.
const SLOW_DEFAULT_MS: u64 = 2_000;

type Source = Box<dyn Fn(&mut Exposition) + Send + Sync>;

/// The figures of one daemon. A clone is the same figures.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    started: Duration,
    table: Table,
    ring: Ring,
    in_flight: AtomicU64,
    connections: AtomicU64,
    connections_total: AtomicU64,
    credits_stalled: AtomicU64,
    lent: AtomicU64,
    copies_avoided_bytes: AtomicU64,
    demotions: Mutex<BTreeMap<[String; 4], u64>>,
    demotions_not_told_apart: AtomicU64,
    slow_ms: AtomicU64,
    slow_total: AtomicU64,
    slow_told_at_ms: AtomicU64,
    spans: spans::Outlet,
    sources: RwLock<Vec<Source>>,
    volumes: volumes::Volumes,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Metrics")
            .field("connections", &self.inner.connections)
            .field("in_flight", &self.inner.in_flight)
            .finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// An operation under way. Ended without [`Timer::end`], it only stops being under way.
#[derive(Debug)]
pub struct Timer {
    metrics: Metrics,
    started: Duration,
}

impl Timer {
    /// The operation has ended, and this is what it was.
    pub fn end(self, operation: Operation<'_>) {
        let took = clock::monotonic().saturating_sub(self.started);
        self.metrics.record(&operation, took);
    }

    /// How long it has been under way.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        clock::monotonic().saturating_sub(self.started)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.metrics.inner.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Metrics {
    /// Everything at zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                started: clock::monotonic(),
                table: Table::new(),
                ring: Ring::new(),
                in_flight: AtomicU64::new(0),
                connections: AtomicU64::new(0),
                connections_total: AtomicU64::new(0),
                credits_stalled: AtomicU64::new(0),
                lent: AtomicU64::new(0),
                copies_avoided_bytes: AtomicU64::new(0),
                demotions: Mutex::new(BTreeMap::new()),
                demotions_not_told_apart: AtomicU64::new(0),
                slow_ms: AtomicU64::new(SLOW_DEFAULT_MS),
                slow_total: AtomicU64::new(0),
                slow_told_at_ms: AtomicU64::new(0),
                spans: spans::Outlet::default(),
                sources: RwLock::new(Vec::new()),
                volumes: volumes::Volumes::default(),
            }),
        }
    }

    /// An operation begins.
    #[must_use]
    pub fn begin(&self) -> Timer {
        self.inner.in_flight.fetch_add(1, Relaxed);
        Timer { metrics: self.clone(), started: clock::monotonic() }
    }

    /// An operation that somebody else has timed.
    pub fn record(&self, operation: &Operation<'_>, took: Duration) {
        let inner = &*self.inner;
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        inner.table.record(operation, took_ns);
        inner.ring.record(operation, took_ns);
        inner.spans.offer(operation, took_ns);
        let slow_ns = inner.slow_ms.load(Relaxed).saturating_mul(1_000_000);
        if slow_ns != 0 && took_ns >= slow_ns {
            self.tell_slow(operation, took);
        }
    }

    fn tell_slow(&self, operation: &Operation<'_>, took: Duration) {
        let inner = &*self.inner;
        let slow_total = inner.slow_total.fetch_add(1, Relaxed) + 1;
        let now_ms = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX);
        let told_at_ms = inner.slow_told_at_ms.load(Relaxed);
        let due = told_at_ms == 0 || now_ms >= told_at_ms.saturating_add(SLOW_WARNING_EVERY_MS);
        // Who loses this race leaves the warning to who wins it.
        if !due
            || inner
                .slow_told_at_ms
                .compare_exchange(told_at_ms, now_ms.max(1), Relaxed, Relaxed)
                .is_err()
        {
            return;
        }
        let path = String::from_utf8_lossy(&operation.path[..operation.path.len().min(256)]);
        tracing::warn!(
            operation = operation.name,
            transport = operation.transport.name(),
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            %path,
            bytes = operation.bytes,
            code = operation.code,
            trace_id = operation.trace_id,
            slow_total,
            "a slow operation"
        );
    }

    /// Operations that take this long are told in the log; zero: none is.
    pub fn set_slow_after(&self, slow: Duration) {
        self.inner.slow_ms.store(u64::try_from(slow.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// A client connected.
    pub fn connection_opened(&self) {
        self.inner.connections.fetch_add(1, Relaxed);
        self.inner.connections_total.fetch_add(1, Relaxed);
    }

    /// One of them is gone.
    pub fn connection_closed(&self) {
        self.inner.connections.fetch_sub(1, Relaxed);
    }

    /// A client had to wait for credit.
    pub fn credit_stalled(&self) {
        self.inner.credits_stalled.fetch_add(1, Relaxed);
    }

    /// So many descriptors were lent.
    pub fn lent(&self, count: u64) {
        self.inner.lent.fetch_add(count, Relaxed);
    }

    /// So many bytes went past the daemon instead of through it.
    pub fn copies_avoided(&self, bytes: u64) {
        self.inner.copies_avoided_bytes.fetch_add(bytes, Relaxed);
    }

    /// An operation's bytes went another way than was wanted first.
    pub fn demoted(
        &self,
        operation: &str,
        from: impl AsRef<str>,
        to: impl AsRef<str>,
        reason: &str,
    ) {
        let key = [operation, from.as_ref(), to.as_ref(), reason]
            .map(|word| word.chars().take(64).collect::<String>());
        let mut demotions = lock(&self.inner.demotions);
        if let Some(count) = demotions.get_mut(&key) {
            *count += 1;
        } else if demotions.len() < DEMOTIONS_MAX {
            demotions.insert(key, 1);
        } else {
            self.inner.demotions_not_told_apart.fetch_add(1, Relaxed);
        }
    }

    /// Where the volumes' figures come from. They are asked for at most once in ten seconds, because
    /// a volume counts its segments for them.
    pub fn set_volumes(&self, source: impl Fn() -> Vec<VolumeStatus> + Send + Sync + 'static) {
        self.inner.volumes.set(Box::new(source));
    }

    /// Something else that has figures to show; asked at every [`Metrics::families`].
    pub fn add_source(&self, source: impl Fn(&mut Exposition) + Send + Sync + 'static) {
        let mut sources = self.inner.sources.write().unwrap_or_else(PoisonError::into_inner);
        sources.push(Box::new(source));
    }

    /// Where finished operations go as spans; `None`: nowhere.
    pub fn set_span_sink(&self, sink: Option<Arc<dyn SpanSink>>) {
        self.inner.spans.set(sink);
    }

    /// Time since the figures began.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        clock::monotonic().saturating_sub(self.inner.started)
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.inner.connections.load(Relaxed)
    }

    /// Requests that have begun and not ended.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.inner.in_flight.load(Relaxed)
    }

    /// The counts since the daemon started, without volumes and uploads, which others know.
    #[must_use]
    pub fn stats(&self) -> v1::StatsResponse {
        let inner = &*self.inner;
        let mut operations = Vec::new();
        inner.table.visit(|operation, transport, figures| {
            let latency = figures.latency.snapshot();
            operations.push(v1::OperationStats {
                operation: operation.to_owned(),
                transport: transport.name().to_owned(),
                count: latency.count,
                error_count: figures.error_count(),
                bytes: figures.bytes.load(Relaxed),
                total_ns: latency.sum_ns,
                p50_ns: latency.quantile(0.5),
                p99_ns: latency.quantile(0.99),
                max_ns: latency.max_ns,
            });
        });
        operations.sort_by(|a, b| {
            (a.operation.as_str(), a.transport.as_str())
                .cmp(&(b.operation.as_str(), b.transport.as_str()))
        });
        v1::StatsResponse {
            operations,
            uptime_ms: u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX),
            connections: inner.connections.load(Relaxed),
            connections_total: inner.connections_total.load(Relaxed),
            requests_in_flight: inner.in_flight.load(Relaxed),
            credits_stalled: inner.credits_stalled.load(Relaxed),
            lent_descriptors: inner.lent.load(Relaxed),
            copies_avoided_bytes: inner.copies_avoided_bytes.load(Relaxed),
            demotions: lock(&inner.demotions)
                .iter()
                .map(|([operation, from, to, reason], &count)| v1::Demotion {
                    operation: operation.clone(),
                    from: from.clone(),
                    to: to.clone(),
                    reason: reason.clone(),
                    count,
                })
                .collect(),
            uploads_open: 0,
            volumes: Vec::new(),
            resident_bytes: process::resident_bytes(),
        }
    }

    /// The last operations, oldest first.
    #[must_use]
    pub fn trace(&self, request: &v1::TraceRequest) -> v1::TraceResponse {
        v1::TraceResponse { operations: self.inner.ring.newest(request.after, request.limit) }
    }

    /// Every figure, by name.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let inner = &*self.inner;
        let mut out = Exposition::default();
        self.expose_operations(&mut out);
        let gauge = |cell: &AtomicU64| cell.load(Relaxed);
        out.gauge("librorum_connections", "Connections that are open.", gauge(&inner.connections));
        out.counter(
            "librorum_connections_total",
            "Connections that were made.",
            gauge(&inner.connections_total),
        );
        out.gauge(
            "librorum_requests_in_flight",
            "Requests that have begun and not ended.",
            gauge(&inner.in_flight),
        );
        out.counter(
            "librorum_credits_stalled_total",
            "Times a client had to wait for credit.",
            gauge(&inner.credits_stalled),
        );
        out.counter(
            "librorum_lent_descriptors_total",
            "Descriptors given to clients.",
            gauge(&inner.lent),
        );
        out.counter(
            "librorum_copies_avoided_bytes_total",
            "Bytes that clients read and wrote by themselves.",
            gauge(&inner.copies_avoided_bytes),
        );
        out.counter(
            "librorum_slow_operations_total",
            "Operations over the time that the configuration calls slow.",
            gauge(&inner.slow_total),
        );
        out.counter(
            "librorum_trace_dropped_total",
            "Operations that the trace left out because somebody was reading it.",
            inner.ring.dropped(),
        );
        let demotions = lock(&inner.demotions).clone();
        for ([operation, from, to, reason], count) in &demotions {
            out.sample(
                "librorum_demotions_total",
                "Operations whose bytes went another way than was wanted first.",
                Kind::Counter,
                &[("operation", operation), ("from", from), ("to", to), ("reason", reason)],
                Value::Whole(*count),
            );
        }
        out.counter(
            "librorum_demotions_not_told_apart_total",
            "Demotions of more kinds than are told apart.",
            gauge(&inner.demotions_not_told_apart),
        );
        process::expose(&mut out);
        out.gauge_f64(
            "librorum_uptime_seconds",
            "Time since the daemon started.",
            self.uptime().as_secs_f64(),
        );
        out.sample(
            "librorum_build_info",
            "The program that runs; always 1.",
            Kind::Gauge,
            &[("version", env!("CARGO_PKG_VERSION"))],
            Value::Whole(1),
        );
        inner.volumes.expose(&mut out);
        for source in inner.sources.read().unwrap_or_else(PoisonError::into_inner).iter() {
            source(&mut out);
        }
        out.into_families()
    }

    fn expose_operations(&self, out: &mut Exposition) {
        self.inner.table.visit(|operation, transport, figures| {
            let labels = [("operation", operation), ("transport", transport.name())];
            out.sample(
                "librorum_operation_duration_seconds",
                "Time from an operation's arrival to its answer.",
                Kind::Histogram,
                &labels,
                Value::Histogram(Box::new(figures.latency.snapshot())),
            );
            out.sample(
                "librorum_operation_bytes_total",
                "Bytes of files that operations moved.",
                Kind::Counter,
                &labels,
                Value::Whole(figures.bytes.load(Relaxed)),
            );
            for (code, count) in figures.errors() {
                let [operation, transport] = labels;
                out.sample(
                    "librorum_operation_errors_total",
                    "Operations that failed, by status code.",
                    Kind::Counter,
                    &[operation, transport, ("code", table::code_name(code))],
                    Value::Whole(count),
                );
            }
        });
    }

    /// The figures as Prometheus reads them (text format 0.0.4).
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        render(&self.families())
    }
}

/// A panic elsewhere leaves figures that are as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
