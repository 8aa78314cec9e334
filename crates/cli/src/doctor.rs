//! `librorum doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use librorum_daemon::doctor::{Names, Sources, Verdict, checks, collect};
use librorum_rpc::proto::v1;
use serde_json::json;

use crate::daemon::ConfigArguments;
use crate::remote::{Intent, Place, To};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum doctor\n  librorum doctor --collect bundle.tar.zst\n\nExit codes: 0 nothing fails, 1 something does."
)]
pub(crate) struct Doctor {
    /// Write a bundle for who is asked for help: no contents and no secrets, and no names of files.
    #[arg(long, value_name = "FILE")]
    collect: Option<PathBuf>,
    /// Names of files may be in the bundle.
    #[arg(long, requires = "collect")]
    names: bool,
    #[command(flatten)]
    config: ConfigArguments,
    #[command(flatten)]
    to: To,
}

impl Doctor {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let sources = self.sources()?;
        let found = checks(&sources);
        let fails = found.iter().any(|check| check.verdict == Verdict::Fail);
        let names = if self.names { Names::Told } else { Names::LeftOut };
        let bundle = match &self.collect {
            Some(path) => Some((path, collect(path, &sources, names)?)),
            None => None,
        };
        if json {
            let bundle = bundle.map(|(path, included)| {
                let files: Vec<_> = included
                    .iter()
                    .map(|file| json!({ "name": file.name, "about": file.about, "bytes": file.bytes }))
                    .collect();
                json!({ "path": path, "files": files })
            });
            println!("{}", json!({ "checks": found, "bundle": bundle }));
        } else {
            for check in &found {
                println!("{:<5} {:<20} {}", check.verdict.name(), check.name, check.found);
                if !check.advice.is_empty() {
                    println!("{:<26} -> {}", "", check.advice);
                }
            }
            if let Some((path, included)) = bundle {
                println!("\n{} holds:", path.display());
                for file in included {
                    println!("{:>9} bytes  {:<20} {}", file.bytes, file.name, file.about);
                }
            }
        }
        Ok(ExitCode::from(u8::from(fails)))
    }

    fn sources(&self) -> anyhow::Result<Sources> {
        let config = self.config.origin()?.load();
        let mut sources = Sources::default();
        let place = match (&self.to.to, &config) {
            (None, Ok(config)) => Place::Socket(config.daemon.socket.clone()),
            _ => self.to.place()?,
        };
        sources.config = Some(config.map_err(|error| error.to_string()));
        let mut to = self.to.clone();
        if let Place::Socket(path) = &place {
            let mut target = std::ffi::OsString::from("unix:");
            target.push(path);
            to.to = Some(target);
        }
        match to.connect(Intent::Read) {
            Err(error) => sources.unreachable = Some(format!("{error:#}")),
            Ok(remote) => {
                let client = &remote.client;
                // Who may not ask for one of these gets a bundle without it.
                sources.status = client.status(&v1::StatusRequest::default()).ok();
                let stats = client.stats(&v1::StatsRequest {}).ok();
                sources.metrics = stats.map(|stats| crate::top::stats_json(&stats).to_string());
                sources.logs = client.logs(&v1::LogsRequest::default()).ok();
                sources.nodes = client.nodes(&v1::NodesRequest::default()).ok();
                remote.close()?;
            }
        }
        Ok(sources)
    }
}
