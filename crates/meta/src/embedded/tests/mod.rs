//! The embedded engine: the conformance suite, and what only this engine can be asked.

mod crash;
mod damage;
mod full_disk;
mod order;

use std::path::Path;

use tempfile::TempDir;

use super::{Embedded, EmbeddedOptions};
use crate::Meta;
use crate::conformance::Volume;

struct Local {
    dir: TempDir,
    meta: Option<Embedded>,
}

/// The disk below the tests is whatever it is.
fn options() -> EmbeddedOptions {
    EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() }
}

fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, &options()).unwrap()
}

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let meta = Some(open(dir.path()));
        Self { dir, meta }
    }
}

impl Volume for Local {
    fn meta(&self) -> &dyn Meta {
        self.meta.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.meta = None;
        self.meta = Some(open(self.dir.path()));
    }
}

mod conformance {
    use super::Local;

    meta_conformance!(Local::new());
}

fn cases(default: u32) -> u32 {
    let text = std::env::var("PROPTEST_CASES").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_operations_match_the_model() {
    crate::conformance::model::random_operations_match_the_model(cases(48), Local::new);
}
