//! Our figures and spans in the words of OTLP.

use librorum_sys::entropy;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status, span, status,
};

use crate::config::OtlpPaths;
use crate::metrics::{BUCKET_POWERS, Family, FinishedSpan, Kind, Sample, Value, edge_seconds};

/// Who we are, and how we speak of paths.
pub(super) struct Names {
    resource: Resource,
    paths: OtlpPaths,
    /// Of the hashes of paths: without it, nobody can try out which path has this hash.
    key: [u8; 32],
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    pair(key, any_value::Value::StringValue(value.into()))
}

fn number(key: &str, value: u64) -> KeyValue {
    pair(key, any_value::Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn pair(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope {
        name: "librorum".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    })
}

impl Names {
    pub(super) fn new(node_id: &str, paths: OtlpPaths, key: [u8; 32]) -> Self {
        let attributes = vec![
            text("service.name", "librorum"),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", node_id),
        ];
        Self { resource: Resource { attributes, ..Resource::default() }, paths, key }
    }

    pub(super) fn spans(&self, batch: &[FinishedSpan]) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: scope(),
                    spans: batch.iter().map(|span| self.span(span)).collect(),
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        }
    }

    fn span(&self, finished: &FinishedSpan) -> Span {
        let mut attributes = vec![
            text("librorum.transport", finished.transport.name()),
            number("librorum.bytes", finished.bytes),
            number("librorum.uid", u64::from(finished.uid)),
            number("librorum.connection", finished.connection),
            number("rpc.grpc.status_code", u64::from(finished.code)),
        ];
        if let Some(reason) = finished.demoted_because {
            attributes.push(text("librorum.demoted_because", reason));
        }
        if !finished.path.is_empty() {
            match self.paths {
                OtlpPaths::None => {}
                OtlpPaths::Hash => {
                    let hash = blake3::keyed_hash(&self.key, &finished.path);
                    attributes.push(text("librorum.path_hash", &hash.to_hex()[..16]));
                }
                OtlpPaths::Full => {
                    let path = String::from_utf8_lossy(&finished.path);
                    attributes.push(text("librorum.path", path));
                }
            }
        }
        // The client's own name for the request, so that its spans and ours meet; a new one without.
        let mut trace_id = [0; 16];
        #[expect(clippy::big_endian_bytes, reason = "as trace ids are written")]
        trace_id[8..].copy_from_slice(&finished.trace_id.to_be_bytes());
        if finished.trace_id == 0 {
            trace_id = entropy::random();
        }
        let started_ns = u64::try_from(finished.started_unix_ns).unwrap_or(0);
        Span {
            trace_id: trace_id.to_vec(),
            span_id: entropy::random::<8>().to_vec(),
            name: finished.name.to_owned(),
            kind: span::SpanKind::Server.into(),
            start_time_unix_nano: started_ns,
            end_time_unix_nano: started_ns.saturating_add(finished.took_ns),
            attributes,
            status: (finished.code != 0)
                .then(|| Status { message: String::new(), code: status::StatusCode::Error.into() }),
            ..Span::default()
        }
    }

    pub(super) fn figures(
        &self,
        families: &[Family],
        started_ns: u64,
        now_ns: u64,
    ) -> ExportMetricsServiceRequest {
        let metrics = families.iter().map(|family| figure(family, started_ns, now_ns)).collect();
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: scope(),
                    metrics,
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        }
    }
}

fn figure(family: &Family, started_ns: u64, now_ns: u64) -> Metric {
    let numbers = || {
        let points = family.samples.iter();
        points.filter_map(|sample| point(sample, started_ns, now_ns)).collect::<Vec<_>>()
    };
    let cumulative = i32::from(AggregationTemporality::Cumulative);
    let data = match family.kind {
        Kind::Gauge => metric::Data::Gauge(Gauge { data_points: numbers() }),
        Kind::Counter => metric::Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Histogram => metric::Data::Histogram(Histogram {
            data_points: family
                .samples
                .iter()
                .filter_map(|sample| histogram(sample, started_ns, now_ns))
                .collect(),
            aggregation_temporality: cumulative,
        }),
    };
    let unit = if family.name.contains("_seconds") {
        "s"
    } else if family.name.contains("_bytes") {
        "By"
    } else {
        "1"
    };
    Metric {
        name: family.name.to_owned(),
        description: family.help.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn attributes(sample: &Sample) -> Vec<KeyValue> {
    sample.labels.iter().map(|(name, value)| text(name, value)).collect()
}

fn point(sample: &Sample, started_ns: u64, now_ns: u64) -> Option<NumberDataPoint> {
    let value = match &sample.value {
        Value::Whole(value) => {
            number_data_point::Value::AsInt(i64::try_from(*value).unwrap_or(i64::MAX))
        }
        Value::Real(value) => number_data_point::Value::AsDouble(*value),
        Value::Histogram(_) => return None,
    };
    Some(NumberDataPoint {
        attributes: attributes(sample),
        start_time_unix_nano: started_ns,
        time_unix_nano: now_ns,
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

fn histogram(sample: &Sample, started_ns: u64, now_ns: u64) -> Option<HistogramDataPoint> {
    let Value::Histogram(snapshot) = &sample.value else { return None };
    let mut below = 0;
    let mut bucket_counts: Vec<u64> = BUCKET_POWERS
        .iter()
        .map(|&power| {
            let now_below = snapshot.below_power(power);
            let count = now_below - below;
            below = now_below;
            count
        })
        .collect();
    bucket_counts.push(snapshot.count - below);
    Some(HistogramDataPoint {
        attributes: attributes(sample),
        start_time_unix_nano: started_ns,
        time_unix_nano: now_ns,
        count: snapshot.count,
        sum: Some(crate::metrics::seconds(snapshot.sum_ns)),
        bucket_counts,
        explicit_bounds: BUCKET_POWERS.iter().map(|&power| edge_seconds(power)).collect(),
        max: Some(crate::metrics::seconds(snapshot.max_ns)),
        ..HistogramDataPoint::default()
    })
}
