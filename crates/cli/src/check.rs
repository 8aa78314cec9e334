//! `librorum fsck`, `scrub` and `sweep`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use librorum_fs::{CheckOptions, Finding, Fs, FsOptions, Progress};
use librorum_sys::VolumeLock;
use serde_json::{Value, json};

use crate::output::{self, ProgressLine};
use crate::status::{find_volume, holder};
use librorum_daemon::control;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum fsck /srv/volume --read-data\n\nExit codes: 0 no damage, 1 damage mended, 4 damage left, 8 could not be checked."
)]
pub(crate) struct Fsck {
    /// The volume's folder. It must not be mounted.
    volume: PathBuf,
    /// Re-hash every stored byte, too.
    #[arg(long)]
    read_data: bool,
    /// Mend what can be mended, and say what cannot.
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum scrub ~/librorum\n\nExit codes: 0 every byte is right, 1 damage or failure, 3 in use by another command."
)]
pub(crate) struct Scrub {
    /// The volume's folder, or where it is mounted.
    volume: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  librorum sweep /srv/volume --dry-run")]
pub(crate) struct Sweep {
    /// The volume's folder. It must not be mounted: a mount sweeps by itself.
    volume: PathBuf,
    /// Only say what would be deleted.
    #[arg(long)]
    dry_run: bool,
}

/// What was found, printed as it comes.
struct Report {
    json: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, finding: Finding) {
        if !self.json {
            let mended = if finding.repaired { " (mended)" } else { "" };
            println!("{}: {}{mended}", finding.invariant, finding.message);
        }
        self.findings.push(finding);
    }

    fn left(&self) -> usize {
        self.findings.iter().filter(|finding| finding.damage && !finding.repaired).count()
    }

    fn mended(&self) -> usize {
        self.findings.iter().filter(|finding| finding.damage && finding.repaired).count()
    }
}

impl Fsck {
    pub(crate) fn run(self, json: bool) -> ExitCode {
        let mut report = Report { json, findings: Vec::new() };
        let checked = self.check(&mut report);
        if let Err(error) = checked {
            output::fail(&error, json);
            return ExitCode::from(8);
        }
        let left = report.left();
        let mended = report.mended();
        if json {
            println!("{}", json!({ "findings": report.findings, "left": left, "mended": mended }));
        } else if report.findings.is_empty() {
            println!("{} is clean.", self.volume.display());
        } else {
            let leftovers = report.findings.len() - left - mended;
            println!(
                "{mended} damages mended, {left} left; {leftovers} leftovers of a crash, which the \
                 next mount gives back."
            );
        }
        ExitCode::from(match (left, mended) {
            (0, 0) => 0,
            (0, _) => 1,
            _ => 4,
        })
    }

    fn check(&self, report: &mut Report) -> anyhow::Result<()> {
        let options = FsOptions {
            read_only: !self.repair,
            accept_lost_writes: self.repair,
            holder: holder("fsck"),
            ..FsOptions::default()
        };
        let fs = Fs::open_volume(&self.volume, options)?;
        let mut line = ProgressLine::new();
        let options = CheckOptions { read_data: self.read_data, repair: self.repair };
        // What --repair mends is found again without it; the last pass tells what is left.
        let checked = fs.check(options, &mut |progress| line.show(progress), &mut |finding| {
            report.add(finding);
        });
        line.done();
        let closed = fs.shut_down();
        checked?;
        Ok(closed?)
    }
}

impl Scrub {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let volume = find_volume(&self.volume)?;
        let mut report = Report { json, findings: Vec::new() };
        let mut line = ProgressLine::new();
        let serves = |holder: librorum_sys::Holder| {
            holder.mountpoint.is_some() || holder.command == "daemon"
        };
        if VolumeLock::holder(&volume).is_some_and(serves) {
            control::ask(&volume, "scrub", &mut |key, value| match key {
                "progress" => line.show(remote_progress(value)),
                _ => report.add(remote_finding(value)),
            })
            .map_err(|failure| anyhow::anyhow!(failure.message))?;
        } else {
            let options =
                FsOptions { read_only: true, holder: holder("scrub"), ..FsOptions::default() };
            let fs = Fs::open_volume(&volume, options)?;
            fs.scrub(&mut |progress| line.show(progress), &mut |finding| report.add(finding))?;
            fs.shut_down()?;
        }
        line.done();
        if json {
            println!("{}", json!({ "findings": report.findings }));
        } else if report.findings.is_empty() {
            println!("Every stored byte is right.");
        }
        Ok(ExitCode::from(u8::from(!report.findings.is_empty())))
    }
}

fn remote_progress(value: &Value) -> Progress {
    let known = ["reading data", "checking files"];
    let phase = known.into_iter().find(|known| value["phase"] == *known).unwrap_or("working");
    let is_bytes = value["unit"] == "bytes";
    Progress {
        phase,
        done: value["done"].as_u64().unwrap_or(0),
        total: value["total"].as_u64(),
        unit: if is_bytes { "bytes" } else { "files" },
    }
}

fn remote_finding(value: &Value) -> Finding {
    let text = |key: &str| value[key].as_str().unwrap_or("?").to_owned();
    Finding {
        invariant: text("invariant"),
        message: text("message"),
        repaired: value["repaired"].as_bool().unwrap_or(false),
        damage: value["damage"].as_bool().unwrap_or(true),
    }
}

impl Sweep {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let fs = open_for_sweep(&self.volume, self.dry_run)?;
        let found = fs.sweepable()?;
        let total_bytes: u64 = found.iter().map(|(_, bytes)| bytes).sum();
        if !self.dry_run {
            fs.sweep()?;
        }
        fs.shut_down()?;
        if json {
            let segments: Vec<Value> = found
                .iter()
                .map(|(segment, bytes)| json!({ "segment": segment.to_string(), "bytes": bytes }))
                .collect();
            println!(
                "{}",
                json!({ "segments": segments, "bytes": total_bytes, "deleted": !self.dry_run })
            );
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            for (segment, bytes) in &found {
                println!("{segment}  {}", output::bytes(*bytes));
            }
        }
        let verb = if self.dry_run { "would be deleted" } else { "deleted" };
        println!("{} segments, {} {verb}", found.len(), output::bytes(total_bytes));
        Ok(ExitCode::SUCCESS)
    }
}

fn open_for_sweep(volume: &Path, dry_run: bool) -> anyhow::Result<std::sync::Arc<Fs>> {
    let options = FsOptions { read_only: dry_run, holder: holder("sweep"), ..FsOptions::default() };
    Ok(Fs::open_volume(volume, options)?)
}
