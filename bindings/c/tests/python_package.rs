//! The wheel of `bindings/python` against a daemon's server. Building it needs PyPI, so this is done only
//! where `LIBRORUM_PYTHON=required` asks for it, as `bindings/python/test` does.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

#[path = "../../../crates/daemon/tests/lbru/harness.rs"]
mod harness;

use std::path::Path;
use std::process::Command;

use harness::World;

#[test]
fn the_wheel_does_everything() {
    if std::env::var("LIBRORUM_PYTHON").as_deref() != Ok("required") {
        println!("skipped: bindings/python/test runs it");
        return;
    }
    let world = World::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/test");
    let output = Command::new(script).arg(&world.socket).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{text}");
    println!("{text}");
    world.wait_until_idle();
}
