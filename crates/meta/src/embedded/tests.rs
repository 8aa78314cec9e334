use tempfile::TempDir;

use super::{Embedded, EmbeddedOptions};
use crate::Meta;
use crate::conformance::Volume;

struct Local {
    dir: TempDir,
    meta: Option<Embedded>,
}

fn options() -> EmbeddedOptions {
    EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() }
}

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let meta = Some(Embedded::open(dir.path(), &options()).unwrap());
        Self { dir, meta }
    }
}

impl Volume for Local {
    fn meta(&self) -> &dyn Meta {
        self.meta.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.meta = None;
        self.meta = Some(Embedded::open(self.dir.path(), &options()).unwrap());
    }
}

mod conformance {
    use super::Local;

    meta_conformance!(Local::new());
}
