//! Clients in other languages, each in its own folder under `tests/clients`.
//!
//! They need packages from PyPI and npm, which `tests/clients/prepare` installs under `target/`. Where that
//! has not been done these tests say so and pass, unless `LIBRORUM_CLIENTS=required`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::Daemon;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn skip(what: &str) -> bool {
    assert!(
        std::env::var("LIBRORUM_CLIENTS").as_deref() != Ok("required"),
        "{what} is missing: run crates/daemon/tests/clients/prepare"
    );
    println!("skipped: {what} is missing: run crates/daemon/tests/clients/prepare");
    true
}

fn run(mut command: Command, daemon: &Daemon) {
    command
        .env("LIBRORUM_TCP", daemon.address().to_string())
        .env("LIBRORUM_SOCKET", daemon.socket())
        .env("LIBRORUM_TOKEN", &daemon.token)
        .env("LIBRORUM_PROTO", root().join("proto"));
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{text}");
    println!("{text}");
}

#[test]
fn python_grpcio_does_everything() {
    let python = root().join("target/clients/python/bin/python");
    if !python.exists() && skip("grpcio") {
        return;
    }
    let daemon = Daemon::start();
    let mut command = Command::new(python);
    command.arg(root().join("crates/daemon/tests/clients/python/every_operation.py"));
    run(command, &daemon);
}

#[test]
fn node_grpc_js_does_everything() {
    let modules = root().join("target/clients/node/node_modules");
    if !modules.join("@grpc/grpc-js").exists() && skip("@grpc/grpc-js") {
        return;
    }
    let daemon = Daemon::start();
    let mut command = Command::new("node");
    command
        .arg(root().join("crates/daemon/tests/clients/node/every_operation.cjs"))
        .env("NODE_PATH", modules);
    run(command, &daemon);
}
