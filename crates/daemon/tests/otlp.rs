//! Traces and figures arrive at a collector.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use librorum_daemon::config::OtlpPaths;
use librorum_daemon::metrics::{Metrics, Operation, Transport};
use librorum_daemon::otlp::{Exporter, Options};
use librorum_sys::clock;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Collector {
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    figures: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if request.metadata().get("api-key").is_none_or(|key| key != "secret") {
            return Err(Status::unauthenticated("no key"));
        }
        self.traces.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.figures.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let served = collector.clone();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tonic::transport::Server::builder()
                    .add_service(TraceServiceServer::new(served.clone()))
                    .add_service(MetricsServiceServer::new(served))
                    .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener))
                    .await
                    .unwrap();
            });
        });
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        let traces = self.traces.lock().unwrap();
        let resources = traces.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|r| &r.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn options(address: SocketAddr, paths: OtlpPaths) -> Options {
    Options {
        endpoint: format!("http://{address}"),
        headers: vec![("Api-Key".to_owned(), "secret".to_owned())],
        ca: None,
        interval: Duration::from_millis(100),
        paths,
        node_id: "node".to_owned(),
    }
}

fn record(metrics: &Metrics, path: &[u8], trace_id: u64, code: u32) {
    metrics.begin().end(Operation {
        name: "STAT",
        transport: Transport::GrpcTcp,
        bytes: 5,
        code,
        path,
        uid: 1000,
        connection: 2,
        trace_id,
        demoted_because: Some("no descriptor"),
    });
}

fn attribute(span: &Span, name: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.clone()?.value
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = clock::monotonic();
    while !is_so() {
        assert!(clock::monotonic() - begun < Duration::from_secs(20), "{what}");
        clock::sleep(Duration::from_millis(10));
    }
}

#[test]
fn spans_and_figures_arrive() {
    let (collector, address) = Collector::start();
    let metrics = Metrics::new();
    let exporter = Exporter::new(metrics.clone());
    record(&metrics, b"/before", 1, 0);
    exporter.configure(Some(options(address, OtlpPaths::Hash))).unwrap();
    record(&metrics, b"/a", 0xabc, 0);
    record(&metrics, b"/a", 0, 5);
    record(&metrics, b"/b", 0, 0);
    wait_until("three spans", || collector.spans().len() == 3);
    let spans = collector.spans();
    assert_eq!(spans[0].trace_id[8..], [0, 0, 0, 0, 0, 0, 0x0a, 0xbc]);
    assert!(spans.iter().all(|span| span.trace_id.len() == 16 && span.span_id.len() == 8));
    assert!(spans[0].status.is_none());
    assert_eq!(spans[1].status.as_ref().unwrap().code, 2);
    assert!(spans[0].end_time_unix_nano >= spans[0].start_time_unix_nano);
    let hashes: Vec<_> =
        spans.iter().map(|span| attribute(span, "librorum.path_hash").unwrap()).collect();
    assert!(hashes[0] == hashes[1] && hashes[1] != hashes[2]);
    assert_eq!(attribute(&spans[0], "librorum.path"), None);
    assert_eq!(attribute(&spans[0], "librorum.uid"), Some(Value::IntValue(1000)));
    wait_until("figures", || !collector.figures.lock().unwrap().is_empty());
    exporter.shut_down();
    let figures = collector.figures.lock().unwrap();
    let last = &figures.last().unwrap().resource_metrics[0].scope_metrics[0].metrics;
    let durations =
        last.iter().find(|metric| metric.name == "librorum_operation_duration_seconds").unwrap();
    let Some(Data::Histogram(histogram)) = &durations.data else { panic!("{durations:?}") };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.bucket_counts.iter().sum::<u64>()), (4, 4));
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    assert_eq!(exporter.dropped(), 0);
}

#[test]
fn what_is_left_is_sent_at_the_end_with_paths_if_wanted() {
    let (collector, address) = Collector::start();
    let metrics = Metrics::new();
    let exporter = Exporter::new(metrics.clone());
    exporter.configure(Some(options(address, OtlpPaths::Full))).unwrap();
    record(&metrics, b"/a", 0, 0);
    exporter.shut_down();
    record(&metrics, b"/after", 0, 0);
    let spans = collector.spans();
    assert_eq!(spans.len(), 1);
    let path = attribute(&spans[0], "librorum.path");
    assert_eq!(path, Some(Value::StringValue("/a".to_owned())));
}

#[test]
fn without_a_collector_nobody_waits_and_the_lost_are_counted() {
    let metrics = Metrics::new();
    let exporter = Exporter::new(metrics.clone());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    exporter.configure(Some(options(nobody, OtlpPaths::None))).unwrap();
    let begun = clock::monotonic();
    for _ in 0..20_000 {
        record(&metrics, b"/a", 0, 0);
    }
    assert!(clock::monotonic() - begun < Duration::from_secs(5));
    assert!(exporter.dropped() > 5_000, "{}", exporter.dropped());
    assert!(metrics.prometheus_text().contains("librorum_otlp_dropped_total"));
    exporter.shut_down();
    let wrong = Options { endpoint: "no endpoint".into(), ..options(nobody, OtlpPaths::None) };
    assert!(exporter.configure(Some(wrong)).is_err());
}
