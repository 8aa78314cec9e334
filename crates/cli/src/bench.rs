//! `librorum bench DIR`: a mounted directory against the native one beside it, in one run.
//!
//! Every case runs on both in turn, round by round, so that whatever else the machine does hits both
//! alike; the ratio is that of the medians. The native directory is on the disk that holds the
//! volume.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use librorum_daemon::mounts::table as mountinfo;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum bench ~/librorum\n\nRatios are native time / mounted time: 1.00 is as fast as the disk. Green: the goal is met; yellow: within a fifth of it; red: below that. Exit code 0 whatever they are."
)]
pub(crate) struct Bench {
    /// A directory in a mounted volume. The native directory is made beside the volume.
    dir: PathBuf,
    /// The native directory to compare with, instead.
    #[arg(long, value_name = "DIR")]
    native: Option<PathBuf>,
    /// How often each case runs on each side.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: u32,
    /// How large the file of the streaming cases is, in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..65536))]
    size: u32,
}

/// A case: what it does in a directory, how many operations that is, and the goal of its ratio.
struct Case {
    name: &'static str,
    operation_count: u64,
    goal: f64,
    /// How the file of the streaming cases is open meanwhile, on both sides: what opening costs is
    /// not what these cases are about, and a file that is open for writing is not sealed.
    open: Open,
    work: fn(&Scratch, &File) -> anyhow::Result<()>,
}

#[derive(Clone, Copy)]
enum Open {
    Read,
    Write,
}

/// A directory that is removed with what is in it.
struct Scratch {
    dir: PathBuf,
    size_mib: usize,
    offsets: Vec<u64>,
    data: Vec<u8>,
}

impl Scratch {
    fn make(parent: &Path, size_mib: u32) -> anyhow::Result<Self> {
        let dir = parent.join(format!(".librorum-bench-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let size_mib = usize::try_from(size_mib)?;
        // A fixed multiplicative walk over the pages: the same offsets on both sides.
        let page_count = (size_mib * MIB / PAGE) as u64;
        let offsets = (0..RANDOM_COUNT)
            .map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % page_count * 4096)
            .collect();
        let mut state = 0x1234_5678_9abc_def1_u64;
        let mut data = Vec::with_capacity(MIB);
        while data.len() < MIB {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend_from_slice(&state.to_le_bytes());
        }
        Ok(Self { dir, size_mib, offsets, data })
    }

    fn stream(&self) -> PathBuf {
        self.dir.join("stream")
    }

    fn open_stream(&self, open: Open) -> anyhow::Result<File> {
        let write = matches!(open, Open::Write);
        let path = self.stream();
        OpenOptions::new()
            .read(true)
            .write(write)
            .create(write)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("librorum: {} is left behind: {error}", self.dir.display());
        }
    }
}

const RANDOM_COUNT: u64 = 4096;
const SMALL_COUNT: usize = 1000;

fn cases(size_mib: u32) -> Vec<Case> {
    let size = u64::from(size_mib);
    let case =
        |name, operation_count, goal, open, work| Case { name, operation_count, goal, open, work };
    vec![
        case("write 1 MiB, sequential", size, 0.95, Open::Write, write_stream),
        case("read 1 MiB, sequential", size, 0.95, Open::Read, read_stream),
        case("overwrite 4 KiB, sequential", RANDOM_COUNT, 0.90, Open::Write, overwrite_pages),
        case("read 4 KiB, random", RANDOM_COUNT, 0.90, Open::Read, read_random),
        case("write 4 KiB, random", RANDOM_COUNT, 0.90, Open::Write, write_random),
        case("read by mmap, a page", size * 256, 0.97, Open::Read, map_stream),
        case("stat, warm", 5000, 1.0 / 1.1, Open::Read, stat_stream),
        case("append 4 KiB and fsync", 50, 1.0 / 1.5, Open::Read, append_and_sync),
        // No goal as a ratio; the green line is half of native.
        case("create, write 4 KiB, close", SMALL_COUNT as u64, 0.5, Open::Read, small_files),
    ]
}

fn write_stream(scratch: &Scratch, file: &File) -> anyhow::Result<()> {
    for index in 0..scratch.size_mib {
        file.write_all_at(&scratch.data, (index * MIB) as u64)?;
    }
    Ok(())
}

fn read_stream(scratch: &Scratch, file: &File) -> anyhow::Result<()> {
    let mut buffer = vec![0; MIB];
    for index in 0..scratch.size_mib {
        file.read_exact_at(&mut buffer, (index * MIB) as u64)?;
    }
    Ok(())
}

fn overwrite_pages(scratch: &Scratch, file: &File) -> anyhow::Result<()> {
    for index in 0..RANDOM_COUNT {
        file.write_all_at(&scratch.data[..PAGE], index * 4096)?;
    }
    Ok(())
}

fn read_random(scratch: &Scratch, file: &File) -> anyhow::Result<()> {
    let mut buffer = [0; PAGE];
    for &offset in &scratch.offsets {
        file.read_exact_at(&mut buffer, offset)?;
    }
    Ok(())
}

fn write_random(scratch: &Scratch, file: &File) -> anyhow::Result<()> {
    for &offset in &scratch.offsets {
        file.write_all_at(&scratch.data[..PAGE], offset)?;
    }
    Ok(())
}

fn map_stream(scratch: &Scratch, file: &File) -> anyhow::Result<()> {
    librorum_sys::mapped::touch_pages(file, scratch.size_mib * MIB)?;
    Ok(())
}

fn stat_stream(scratch: &Scratch, _stream: &File) -> anyhow::Result<()> {
    let path = scratch.stream();
    for _ in 0..5000 {
        std::fs::metadata(&path)?;
    }
    Ok(())
}

fn append_and_sync(scratch: &Scratch, _stream: &File) -> anyhow::Result<()> {
    use std::io::Write;
    let path = scratch.dir.join("log");
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    for _ in 0..50 {
        file.write_all(&scratch.data[..PAGE])?;
        rustix::fs::fsync(&file)?;
    }
    Ok(())
}

fn small_files(scratch: &Scratch, _stream: &File) -> anyhow::Result<()> {
    let round = std::fs::read_dir(&scratch.dir)?.count();
    let dir = scratch.dir.join(format!("small-{round}"));
    std::fs::create_dir(&dir)?;
    for index in 0..SMALL_COUNT {
        std::fs::write(dir.join(format!("file-{index}")), &scratch.data[..PAGE])?;
    }
    Ok(())
}

fn time(case: &Case, scratch: &Scratch, stream: &File) -> anyhow::Result<Duration> {
    let start = librorum_sys::clock::monotonic();
    (case.work)(scratch, stream)
        .with_context(|| format!("{} in {}", case.name, scratch.dir.display()))?;
    Ok(librorum_sys::clock::monotonic() - start)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

impl Bench {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let dir = self.dir.canonicalize().with_context(|| format!("{}", self.dir.display()))?;
        let mounts = mountinfo::mounted_volumes()?;
        let mounted = mounts.iter().rev().find(|mounted| dir.starts_with(&mounted.mountpoint));
        let native = match (&self.native, mounted) {
            (Some(native), _) => native.clone(),
            (None, Some(mounted)) => mounted
                .volume
                .parent()
                .context("the volume has no folder beside it; name one with --native")?
                .to_owned(),
            (None, None) => bail!("{} is not in a mounted volume", dir.display()),
        };
        let ours = Scratch::make(&dir, self.size)?;
        let theirs = Scratch::make(&native, self.size)?;
        let mut rows = Vec::new();
        if !json {
            println!("{} against {}, {} rounds", dir.display(), native.display(), self.rounds);
            println!("{:<30} {:>12} {:>12} {:>7} {:>6}", "", "mounted", "native", "ratio", "goal");
        }
        for case in cases(self.size) {
            let (mut mounted, mut native) = (Vec::new(), Vec::new());
            let streams = (ours.open_stream(case.open)?, theirs.open_stream(case.open)?);
            for _ in 0..self.rounds {
                mounted.push(time(&case, &ours, &streams.0)?);
                native.push(time(&case, &theirs, &streams.1)?);
            }
            let per_operation = |times: &mut [Duration]| {
                median(times).as_secs_f64() * 1e6
                    / f64::from(u32::try_from(case.operation_count).unwrap_or(u32::MAX))
            };
            let (mounted_us, native_us) = (per_operation(&mut mounted), per_operation(&mut native));
            let ratio = native_us / mounted_us;
            if !json {
                println!(
                    "{:<30} {mounted_us:>9.2} us {native_us:>9.2} us {} {:>6.2}",
                    case.name,
                    coloured(ratio, case.goal),
                    case.goal
                );
            }
            rows.push(json!({
                "case": case.name, "mounted_us": mounted_us, "native_us": native_us,
                "ratio": ratio, "goal": case.goal, "verdict": verdict(ratio, case.goal),
            }));
        }
        if json {
            println!(
                "{}",
                json!({ "dir": dir, "native": native, "rounds": self.rounds, "cases": rows })
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn verdict(ratio: f64, goal: f64) -> &'static str {
    if ratio >= goal {
        "green"
    } else if ratio >= goal * 0.8 {
        "yellow"
    } else {
        "red"
    }
}

fn coloured(ratio: f64, goal: f64) -> String {
    use std::io::IsTerminal;
    let number = format!("{ratio:>7.2}");
    if !std::io::stdout().is_terminal() {
        return number;
    }
    let colour = match verdict(ratio, goal) {
        "green" => 32,
        "yellow" => 33,
        _ => 31,
    };
    format!("\x1b[{colour}m{number}\x1b[0m")
}
