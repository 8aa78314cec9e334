//! Counting what the kernel asks the daemon, from outside: `strace` sees every request that the
//! daemon reads from `/dev/fuse`, and the second word of a request is its opcode.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::process::program;

/// What is asked, as `fuse.h` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Opcode(pub(crate) u32);

impl Opcode {
    pub(crate) const LOOKUP: Self = Self(1);
    pub(crate) const GETATTR: Self = Self(3);
    pub(crate) const READ: Self = Self(15);
    pub(crate) const WRITE: Self = Self(16);
    pub(crate) const GETXATTR: Self = Self(22);
}

/// A running count.
#[derive(Debug)]
pub(crate) struct Requests {
    strace: Child,
    trace: PathBuf,
}

impl Requests {
    /// Starts to count the requests to the process `pid`.
    pub(crate) fn count(pid: u32, dir: &Path) -> Self {
        let trace = dir.join("trace");
        let mut command: Command = program("strace");
        command.args(["-f", "-xx", "-s", "8", "-e", "trace=read,readv"]);
        command.args(["-p", &pid.to_string(), "-o"]).arg(&trace);
        let mut strace = command.stderr(Stdio::piped()).spawn().expect("strace is needed");
        // It says so when it has attached; requests from then on are seen.
        let mut line = String::new();
        let mut said = BufReader::new(strace.stderr.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "strace: {line}");
        // It goes on talking about threads that come and go, which must not block it.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { strace, trace }
    }

    /// Stops, and answers how often each was asked.
    pub(crate) fn stop(mut self) -> BTreeMap<Opcode, u64> {
        let pid = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.strace.wait().unwrap();
        let mut counts = BTreeMap::new();
        for line in std::fs::read_to_string(&self.trace).unwrap().lines() {
            if let Some(opcode) = opcode(line) {
                *counts.entry(opcode).or_insert(0) += 1;
            }
        }
        counts
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        drop(self.strace.kill());
        drop(self.strace.wait());
    }
}

/// The opcode in a line like `read(12, "\x2f\x00\x00\x00\x01\x00\x00\x00"..., 16781312) = 47`. Only
/// reads from `/dev/fuse` offer so large a buffer.
fn opcode(line: &str) -> Option<Opcode> {
    let (_, rest) = line.split_once("\"\\x")?;
    let (bytes, rest) = rest.split_once('"')?;
    let (_, rest) = rest.split_once(", ")?;
    let (offered, _) = rest.split_once(')')?;
    if offered.parse::<u64>().ok()? <= 1 << 20 {
        return None;
    }
    let bytes: Vec<u32> = bytes
        .split("\\x")
        .map(|byte| u32::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    let word = bytes.get(4..8)?;
    Some(Opcode(word.iter().rev().fold(0, |word, byte| (word << 8) | byte)))
}
