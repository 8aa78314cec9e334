use std::io::Read;

use librorum_rpc::proto::log;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

fn record(level: Level, message: &str) -> Record {
    Record {
        sequence: 0,
        unix_ms: 1_700_000_000_000,
        level,
        module: "librorum_fs::seal".into(),
        message: message.into(),
        thread: "main".into(),
        file: "seal.rs".into(),
        line: 7,
        fields: vec![("path".into(), "/a b".into())],
    }
}

fn texts(records: &[Arc<Record>]) -> Vec<&str> {
    records.iter().map(|record| record.message.as_str()).collect()
}

#[test]
fn a_record_has_the_fields_of_the_spans_around_it() {
    let book = LogBook::in_memory();
    let subscriber = tracing_subscriber::registry().with(book.layer());
    tracing::subscriber::with_default(subscriber, || {
        let outer = tracing::info_span!("connection", connection = 7, peer = tracing::field::Empty);
        let _outer = outer.enter();
        outer.record("peer", "uid 3");
        let inner = tracing::info_span!("request", trace_id = "abc", code = 1);
        let _inner = inner.enter();
        tracing::warn!(code = 2, "it was {}", "slow");
        tracing::debug!("not recorded");
    });
    let found = book.records(&Filter::default());
    assert_eq!(texts(&found), ["it was slow"]);
    let mut fields = found[0].fields.clone();
    fields.sort();
    let expected = [("code", "2"), ("connection", "7"), ("peer", "uid 3"), ("trace_id", "abc")];
    assert_eq!(fields, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert!(found[0].module.ends_with("logbook::tests") && found[0].line > 0);
    assert_eq!((book.count(Level::WARN), book.count(Level::DEBUG)), (1, 0));
}

#[test]
fn the_level_changes_while_it_runs() {
    let book = LogBook::in_memory();
    let subscriber = tracing_subscriber::registry().with(book.layer());
    tracing::subscriber::with_default(subscriber, || {
        tracing::debug!("one");
        book.set_filter("debug").unwrap();
        tracing::debug!("two");
        book.set_filter("info,librorum_daemon::logbook=error").unwrap();
        tracing::warn!("three");
        tracing::error!("four");
        assert!(book.set_filter("loud").is_err());
        tracing::error!("five");
    });
    assert_eq!(texts(&book.records(&Filter::default())), ["two", "four", "five"]);
}

#[test]
fn memory_is_bounded_by_count_and_bytes() {
    let book = LogBook::in_memory();
    for number in 0..RECORDS_MAX + 5 {
        book.push(record(Level::INFO, &number.to_string()));
    }
    let found = book.records(&Filter::default());
    assert_eq!((found.len(), found[0].sequence), (RECORDS_MAX, 6));
    let long = "é".repeat(TEXT_BYTES_MAX);
    for _ in 0..2_000 {
        book.push(record(Level::INFO, &long));
    }
    let state = book.inner.lock_book();
    assert!(state.bytes <= BYTES_MAX && state.records.len() < 2_000);
    let bytes: usize = state.records.iter().map(|record| record.bytes()).sum();
    assert_eq!(state.bytes, bytes);
}

#[test]
fn queries_select() {
    let book = LogBook::in_memory();
    book.push(record(Level::ERROR, "The disk is full"));
    book.push(Record { module: "other".into(), ..record(Level::WARN, "odd") });
    book.push(record(Level::DEBUG, "details"));
    let ask = |request: v1::LogsRequest| {
        let found = book.logs(&request).unwrap().records;
        found.iter().map(|record| record.sequence).collect::<Vec<_>>()
    };
    assert_eq!(ask(v1::LogsRequest::default()), [1, 2, 3]);
    assert_eq!(ask(v1::LogsRequest { level: "warn".into(), ..Default::default() }), [1, 2]);
    assert_eq!(ask(v1::LogsRequest { module: "fs::seal".into(), ..Default::default() }), [1, 3]);
    assert_eq!(ask(v1::LogsRequest { search: "DISK".into(), ..Default::default() }), [1]);
    assert_eq!(ask(v1::LogsRequest { after: 1, limit: 1, ..Default::default() }), [3]);
    let wrong = v1::LogsRequest { level: "loud".into(), ..Default::default() };
    assert!(book.logs(&wrong).unwrap_err().message.contains("loud"));
}

#[test]
fn who_waits_gets_the_next_record_or_an_empty_answer_in_time() {
    let book = LogBook::in_memory();
    book.push(record(Level::ERROR, "old"));
    let request = v1::LogsRequest { after: 1, wait_ms: 30_000, ..Default::default() };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| book.logs(&request).unwrap());
        clock::sleep(Duration::from_millis(20));
        book.push(record(Level::INFO, "new"));
        assert_eq!(waiting.join().unwrap().records[0].message, "new");
    });
    let begun = clock::monotonic();
    let request = v1::LogsRequest { after: 2, wait_ms: 30, ..Default::default() };
    assert!(book.logs(&request).unwrap().records.is_empty());
    let cancelled = AtomicBool::new(true);
    let request = v1::LogsRequest { after: 2, wait_ms: 30_000, ..Default::default() };
    assert!(book.logs_unless(&request, &cancelled).unwrap().records.is_empty());
    assert!(clock::monotonic() - begun < Duration::from_secs(10));
}

#[test]
fn the_file_has_every_record_and_is_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("librorum.log");
    let book = LogBook::with_file(FileOptions { path: path.clone(), bytes_max: 2_000 }).unwrap();
    for number in 0..40 {
        book.push(record(Level::INFO, &format!("number {number}\n")));
        if number % 7 == 0 {
            book.flush(Duration::from_secs(10));
        }
    }
    book.flush(Duration::from_secs(10));
    let mut numbers = Vec::new();
    for name in ["librorum.log.2", "librorum.log.1", "librorum.log"] {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text.len() <= 2_000, "{name}");
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["level"], "info");
            numbers.push(value["sequence"].as_u64().unwrap());
        }
    }
    assert_eq!(*numbers.last().unwrap(), 40);
    assert!(numbers.is_sorted_by(|a, b| a + 1 == *b) && numbers.len() > 10);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    // What is left is written when the last handle goes.
    book.push(record(Level::INFO, "the last"));
    drop(book);
    assert!(std::fs::read_to_string(&path).unwrap().contains("the last"));
}

#[test]
fn a_file_that_fails_is_told_once_and_hurts_nobody() {
    let Ok(full) = std::fs::OpenOptions::new().append(true).open("/dev/full") else { return };
    drop(full);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let book = LogBook::with_file(FileOptions::new(path)).unwrap();
    book.push(record(Level::INFO, "lost"));
    let request = v1::LogsRequest { after: 1, wait_ms: 10_000, ..Default::default() };
    let told = book.logs(&request).unwrap().records;
    assert!(told[0].message.contains("cannot be written"), "{told:?}");
    book.push(record(Level::INFO, "also lost"));
    clock::sleep(Duration::from_millis(50));
    assert_eq!(book.newest(), 3);
    assert!(book.file_failures() >= 1);
    assert!(LogBook::with_file(FileOptions::new(dir.path().join("no/such"))).is_err());
}

#[test]
fn legacy_clients_get_pages_and_sums() {
    let book = LogBook::in_memory();
    for (seconds, level) in [(0, Level::INFO), (10, Level::WARN), (7_200, Level::ERROR)] {
        let message = format!("at {seconds}");
        book.push(Record { unix_ms: seconds * 1_000 + 500, ..record(level, &message) });
    }
    let newest = book.get(&log::GetLogsRequest { limit: 2, reverse: true, ..Default::default() });
    let newest = newest.unwrap();
    assert_eq!((newest.total_count, newest.has_more), (3, true));
    assert_eq!(newest.logs[0].message, "at 7200");
    assert_eq!(newest.logs[0].level(), log::LogLevel::Error);
    let between = log::GetLogsRequest { start_time: 10, end_time: 10, ..Default::default() };
    assert_eq!(book.get(&between).unwrap().total_count, 1);
    let stats = book.stats(&log::GetLogStatsRequest::default()).unwrap();
    assert_eq!((stats.total_logs, stats.error_count, stats.warn_count), (3, 1, 1));
    let hours: Vec<_> = stats.trends.iter().map(|hour| (hour.timestamp, hour.log_count)).collect();
    assert_eq!(hours, [(0, 2), (7_200, 1)]);
    assert!(book.clear_request(&log::ClearLogsRequest::default()).is_err());
    let before = log::ClearLogsRequest { clear_all: false, before_timestamp: 100 };
    assert_eq!(book.clear_request(&before).unwrap().cleared_count, 2);
    assert_eq!(texts(&book.records(&Filter::default())), ["at 7200"]);
}

#[test]
fn exports_can_be_read_again() {
    let book = LogBook::in_memory();
    book.push(record(Level::WARN, "a \"quoted\", split\nline"));
    let export = |format: log::ExportFormat, compress| {
        let request =
            log::ExportLogsRequest { format: format.into(), compress, ..Default::default() };
        book.export(&request).unwrap()
    };
    let json = export(log::ExportFormat::Json, false);
    let value: serde_json::Value = serde_json::from_slice(&json.data).unwrap();
    assert_eq!(value[0]["message"], "a \"quoted\", split\nline");
    assert_eq!(json.filename, "librorum.json");
    let csv = export(log::ExportFormat::Csv, false);
    let text = std::str::from_utf8(&csv.data).unwrap();
    assert!(text.contains(",\"a \"\"quoted\"\", split\nline\","), "{text}");
    assert!(text.contains("1,2023-11-14T22:13:20.000Z,warn,"), "{text}");
    let plain = export(log::ExportFormat::Plain, false);
    assert_eq!(plain.data.iter().filter(|&&byte| byte == b'\n').count(), 1);
    let packed = export(log::ExportFormat::Csv, true);
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed.data[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!((&unpacked[..], packed.mime_type.as_str()), (&csv.data[..], "application/gzip"));
    let unknown = log::ExportLogsRequest { format: 9, ..Default::default() };
    assert!(book.export(&unknown).is_err());
}
