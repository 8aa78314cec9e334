//! The C interface from outside: its header, a program in C, one in Python, against a daemon's server.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

#[path = "../../../crates/daemon/tests/lbru/harness.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::World;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the library is: cargo puts it beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let beside = test.parent().unwrap();
    let path = beside.join("liblibrorum_client.so");
    assert!(path.exists(), "{} is not there", path.display());
    beside.to_owned()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

fn everything() -> PathBuf {
    here().join("tests/everything.c")
}

/// Compiles a program in C, or as C++, against the header and the library.
fn compile(world: &World, source: &Path, name: &str, compiler: &[&str]) -> PathBuf {
    let program = world.dir.path().join(name);
    run(Command::new(compiler[0])
        .args(&compiler[1..])
        .args(["-Wall", "-Wextra", "-Werror", "-g", "-I"])
        .arg(here().join("include"))
        .arg(source)
        .args(["-x", "none", "-pthread", "-o"])
        .arg(&program)
        .arg("-L")
        .arg(library())
        .arg("-llibrorum_client")
        .arg(format!("-Wl,-rpath,{}", library().display())));
    program
}

#[test]
fn the_header_is_what_the_sources_say() {
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in ["error", "types", "client", "listing", "file", "upload"] {
        builder = builder.with_src(here().join(format!("src/{source}.rs")));
    }
    let mut written = Vec::new();
    builder.generate().unwrap().write(&mut written);
    let written = String::from_utf8(written).unwrap();
    let path = here().join("include/librorum.h");
    if std::env::var_os("LIBRORUM_WRITE_HEADER").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == written,
        "include/librorum.h is old: run this test with LIBRORUM_WRITE_HEADER=1 and look at the change"
    );
}

/// The example of the README, with this server's socket in it.
#[test]
fn the_example_works() {
    let world = World::new();
    let readme = std::fs::read_to_string(here().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```c\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    assert!(example.contains("/run/librorum/socket"));
    let source = world.dir.path().join("example.c");
    let socket = world.socket.to_str().unwrap();
    std::fs::write(&source, example.replace("/run/librorum/socket", socket)).unwrap();
    let program = compile(&world, &source, "example", &["cc", "-std=c11", "-pedantic"]);
    assert_eq!(run(&mut Command::new(program)), "words\n");
    world.wait_until_idle();
}

#[test]
fn a_program_in_c_does_everything() {
    let world = World::new();
    let program = compile(&world, &everything(), "c", &["cc", "-std=c11", "-pedantic"]);
    run(Command::new(program).arg(&world.socket));
    world.wait_until_idle();
}

#[test]
fn a_program_in_cplusplus_does_everything() {
    let world = World::new();
    let program = compile(&world, &everything(), "cplusplus", &["c++", "-std=c++17", "-x", "c++"]);
    run(Command::new(program).arg(&world.socket));
    world.wait_until_idle();
}

#[test]
fn valgrind_finds_nothing() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: there is no valgrind");
        return;
    }
    let world = World::new();
    let program = compile(&world, &everything(), "c", &["cc", "-std=c11"]);
    run(Command::new("valgrind")
        .args(["--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite", "-q"])
        .arg(program)
        .arg(&world.socket));
    world.wait_until_idle();
}

#[test]
fn python_reaches_it_by_ctypes() {
    let world = World::new();
    run(Command::new("python3")
        .arg(here().join("tests/by_ctypes.py"))
        .arg(library().join("liblibrorum_client.so"))
        .arg(&world.socket));
    world.wait_until_idle();
}
