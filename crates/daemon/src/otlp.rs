//! Traces and figures to an OpenTelemetry collector, over gRPC (OTLP).
//!
//! The messages and clients are those that OpenTelemetry publishes (`opentelemetry-proto`); its SDK is
//! not used, because every operation is counted already and the SDK would count it again, at a cost for
//! each that is several times ours. An operation becomes a span of its own, in a bounded queue; what
//! finds it full is dropped and counted, and no operation ever waits for the collector.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_sys::{clock, entropy};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use tokio::sync::mpsc;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::config::{MetricsConfig, OtlpPaths};
use crate::metrics::{Exposition, FinishedSpan, Metrics, SpanSink};

mod message;

/// Spans that wait at most; about 4 MiB.
const QUEUE_MAX: usize = 8_192;
/// Spans in one request.
const BATCH_MAX: usize = 512;
/// A batch is not kept longer than this for others to join it.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// A collector that does not answer for so long is not there.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A batch is tried so often, with longer pauses each time.
const TRIES: u32 = 3;

/// Where to, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `http://host:4317`.
    pub endpoint: String,
    /// What the collector wants in every request, such as a key.
    pub headers: Vec<(String, String)>,
    /// Who may have signed its certificate, for `https`.
    pub ca: Option<PathBuf>,
    /// Time between two reports of figures.
    pub interval: Duration,
    /// How paths appear.
    pub paths: OtlpPaths,
    /// Which daemon this is.
    pub node_id: String,
}

impl Options {
    /// What the configuration says; `None` if it names no collector.
    #[must_use]
    pub fn from_config(config: &MetricsConfig, node_id: &str) -> Option<Self> {
        Some(Self {
            endpoint: config.otlp_endpoint.clone()?,
            headers: config.otlp_headers.clone(),
            ca: config.otlp_ca.clone(),
            interval: config.otlp_interval,
            paths: config.otlp_paths,
            node_id: node_id.to_owned(),
        })
    }
}

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The endpoint is none.
    #[error("metrics.otlp_endpoint: {0}")]
    Endpoint(#[from] tonic::transport::Error),
    /// A header is none. Its value may be a secret.
    #[error("metrics.otlp_headers: '{0}' and its value are no header of HTTP")]
    Header(String),
    /// The certificate of the collector's authority cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No thread can be started.
    #[error("cannot start the exporter's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The way to a collector, if one is configured.
#[derive(Clone)]
pub struct Exporter {
    metrics: Metrics,
    counts: Arc<Counts>,
    running: Arc<Mutex<Option<Running>>>,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Exporter").field("counts", &self.counts).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
    failures: AtomicU64,
}

struct Running {
    options: Options,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Exporter {
    /// One that exports nothing yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        let counts = Arc::new(Counts::default());
        let shown = Arc::clone(&counts);
        metrics.add_source(move |out| shown.expose(out));
        Self { metrics, counts, running: Arc::default() }
    }

    /// Exports as these options say from now on, or nothing; what is the same stays as it is.
    ///
    /// # Errors
    ///
    /// The options make no sense; what was in effect stays.
    pub fn configure(&self, options: Option<Options>) -> Result<(), OtlpError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().map(|running| &running.options) == options.as_ref() {
            return Ok(());
        }
        let started = match options {
            None => None,
            Some(options) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let collector = Collector::new(&options, &runtime)?;
                let (queue, spans) = mpsc::channel(QUEUE_MAX);
                let (stop, stopped) = mpsc::channel(1);
                let worker = Worker {
                    collector,
                    metrics: self.metrics.clone(),
                    counts: Arc::clone(&self.counts),
                    interval: options.interval,
                };
                let thread = std::thread::Builder::new()
                    .name("otlp".to_owned())
                    .spawn(move || runtime.block_on(worker.run(spans, stopped)))?;
                let sink = Queue { queue, counts: Arc::clone(&self.counts) };
                self.metrics.set_span_sink(Some(Arc::new(sink)));
                Some(Running { options, stop, thread })
            }
        };
        if started.is_none() {
            self.metrics.set_span_sink(None);
        }
        if let Some(old) = std::mem::replace(&mut *running, started) {
            old.end();
        }
        Ok(())
    }

    /// Sends what is left, once, and ends.
    pub fn shut_down(&self) {
        self.metrics.set_span_sink(None);
        let old = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(old) = old {
            old.end();
        }
    }

    /// Spans that were dropped because the collector was too slow or not there.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Relaxed)
    }
}

impl Running {
    fn end(self) {
        // It ends by itself if the thread is gone already.
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the exporter's thread panicked");
        }
    }
}

impl Counts {
    fn expose(&self, out: &mut Exposition) {
        for (name, help, count) in [
            ("librorum_otlp_spans_total", "Spans that a collector took.", &self.exported),
            ("librorum_otlp_dropped_total", "Spans that were dropped.", &self.dropped),
            ("librorum_otlp_failures_total", "Requests a collector did not take.", &self.failures),
        ] {
            out.counter(name, help, count.load(Relaxed));
        }
    }
}

#[derive(Debug)]
struct Queue {
    queue: mpsc::Sender<FinishedSpan>,
    counts: Arc<Counts>,
}

impl SpanSink for Queue {
    fn take(&self, span: FinishedSpan) {
        if self.queue.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

struct Collector {
    channel: Channel,
    headers: MetadataMap,
    names: message::Names,
}

impl Collector {
    fn new(options: &Options, runtime: &tokio::runtime::Runtime) -> Result<Self, OtlpError> {
        let mut endpoint = Endpoint::from_shared(options.endpoint.clone())?
            .connect_timeout(ANSWER_MAX)
            .timeout(ANSWER_MAX);
        if let Some(path) = &options.ca {
            let fail = |source| OtlpError::Ca { path: path.clone(), source };
            let ca = Certificate::from_pem(std::fs::read(path).map_err(fail)?);
            endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(ca))?;
        }
        let mut headers = MetadataMap::new();
        for (name, value) in &options.headers {
            let (Ok(key), Ok(value)) = (
                name.to_ascii_lowercase().parse::<AsciiMetadataKey>(),
                value.parse::<AsciiMetadataValue>(),
            ) else {
                return Err(OtlpError::Header(name.clone()));
            };
            headers.insert(key, value);
        }
        let names = message::Names::new(&options.node_id, options.paths, entropy::random());
        // What moves the channel's bytes lives where the channel was made.
        let _inside = runtime.enter();
        Ok(Self { channel: endpoint.connect_lazy(), headers, names })
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        request
    }

    async fn spans(&self, spans: &ExportTraceServiceRequest) -> Result<u64, tonic::Status> {
        let mut client = TraceServiceClient::new(self.channel.clone());
        let response = client.export(self.request(spans.clone())).await?.into_inner();
        let rejected = response.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }

    async fn figures(&self, figures: ExportMetricsServiceRequest) -> Result<(), tonic::Status> {
        let mut client = MetricsServiceClient::new(self.channel.clone());
        client.export(self.request(figures)).await.map(drop)
    }
}

struct Worker {
    collector: Collector,
    metrics: Metrics,
    counts: Arc<Counts>,
    interval: Duration,
}

impl Worker {
    async fn run(self, mut spans: mpsc::Receiver<FinishedSpan>, mut stopped: mpsc::Receiver<()>) {
        let mut report = tokio::time::interval(self.interval);
        report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            let mut batch = Vec::with_capacity(BATCH_MAX);
            tokio::select! {
                biased;
                _ = stopped.recv() => break,
                _ = report.tick() => self.report(&mut failing).await,
                first = spans.recv() => {
                    let Some(first) = first else { break };
                    batch.push(first);
                    let until = tokio::time::Instant::now() + BATCH_WAIT;
                    while batch.len() < BATCH_MAX {
                        let more = tokio::select! {
                            _ = stopped.recv() => None,
                            more = tokio::time::timeout_at(until, spans.recv()) => more.ok().flatten(),
                        };
                        let Some(more) = more else { break };
                        batch.push(more);
                    }
                    self.send(batch, &mut stopped, &mut failing).await;
                }
            }
        }
        // Once more, without patience: somebody waits for us to end.
        let mut rest = Vec::new();
        while let Ok(span) = spans.try_recv() {
            rest.push(span);
        }
        let last = async {
            for batch in rest.chunks(BATCH_MAX) {
                self.try_send(batch, &mut failing).await;
            }
            self.report(&mut failing).await;
        };
        if tokio::time::timeout(Duration::from_secs(3), last).await.is_err() {
            tracing::debug!("the collector was too slow for what was left");
        }
    }

    async fn send(
        &self,
        batch: Vec<FinishedSpan>,
        stopped: &mut mpsc::Receiver<()>,
        failing: &mut bool,
    ) {
        for attempt in 0..TRIES {
            if self.try_send(&batch, failing).await {
                return;
            }
            let pause = Duration::from_millis(500 << attempt);
            if tokio::time::timeout(pause, stopped.recv()).await.is_ok() {
                break;
            }
        }
        self.counts.dropped.fetch_add(batch.len() as u64, Relaxed);
    }

    async fn try_send(&self, batch: &[FinishedSpan], failing: &mut bool) -> bool {
        let request = self.collector.names.spans(batch);
        match self.collector.spans(&request).await {
            Ok(rejected) => {
                *failing = false;
                self.counts.dropped.fetch_add(rejected, Relaxed);
                self.counts.exported.fetch_add(batch.len() as u64 - rejected, Relaxed);
                true
            }
            Err(status) => {
                self.failed(&status, failing);
                false
            }
        }
    }

    async fn report(&self, failing: &mut bool) {
        let metrics = self.metrics.clone();
        // Volumes may have to count their segments.
        let Ok(families) = tokio::task::spawn_blocking(move || metrics.families()).await else {
            return;
        };
        let now = clock::now();
        let now_ns = now.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(now.nanos));
        let now_ns = u64::try_from(now_ns).unwrap_or(0);
        let uptime_ns = u64::try_from(self.metrics.uptime().as_nanos()).unwrap_or(u64::MAX);
        let started_ns = now_ns.saturating_sub(uptime_ns);
        let request = self.collector.names.figures(&families, started_ns, now_ns);
        match self.collector.figures(request).await {
            Ok(()) => *failing = false,
            Err(status) => self.failed(&status, failing),
        }
    }

    /// Tells of the first failure of a row only.
    fn failed(&self, status: &tonic::Status, failing: &mut bool) {
        self.counts.failures.fetch_add(1, Relaxed);
        if !std::mem::replace(failing, true) {
            tracing::warn!(code = %status.code(), why = status.message(), "no collector takes our traces");
        }
    }
}
