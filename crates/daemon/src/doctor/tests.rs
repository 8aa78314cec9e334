use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::Places;

fn unpack(path: &Path) -> HashMap<String, String> {
    let file = std::fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(zstd::Decoder::new(file).unwrap());
    let mut files = HashMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(name.strip_prefix("librorum-doctor/").unwrap().to_owned(), text);
    }
    files
}

fn sources(dir: &Path) -> Sources {
    let mut config = Config::defaults(&Places {
        runtime: dir.join("run"),
        state: dir.into(),
        config: dir.into(),
    });
    config.metrics.otlp_endpoint = Some("http://c:4317".into());
    config.metrics.otlp_headers = vec![("api-key".into(), "hunter2".into())];
    let record = v1::LogRecord {
        sequence: 1,
        level: "error".into(),
        message: "cannot read /home/ada/diary.txt".into(),
        fields: [("path".into(), "diary.txt".into()), ("offset".into(), "4096".into())].into(),
        line: 77,
        ..v1::LogRecord::default()
    };
    Sources {
        config: Some(Ok(config)),
        status: Some(v1::StatusResponse {
            pid: std::process::id(),
            volumes: vec![format!("{{\"volume\": \"{}\"}}", dir.display())],
            ..v1::StatusResponse::default()
        }),
        metrics: Some("librorum_connections 3\n".into()),
        logs: Some(v1::LogsResponse { records: vec![record] }),
        nodes: Some(v1::NodesResponse::default()),
        ..Sources::default()
    }
}

#[test]
fn a_bundle_has_what_helps_and_no_names_or_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle.tar.zst");
    let included = collect(&path, &sources(dir.path()), Names::LeftOut).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let files = unpack(&path);
    assert_eq!(files.len(), included.len());
    for Included { name, .. } in &included[1..] {
        assert!(files["README.txt"].contains(name), "{name} is not in the list");
    }
    let all: String = files.values().cloned().collect();
    for secret in ["hunter2", "diary", "/home/ada"] {
        assert!(!all.contains(secret), "{secret}");
    }
    assert!(files["log.jsonl"].contains("4096") && files["log.jsonl"].contains("\"line\":77"));
    assert!(files["config.toml"].contains("[daemon]"));
    assert!(files["limits.txt"].contains("Max open files"));
    assert!(files["disk.txt"].contains(&dir.path().display().to_string()));
    assert!(files["kernel.txt"].contains("Linux"));
    // Never over something else.
    assert!(collect(&path, &sources(dir.path()), Names::LeftOut).is_err());
    let told = dir.path().join("told.tar.zst");
    collect(&told, &sources(dir.path()), Names::Told).unwrap();
    assert!(unpack(&told)["log.jsonl"].contains("diary.txt"));
}

#[test]
fn what_is_wrong_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = sources(dir.path());
    let verdict = |sources: &Sources, name: &str| {
        let all = checks(sources);
        let named = all.iter().filter(|check| check.name == name);
        named.map(|check| check.verdict).max()
    };
    assert_eq!(verdict(&sources, "daemon"), Some(Verdict::Ok));
    assert_eq!(verdict(&sources, "log"), Some(Verdict::Warn));
    let Some(Ok(config)) = &sources.config else { unreachable!("set above") };
    let tokens = config.grpc.token_file.clone().unwrap();
    std::fs::write(&tokens, "token").unwrap();
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(verdict(&sources, "secret"), Some(Verdict::Fail));
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(verdict(&sources, "secret"), Some(Verdict::Ok));

    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(verdict(&sources, "socket"), Some(Verdict::Fail));
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).unwrap();
    let _sockets = ["librorum.sock", "grpc.sock"]
        .map(|name| std::os::unix::net::UnixListener::bind(run.join(name)).unwrap());
    assert_eq!(verdict(&sources, "socket"), Some(Verdict::Ok));

    sources.clocks_ahead = vec![("b".into(), 1), ("c".into(), -30)];
    assert_eq!(verdict(&sources, "clock"), Some(Verdict::Warn));
    sources.clocks_ahead.push(("d".into(), 4_000));
    assert_eq!(verdict(&sources, "clock"), Some(Verdict::Fail));
    sources.config = Some(Err("librorum.toml:3: odd".into()));
    sources.status = None;
    sources.unreachable = Some("nobody listens".into());
    assert_eq!(verdict(&sources, "configuration"), Some(Verdict::Fail));
    assert_eq!(verdict(&sources, "daemon"), Some(Verdict::Fail));
    assert!(checks(&sources).iter().all(|c| c.verdict != Verdict::Fail || !c.advice.is_empty()));
}

#[test]
fn disks_and_kernels_are_judged() {
    let disk = |available_bytes| check::Disk {
        path: "/v".into(),
        total_bytes: 1000 << 30,
        available_bytes,
        inodes_available: 0,
        inodes_total: 0,
    };
    assert_eq!(check::disk(&disk(100 << 30)).verdict, Verdict::Ok);
    assert_eq!(check::disk(&disk(20 << 30)).verdict, Verdict::Warn);
    assert_eq!(check::disk(&disk(1 << 30)).verdict, Verdict::Fail);
    assert_eq!(check::version("6.18.3-amd64"), Some((6, 18)));
    assert_eq!(check::version("odd"), None);
}
