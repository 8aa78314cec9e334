//! `librorum top`: what a daemon is doing.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use librorum_rpc::proto::v1;
use serde_json::{Value, json};

use crate::output::bytes;
use crate::remote::{self, Intent, To};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum top\n  librorum top --once --json\n\nEvery two seconds on a terminal, until interrupted; once elsewhere. Rates are those since the view before, the first one's since the start. Exit codes: 0 done, 1 failed, 4 nobody answers."
)]
pub(crate) struct Top {
    /// Show it once and end.
    #[arg(long)]
    once: bool,
    /// Seconds between two views.
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    #[command(flatten)]
    to: To,
}

impl Top {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Read, |remote| {
            let live = std::io::stdout().is_terminal() && !self.once && !json;
            let mut before: Option<v1::StatsResponse> = None;
            loop {
                let stats = remote.client.stats(&v1::StatsRequest {})?;
                if json {
                    println!("{}", stats_json(&stats));
                    return Ok(ExitCode::SUCCESS);
                }
                let view = view(&remote.name, &stats, before.as_ref());
                let mut out = std::io::stdout().lock();
                if live {
                    // Home, and clear what is below: no flicker.
                    write!(out, "\x1b[H\x1b[J{view}")?;
                } else {
                    write!(out, "{view}")?;
                }
                out.flush()?;
                drop(out);
                if !live {
                    return Ok(ExitCode::SUCCESS);
                }
                before = Some(stats);
                librorum_sys::clock::sleep(Duration::from_secs(self.every));
            }
        })
    }
}

fn per_second(count: u64, milliseconds: u64) -> u64 {
    count.saturating_mul(1000) / milliseconds.max(1)
}

fn view(name: &str, stats: &v1::StatsResponse, before: Option<&v1::StatsResponse>) -> String {
    let mut out = String::new();
    let elapsed =
        stats.uptime_ms - before.map_or(0, |before| before.uptime_ms.min(stats.uptime_ms));
    let old: HashMap<(&str, &str), &v1::OperationStats> = before
        .iter()
        .flat_map(|before| &before.operations)
        .map(|line| ((line.operation.as_str(), line.transport.as_str()), line))
        .collect();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        "{name}: up {} s, {} resident, {} connections ({} in all), {} under way, {} uploads",
        stats.uptime_ms / 1000,
        bytes(stats.resident_bytes),
        stats.connections,
        stats.connections_total,
        stats.requests_in_flight,
        stats.uploads_open
    ));
    line(format!(
        "lent {} descriptors, {} moved by clients themselves, {} waits for credit",
        stats.lent_descriptors,
        bytes(stats.copies_avoided_bytes),
        stats.credits_stalled
    ));
    line(String::new());
    line(format!(
        "{:<16} {:<12} {:>9} {:>11} {:>10} {:>10} {:>10} {:>7}",
        "operation", "by", "per s", "bytes/s", "p50 us", "p99 us", "in all", "errors"
    ));
    for operation in &stats.operations {
        let old = old.get(&(operation.operation.as_str(), operation.transport.as_str()));
        let since = |now: u64, then: Option<u64>| now.saturating_sub(then.unwrap_or(0));
        line(format!(
            "{:<16} {:<12} {:>9} {:>11} {:>10} {:>10} {:>10} {:>7}",
            operation.operation,
            operation.transport,
            per_second(since(operation.count, old.map(|old| old.count)), elapsed),
            bytes(per_second(since(operation.bytes, old.map(|old| old.bytes)), elapsed)),
            operation.p50_ns / 1000,
            operation.p99_ns / 1000,
            operation.count,
            operation.error_count
        ));
    }
    for volume in volumes(stats) {
        let size = |key: &str| bytes(volume[key].as_u64().unwrap_or(0));
        let background = &volume["background"];
        line(format!(
            "\nvolume {}: {} logical, {} stored, {} staged; {} files wait for sealing, {} sealed",
            volume["name"].as_str().unwrap_or("?"),
            size("logical_bytes"),
            size("stored_bytes"),
            size("staged_bytes"),
            background["waiting_file_count"],
            background["sealed_file_count"]
        ));
        if let Some(cache) = volume.get("cache").and_then(Value::as_object) {
            let mut text = String::from("cache ");
            for (key, value) in cache {
                text += &format!(" {key} {value}");
            }
            line(text);
        }
    }
    if !stats.demotions.is_empty() {
        line("\ndemotions".to_owned());
        for demotion in &stats.demotions {
            line(format!(
                "{:>9} {} from {} to {}: {}",
                demotion.count, demotion.operation, demotion.from, demotion.to, demotion.reason
            ));
        }
    }
    out
}

fn volumes(stats: &v1::StatsResponse) -> Vec<Value> {
    stats.volumes.iter().filter_map(|text| serde_json::from_str(text).ok()).collect()
}

pub(crate) fn stats_json(stats: &v1::StatsResponse) -> Value {
    let operations: Vec<Value> = stats
        .operations
        .iter()
        .map(|line| {
            json!({
                "operation": line.operation, "transport": line.transport, "count": line.count,
                "error_count": line.error_count, "bytes": line.bytes, "total_ns": line.total_ns,
                "p50_ns": line.p50_ns, "p99_ns": line.p99_ns, "max_ns": line.max_ns,
            })
        })
        .collect();
    let demotions: Vec<Value> = stats
        .demotions
        .iter()
        .map(|line| {
            json!({
                "operation": line.operation, "from": line.from, "to": line.to,
                "reason": line.reason, "count": line.count,
            })
        })
        .collect();
    json!({
        "operations": operations,
        "demotions": demotions,
        "uptime_ms": stats.uptime_ms,
        "connections": stats.connections,
        "connections_total": stats.connections_total,
        "requests_in_flight": stats.requests_in_flight,
        "credits_stalled": stats.credits_stalled,
        "lent_descriptors": stats.lent_descriptors,
        "copies_avoided_bytes": stats.copies_avoided_bytes,
        "uploads_open": stats.uploads_open,
        "resident_bytes": stats.resident_bytes,
        "volumes": volumes(stats),
    })
}
