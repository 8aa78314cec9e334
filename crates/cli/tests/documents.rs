//! The documents name tests for what they promise; those tests exist.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

/// Words like `locks::…` or `editing::rename_can_refuse_and_exchange`, between backticks.
fn named_tests(text: &str) -> Vec<(String, String)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| {
            let (module, name) = word.split_once("::")?;
            let is_name = |text: &str| {
                !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            };
            let prefix = name.trim_end_matches('…');
            let fits = is_name(module) && (prefix.is_empty() || is_name(prefix));
            fits.then(|| (module.to_owned(), name.to_owned()))
        })
        .collect()
}

#[test]
fn every_test_that_the_semantics_name_exists() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(crate_dir.join("../../docs/semantics.md")).unwrap();
    let named = named_tests(&text);
    assert!(named.len() > 20, "{named:?}");
    for (module, name) in named {
        // The document explains its notation with these.
        if module == "a" {
            continue;
        }
        let dir = crate_dir.join("tests/mount");
        let of_crate = |name: &str| crate_dir.join(format!("../{name}/tests/{module}.rs"));
        let places = [
            dir.join(format!("{module}.rs")),
            dir.join(&module).join("mod.rs"),
            of_crate("fs"),
            of_crate("fuse"),
        ];
        let source = places
            .iter()
            .find_map(|path| fs::read_to_string(path).ok())
            .unwrap_or_else(|| panic!("docs/semantics.md names {module}::{name}: no such module"));
        let wanted = match name.strip_suffix('…') {
            Some(prefix) => format!("fn {prefix}"),
            None => format!("fn {name}("),
        };
        assert!(source.contains(&wanted), "docs/semantics.md names {module}::{name}: no such test");
    }
}
