//! `librorum bench DIR`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    dir: PathBuf,
}

impl Bench {
    pub(crate) fn run(self, _json: bool) -> anyhow::Result<ExitCode> {
        anyhow::bail!("{}: under construction", self.dir.display())
    }
}
