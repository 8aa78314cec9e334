use std::sync::atomic::AtomicU64;

use super::*;

fn operation(name: &'static str, code: u32) -> Operation<'static> {
    Operation {
        name,
        transport: Transport::GrpcTcp,
        bytes: 100,
        code,
        path: b"/a/b",
        uid: 7,
        connection: 3,
        trace_id: 0xabc,
        demoted_because: None,
    }
}

#[test]
fn operations_are_counted_by_name_and_transport() {
    let metrics = Metrics::new();
    for _ in 0..10 {
        metrics.begin().end(operation("STAT", 0));
    }
    metrics.begin().end(operation("STAT", 5));
    metrics.begin().end(Operation { transport: Transport::LbruFd, ..operation("READ", 0) });
    let stats = metrics.stats();
    assert_eq!(stats.operations.len(), 2);
    let stat = stats.operations.iter().find(|found| found.operation == "STAT").unwrap();
    assert_eq!((stat.count, stat.error_count, stat.bytes), (11, 1, 1100));
    assert_eq!(stat.transport, "grpc-tcp");
    assert!(stat.p50_ns <= stat.p99_ns && stat.p99_ns <= stat.max_ns);
    assert!(stat.total_ns >= stat.max_ns && stats.resident_bytes > 0);
}

#[test]
fn an_operation_that_is_given_up_is_no_longer_in_flight() {
    let metrics = Metrics::new();
    let timer = metrics.begin();
    assert_eq!(metrics.in_flight(), 1);
    drop(timer);
    assert_eq!(metrics.in_flight(), 0);
    metrics.begin().end(operation("STAT", 0));
    assert_eq!(metrics.in_flight(), 0);
    assert_eq!(metrics.stats().operations[0].count, 1);
}

#[test]
fn more_names_than_there_is_room_for_are_counted_together() {
    let metrics = Metrics::new();
    for number in 0..1_000 {
        let name: &'static str = Box::leak(format!("OP{number}").into_boxed_str());
        metrics.record(&operation(name, 0), Duration::from_micros(1));
    }
    let stats = metrics.stats();
    assert_eq!(stats.operations.iter().map(|found| found.count).sum::<u64>(), 1_000);
    assert!(stats.operations.iter().any(|found| found.operation == "other"));
}

#[test]
fn the_trace_keeps_the_newest() {
    let metrics = Metrics::new();
    for number in 0..trace::SLOT_COUNT as u64 + 10 {
        metrics.record(
            &Operation { connection: number, path: &[b'x'; 300], ..operation("STAT", 0) },
            Duration::from_millis(1),
        );
    }
    let all = metrics.trace(&v1::TraceRequest { limit: 0, after: 0 }).operations;
    assert_eq!(all.len(), trace::SLOT_COUNT);
    assert!(all.is_sorted_by(|a, b| a.sequence + 1 == b.sequence));
    let last = all.last().unwrap();
    assert_eq!((last.connection, last.path.len()), (trace::SLOT_COUNT as u64 + 9, PATH_BYTES_MAX));
    assert_eq!(last.trace_id, "0000000000000abc");
    let two = metrics.trace(&v1::TraceRequest { limit: 2, after: 0 }).operations;
    assert_eq!(two, all[all.len() - 2..]);
    let after = metrics.trace(&v1::TraceRequest { limit: 0, after: two[0].sequence });
    assert_eq!(after.operations, two[1..]);
}

#[test]
fn clients_cannot_fill_the_memory_with_demotions() {
    let metrics = Metrics::new();
    for number in 0..2_000 {
        metrics.demoted("READ", Transport::LbruFd, "lbru-arena", &format!("reason {number}"));
    }
    metrics.demoted("READ", Transport::LbruFd, "lbru-arena", "reason 1");
    let stats = metrics.stats();
    assert_eq!(stats.demotions.len(), DEMOTIONS_MAX);
    let known = stats.demotions.iter().find(|found| found.reason == "reason 1").unwrap();
    assert_eq!((known.count, known.from.as_str()), (2, "lbru-fd"));
    assert!(metrics.prometheus_text().contains("librorum_demotions_not_told_apart_total 1488\n"));
}

/// Reads the text as strictly as Prometheus does.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap().to_owned();
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert!(["counter", "gauge", "histogram"].contains(&kind));
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(series.starts_with(&family), "{line} is not of {family}");
        let value = value.parse().unwrap();
        assert!(samples.insert(series.to_owned(), value).is_none(), "{series} is there twice");
    }
    samples
}

#[test]
fn prometheus_gets_buckets_that_add_up() {
    let metrics = Metrics::new();
    for us in [1, 50, 3_000, 20_000_000] {
        metrics.record(&operation("STAT", 0), Duration::from_micros(us));
    }
    metrics.record(&operation("STAT", 13), Duration::from_micros(2));
    let samples = parse(&metrics.prometheus_text());
    let name = "librorum_operation_duration_seconds";
    let labels = "operation=\"STAT\",transport=\"grpc-tcp\"";
    assert_eq!(samples[&format!("{name}_count{{{labels}}}")], 5.0);
    assert_eq!(samples[&format!("{name}_bucket{{{labels},le=\"+Inf\"}}")], 5.0);
    assert_eq!(samples[&format!("{name}_bucket{{{labels},le=\"0.000001024\"}}")], 1.0);
    assert_eq!(samples[&format!("{name}_bucket{{{labels},le=\"0.004194304\"}}")], 4.0);
    let sum = samples[&format!("{name}_sum{{{labels}}}")];
    assert!((sum - 20.003_053).abs() < 1e-6, "{sum}");
    let errors = format!("librorum_operation_errors_total{{{labels},code=\"INTERNAL\"}}");
    assert_eq!(samples[&errors], 1.0);
    assert!(samples["process_resident_memory_bytes"] > 0.0);
    assert!(samples["process_open_fds"] > 0.0);
}

#[test]
fn labels_are_escaped() {
    let metrics = Metrics::new();
    metrics.add_source(|out| {
        let labels = [("volume", "a\"b\\c\nd")];
        out.sample("odd", "A\nline.", Kind::Gauge, &labels, Value::Real(f64::NAN));
    });
    let text = metrics.prometheus_text();
    assert!(text.contains("odd{volume=\"a\\\"b\\\\c\\nd\"} NaN\n"), "{text}");
    assert!(text.contains("# HELP odd A\\nline.\n"));
}

#[derive(Debug, Default)]
struct Counting(AtomicU64);

impl SpanSink for Counting {
    fn take(&self, span: FinishedSpan) {
        assert_eq!((span.name, &*span.path), ("STAT", b"/a/b".as_slice()));
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn spans_go_out_only_while_somebody_takes_them() {
    let metrics = Metrics::new();
    let sink = Arc::new(Counting::default());
    metrics.begin().end(operation("STAT", 0));
    metrics.set_span_sink(Some(Arc::clone(&sink) as Arc<dyn SpanSink>));
    metrics.begin().end(operation("STAT", 0));
    metrics.set_span_sink(None);
    metrics.begin().end(operation("STAT", 0));
    assert_eq!(sink.0.load(Relaxed), 1);
}

#[test]
fn recording_from_many_threads_loses_nothing() {
    let metrics = Metrics::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    metrics.begin().end(operation("STAT", 0));
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..20 {
                let seen = metrics.trace(&v1::TraceRequest { limit: 0, after: 0 }).operations;
                assert!(seen.is_sorted_by_key(|found| found.sequence));
            }
        });
    });
    assert_eq!(metrics.stats().operations[0].count, 20_000);
    assert_eq!(metrics.in_flight(), 0);
}
