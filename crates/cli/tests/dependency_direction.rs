//! Who may depend on whom: the table of design §3, over what `cargo metadata` says.
//!
//! A crate that is not in the table fails, as does a dependency that is not: the shape of the house
//! changes here first, in the open. Dependencies of tests and examples are free, but for those that
//! would make a circle, which cargo itself refuses.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Package → the packages of this workspace that it may depend on.
const TABLE: &[(&str, &[&str])] = &[
    ("librorum-format", &[]),
    // Beyond the table of design §3: the outside world speaks of ids, times and sizes in the
    // vocabulary that `format` defines; it is pure, so this draws in nothing else.
    ("librorum-sys", &["format"]),
    ("librorum-store", &["format", "sys"]),
    ("librorum-meta", &["format", "sys"]),
    ("librorum-fs", &["format", "sys", "store", "meta"]),
    ("librorum-manifest", &["format", "store", "fdu"]),
    ("fdu", &["sys"]),
    ("librorum-rpc", &["format", "sys"]),
    // The border to other languages: it translates `rpc`'s client and decides nothing.
    ("librorum-client-c", &["format", "rpc"]),
    // Beyond the table: `fs` answers in `meta`'s types (inode, dentry, kind), which the kernel's
    // protocol translates; and the clock is `sys`'s.
    ("librorum-fuse", &["format", "fs", "meta", "sys"]),
    (
        "librorum-daemon",
        &["format", "sys", "store", "meta", "fs", "manifest", "fdu", "rpc", "fuse"],
    ),
    (
        "librorum",
        &["format", "sys", "store", "meta", "fs", "manifest", "fdu", "rpc", "fuse", "daemon"],
    ),
    (
        "librorum-sim",
        &["format", "sys", "store", "meta", "fs", "manifest", "fdu", "rpc", "fuse", "daemon"],
    ),
];

/// The workspace's packages, and which of the others each depends on to be built.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let own: BTreeSet<String> = packages.iter().map(name).collect();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let built = dependencies.iter().filter(|dependency| dependency["kind"] != "dev");
            (name(package), built.map(name).filter(|name| own.contains(name)).collect())
        })
        .collect()
}

#[test]
fn dependencies_point_down() {
    let table: BTreeMap<&str, &[&str]> = TABLE.iter().copied().collect();
    let found = dependencies();
    assert!(found.len() >= 8, "cargo metadata shows {} packages", found.len());
    for (package, dependencies) in &found {
        let allowed = table
            .get(package.as_str())
            .unwrap_or_else(|| panic!("{package} has no line in the table of {}", file!()));
        for dependency in dependencies {
            let short = dependency.strip_prefix("librorum-").unwrap_or(dependency);
            assert!(allowed.contains(&short), "{package} may not depend on {dependency}");
        }
    }
}

/// The rule behind the table's most important line: only `fs` knows that bytes become durable
/// before the transaction that names them.
#[test]
fn store_and_meta_never_see_each_other() {
    let found = dependencies();
    for (one, other) in [("librorum-store", "librorum-meta"), ("librorum-meta", "librorum-store")] {
        let mut waiting = vec![one.to_owned()];
        let mut seen = BTreeSet::new();
        while let Some(package) = waiting.pop() {
            assert_ne!(package, other, "{one} reaches {other}");
            if seen.insert(package.clone()) {
                waiting.extend(found[&package].iter().cloned());
            }
        }
    }
}
