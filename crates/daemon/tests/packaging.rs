//! What is packaged fits the program.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use librorum_daemon::logbook::LogBook;
use librorum_daemon::metrics::{Kind, Metrics, Operation, Transport, VolumeStatus};
use librorum_daemon::nodes::{Nodes, Options};
use librorum_daemon::otlp::Exporter;
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What an empty volume says of itself.
fn volume() -> VolumeStatus {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    Volume::format(&path, &FormatOptions::default()).unwrap();
    let fs = Fs::open_volume(&path, FsOptions::default()).unwrap();
    let status = fs.status().unwrap();
    fs.shut_down().unwrap();
    VolumeStatus { name: "default".to_owned(), status }
}

/// A daemon in which everything has happened at least once.
fn metrics() -> Metrics {
    let metrics = Metrics::new();
    let operation = Operation {
        name: "STAT",
        transport: Transport::LbruFd,
        bytes: 1,
        code: 5,
        path: b"/a",
        uid: 0,
        connection: 1,
        trace_id: 0,
        demoted_because: None,
    };
    metrics.record(&operation, Duration::from_micros(5));
    metrics.demoted("READ_OPEN", Transport::LbruFd, Transport::LbruArena, "untrusted");
    let volume = volume();
    metrics.set_volumes(move || vec![volume.clone()]);
    let book = LogBook::in_memory();
    metrics.add_source(move |out| book.expose(out));
    let nodes = Nodes::start(Options::default()).unwrap();
    metrics.add_source(move |out| {
        nodes.expose(out);
        // Nobody is online in this test.
        let labels = [("node", "b"), ("address", "b:1")];
        let value = librorum_daemon::metrics::Value::Real(0.001);
        out.sample("librorum_node_latency_seconds", "", Kind::Gauge, &labels, value);
    });
    let _exporter = Exporter::new(metrics.clone());
    metrics
}

/// The words of a query that are names of metrics.
fn names(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("librorum_") || word.starts_with("process_"))
}

#[test]
fn the_dashboard_shows_metrics_that_there_are() {
    let text =
        std::fs::read_to_string(repository().join("packaging/grafana/librorum.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let exported = metrics().prometheus_text();
    let exported: BTreeSet<&str> = exported
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect();
    let mut seen = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            for name in names(target["expr"].as_str().unwrap()) {
                assert!(exported.contains(name), "{}: {name} is not exported", panel["title"]);
                seen += 1;
            }
        }
    }
    assert!(seen > 20);
}

#[test]
fn every_metric_is_documented() {
    let text = std::fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    for family in metrics().families() {
        assert!(text.contains(&format!("`{}`", family.name)), "{} is not documented", family.name);
    }
}

#[test]
fn the_units_name_what_the_configuration_defaults_to() {
    let unit = |name: &str| {
        std::fs::read_to_string(repository().join("packaging/systemd").join(name)).unwrap()
    };
    let places = librorum_daemon::config::Places::system();
    let defaults = librorum_daemon::config::Config::defaults(&places);
    let socket = unit("librorum.socket");
    for path in [&defaults.daemon.socket, defaults.grpc.socket.as_ref().unwrap()] {
        assert!(socket.contains(&format!("ListenStream={}\n", path.display())));
    }
    let service = unit("librorum.service");
    assert!(service.contains("Type=notify\n") && service.contains("StateDirectory=librorum\n"));
    assert!(service.contains(places.config_file().to_str().unwrap()));
    // Each would give the service a mount namespace of its own, in which its mounts stay.
    for line in service.lines().filter(|line| !line.starts_with('#')) {
        for setting in ["PrivateTmp", "ProtectSystem", "ProtectHome", "PrivateDevices", "Protect"] {
            assert!(!line.starts_with(setting), "{line}");
        }
    }
}
