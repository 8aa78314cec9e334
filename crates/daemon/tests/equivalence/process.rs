//! Processes of this program that play a part: they are stopped and killed where they stand.
//!
//! A part says what it has come to in lines with a mark, since the test runner writes to the same
//! output, and hears commands by lines of its input, whose end is its own end.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::world::{Doors, World};

const PART: &str = "LIBRORUM_TEST_PART";
const MARK: &str = "@@ ";

/// Plays a part, when this program is started for one.
#[test]
fn actor() {
    let Ok(part) = std::env::var(PART) else { return };
    match part.as_str() {
        "daemon" => daemon(),
        "stander" => crate::killed::stand(),
        "mover" => crate::large::move_and_measure(),
        "reader" => crate::stopped::read_for_ever(),
        other => panic!("no part {other}"),
    }
}

pub(crate) fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    // In one piece, on a line of its own.
    out.write_all(format!("\n{MARK}{what}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Until the parent's end.
pub(crate) fn wait_for_end() {
    for line in std::io::stdin().lines() {
        drop(line.unwrap());
    }
}

pub(crate) fn argument(name: &str) -> String {
    std::env::var(format!("LIBRORUM_TEST_{name}")).unwrap()
}

fn daemon() {
    let dir = argument("DIR");
    let world = World::open(Path::new(&dir), &["main"], 20);
    say(&format!("ready {}", world.doors.tcp));
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "seal" => {
                world.seal_all();
                say("sealed");
            }
            "counts" => {
                let counts = [
                    world.server.connection_count(),
                    world.server.session_count(),
                    world.service.upload_count(),
                ];
                say(&format!("counts {counts:?}"));
            }
            "stop" => {
                world.end();
                say("stopped");
                return;
            }
            other => panic!("no command {other}"),
        }
    }
}

pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(part: &str, arguments: &[(&str, String)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::actor", "--nocapture", "--test-threads=1"])
            .env(PART, part)
            .envs(arguments.iter().map(|(name, value)| (format!("LIBRORUM_TEST_{name}"), value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next thing that it says.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the process ended");
            if let Some(said) = line.trim_end().strip_prefix(MARK) {
                return said.to_owned();
            }
        }
    }

    pub(crate) fn command(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        self.hear()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it ends well by itself.
    pub(crate) fn is_well(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A daemon in a process of its own.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    pub(crate) doors: Doors,
}

impl Daemon {
    /// Of the volume `main` in this folder.
    pub(crate) fn start(dir: &Path) -> Self {
        let mut process = Process::start("daemon", &[("DIR", dir.display().to_string())]);
        let said = process.hear();
        let tcp = said.strip_prefix("ready ").unwrap().parse().unwrap();
        let (socket, grpc_socket) = (dir.join("run/librorum.sock"), dir.join("run/grpc.sock"));
        Self { process, doors: Doors { socket, grpc_socket, tcp } }
    }

    /// What clients need to know to find it.
    pub(crate) fn arguments(&self) -> Vec<(&'static str, String)> {
        vec![
            ("SOCKET", self.doors.socket.display().to_string()),
            ("GRPC_SOCKET", self.doors.grpc_socket.display().to_string()),
            ("TCP", self.doors.tcp.to_string()),
            ("DAEMON", self.process.id().to_string()),
        ]
    }

    /// Waits until nothing is left of any client; uploads but for so many with a key.
    pub(crate) fn wait_until_idle(&mut self) {
        crate::harness::eventually("nothing to be left of clients", || {
            self.process.command("counts") == "counts [0, 0, 0]"
        });
    }

    pub(crate) fn seal(&mut self) {
        assert_eq!(self.process.command("seal"), "sealed");
    }

    pub(crate) fn stop(mut self) {
        assert_eq!(self.process.command("stop"), "stopped");
        assert!(self.process.is_well());
    }
}

/// What [`Daemon::arguments`] says, on the other side.
pub(crate) fn doors() -> Doors {
    Doors {
        socket: argument("SOCKET").into(),
        grpc_socket: argument("GRPC_SOCKET").into(),
        tcp: argument("TCP").parse().unwrap(),
    }
}

/// What a process has that could leak: descriptors by what they are, threads by what they do, and
/// mappings of shared memory. Files of the store are left out, which it keeps open as a cache.
pub(crate) fn belongings(id: u32) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let mut count = |what: &str| *found.entry(what.to_owned()).or_default() += 1;
    for entry in std::fs::read_dir(format!("/proc/{id}/fd")).unwrap() {
        // Closed meanwhile.
        let Ok(target) = std::fs::read_link(entry.unwrap().path()) else { continue };
        let target = target.display().to_string();
        let is_socket = target.starts_with("socket:");
        if is_socket {
            count("socket");
        } else if target.starts_with("/memfd:") {
            count("memfd");
        } else if target.contains("/uploads/") {
            count("upload with a name");
        } else if target.ends_with(" (deleted)") {
            count("file without a name");
        }
    }
    for entry in std::fs::read_dir(format!("/proc/{id}/task")).unwrap() {
        let Ok(name) = std::fs::read_to_string(entry.unwrap().path().join("comm")) else {
            continue;
        };
        // Of pools, which have their own bounds.
        let is_one_of_many = ["lbru-work", "lbru-wait", "tokio", "grpc"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if name.starts_with("lbru-") && !is_one_of_many {
            count(if name.trim() == "lbru-accept" { "acceptor" } else { "connection's thread" });
        }
    }
    let maps = std::fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
    for _ in maps.lines().filter(|line| line.contains("/memfd:")) {
        count("mapping of shared memory");
    }
    found
}

/// How much memory of its own a process has, or shares with others: what no page cache can give back.
pub(crate) fn memory_bytes(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    };
    of("RssAnon:") + of("RssShmem:")
}
