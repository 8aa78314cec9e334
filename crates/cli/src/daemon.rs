//! `librorum daemon`, `start`, `stop` and `restart`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use librorum_daemon::config::Places;
use librorum_daemon::host::{Host, Origin};
use librorum_daemon::logbook::{FileOptions, LogBook};
use librorum_daemon::service::{Call, Caller};
use librorum_rpc::client::{Client, ClientOptions, Target};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::remote::answers;

/// Where a daemon's configuration comes from.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ConfigArguments {
    /// The file; without it, the default one if it is there (see 'librorum config path').
    #[arg(long, env = "LIBRORUM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// A key and its value, over file and environment, such as daemon.log_level=debug.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
    /// The socket: short for --set daemon.socket=PATH.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ConfigArguments {
    pub(crate) fn origin(&self) -> anyhow::Result<Origin> {
        let mut overrides = self.set.clone();
        if let Some(socket) = &self.socket {
            let socket = std::path::absolute(socket)?;
            let socket = socket.to_str().context("the socket's path has to be UTF-8")?;
            overrides.push(("daemon.socket".to_owned(), socket.to_owned()));
        }
        Ok(Origin { file: self.file(), overrides })
    }

    /// The file, if there is one: one that is named has to be.
    fn file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| {
            let default = Places::current().config_file();
            default.exists().then_some(default)
        })
    }

    /// The file, whether there is one or not.
    pub(crate) fn path(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| Places::current().config_file())
    }

    /// The same as arguments of another process.
    fn pass_to(&self, command: &mut Command) -> anyhow::Result<()> {
        if let Some(path) = &self.config {
            command.arg("--config").arg(std::path::absolute(path)?);
        }
        if let Some(path) = &self.socket {
            command.arg("--socket").arg(std::path::absolute(path)?);
        }
        for (key, value) in &self.set {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum daemon\n  librorum daemon --config librorum.toml --set daemon.log_level=debug\n\nSIGHUP reads the configuration again; SIGTERM and SIGINT end the daemon gently, a second one at once. Exit codes: 0 ended as told, 1 it could not start, or none of its volumes could be opened."
)]
pub(crate) struct Daemon {
    #[command(flatten)]
    config: ConfigArguments,
    /// Say on standard output when it is ready, then never use it again.
    #[arg(long, hide = true)]
    notify_parent: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum start\n\nReturns when the daemon is ready, or says why it is not. Exit codes: 0 it runs (also if it did already), 1 it does not."
)]
pub(crate) struct Start {
    #[command(flatten)]
    config: ConfigArguments,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum stop\n\nReturns when the daemon has closed its volumes. Exit codes: 0 done, 1 failed, 4 there is none."
)]
pub(crate) struct Stop {
    #[command(flatten)]
    config: ConfigArguments,
    /// How long to wait for its end, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    wait: u64,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum restart\n\nExit codes: 0 a new one runs, 1 it does not."
)]
pub(crate) struct Restart {
    #[command(flatten)]
    config: ConfigArguments,
    /// How long to wait for the old one's end, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    wait: u64,
}

impl Daemon {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let inherited = librorum_sys::inherited::listeners()
            .context("the sockets of LISTEN_FDS cannot be used")?;
        let origin = self.config.origin()?;
        let config = origin.load()?;
        let log = match &config.daemon.log_file {
            Some(path) => {
                let file =
                    FileOptions { path: path.clone(), bytes_max: config.daemon.log_file_bytes };
                LogBook::with_file(file)
                    .with_context(|| format!("cannot write the log {}", path.display()))?
            }
            None => LogBook::in_memory(),
        };
        log.set_filter(&config.daemon.log_level)?;
        start_log(&log);
        let open_files = librorum_sys::limits::raise_open_files();
        tracing::debug!(open_files, "limit of open files");
        // Before anything is open: a signal must not end the process halfway.
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGTERM, SIGINT])
            .context("cannot handle signals")?;
        let host = Host::start(&config, origin, &log, inherited)?;
        let admin = host.admin().clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    reload(&admin);
                } else if admin.is_stopping() {
                    std::process::exit(1);
                } else {
                    admin.stop();
                }
            }
        })?;
        notify("READY=1");
        let ready = json!({
            "pid": std::process::id(),
            "socket": config.daemon.socket,
            "grpc": host.grpc_addresses(),
            "troubles": host.troubles(),
        });
        if json || self.notify_parent {
            let mut stdout = std::io::stdout().lock();
            if writeln!(stdout, "{ready}").and_then(|()| stdout.flush()).is_err() {
                tracing::debug!("nobody reads our standard output");
            }
        }
        if self.notify_parent {
            detach_output(&config.daemon.state_dir).context("cannot open the daemon's output")?;
        }
        host.admin().wait_for_stop();
        notify("STOPPING=1");
        host.shut_down();
        log.flush(Duration::from_secs(2));
        Ok(ExitCode::SUCCESS)
    }
}

fn reload(admin: &librorum_daemon::admin::Admin) {
    let now = librorum_sys::clock::monotonic();
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    let call = Call::new(Caller::new(0, 0, Vec::new()));
    if let Err(failure) = admin.reload(&call, &v1::ReloadRequest {}) {
        tracing::error!(%failure, "the configuration stays as it was");
    }
    notify("READY=1");
}

/// Records go to memory for `librorum logs`, and to standard error, which is systemd's journal or the
/// user's terminal.
fn start_log(log: &LogBook) {
    let stderr = tracing_subscriber::fmt::layer::<Registry>().with_writer(std::io::stderr);
    // Two layers of one type each: the second is made for what the first has built.
    let registry = tracing_subscriber::registry().with(log.filtered(stderr));
    let registry = registry.with(log.layer());
    if registry.try_init().is_err() {
        eprintln!("librorum: the log was started twice");
    }
}

/// sd_notify(3): tells whoever supervises this process.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = (|| {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)
    })();
    if let Err(error) = told {
        tracing::warn!(%error, "the supervisor cannot be told");
    }
}

/// From here on nobody reads our output; what is printed all the same, such as a panic, goes to a file.
fn detach_output(state_dir: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(state_dir)?;
    let path = state_dir.join("daemon.out");
    let log = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
    rustix::stdio::dup2_stderr(&log)?;
    rustix::stdio::dup2_stdout(&log)?;
    Ok(())
}

/// The daemon that listens at the configured socket, if one does.
fn running(socket: &std::path::Path) -> anyhow::Result<Option<(Client, v1::StatusResponse)>> {
    if !answers(socket) {
        return Ok(None);
    }
    let options = ClientOptions { retry_for: Duration::ZERO, ..ClientOptions::default() };
    let client = Client::connect(Target::Socket(socket.to_owned()), options)?;
    let status = client.status(&v1::StatusRequest::default())?;
    Ok(Some((client, status)))
}

impl Start {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        start(&self.config, json)
    }
}

fn start(arguments: &ConfigArguments, json: bool) -> anyhow::Result<ExitCode> {
    let config = arguments.origin()?.load()?;
    let socket = config.daemon.socket;
    if let Some((_, status)) = running(&socket)? {
        if json {
            println!("{}", json!({ "pid": status.pid, "socket": socket, "already": true }));
        } else {
            println!("The daemon runs already, process {}, at {}", status.pid, socket.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(["daemon", "--notify-parent"]);
    arguments.pass_to(&mut command)?;
    // A group of its own: Ctrl-C in this terminal is not for it.
    command.process_group(0).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start the daemon's process")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context("the daemon's process")?;
    }
    if !line.starts_with("{\"") || line.contains("\"exit_code\"") {
        // It has said why on our standard error, which it shares.
        let status = child.wait().context("the daemon's process")?;
        if json {
            println!("{}", json!({ "error": "the daemon did not start", "exit_code": 1 }));
        }
        return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1).max(1)));
    }
    if json {
        print!("{line}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("The daemon runs, process {}, at {}", child.id(), socket.display());
    Ok(ExitCode::SUCCESS)
}

impl Stop {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let config = self.config.origin()?.load()?;
        let socket = config.daemon.socket;
        let Some(pid) = stop(&socket, self.wait)? else {
            let message = format!("no daemon answers at {}", socket.display());
            return Err(Failure::new(Reason::Disconnected, message).into());
        };
        if json {
            println!("{}", json!({ "stopped": pid }));
        } else {
            println!("Stopped the daemon, process {pid}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Ends the daemon of a socket and waits for it; its process, if there was one.
fn stop(socket: &std::path::Path, wait: u64) -> anyhow::Result<Option<u32>> {
    let Some((client, status)) = running(socket)? else { return Ok(None) };
    match client.shutdown(&v1::ShutdownRequest {}) {
        Ok(_) => {}
        // It was faster than its answer.
        Err(failure) if failure.reason == Reason::Disconnected => {}
        Err(failure) => return Err(failure.into()),
    }
    drop(client);
    let start = librorum_sys::clock::monotonic();
    let process = PathBuf::from(format!("/proc/{}", status.pid));
    let has_ended = || {
        // A zombie has closed everything; its parent may take its time.
        let state = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        state.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    };
    while !has_ended() {
        if librorum_sys::clock::monotonic() - start > Duration::from_secs(wait) {
            bail!("the daemon, process {}, still ends after {wait} s", status.pid);
        }
        librorum_sys::clock::sleep(Duration::from_millis(10));
    }
    Ok(Some(status.pid))
}

impl Restart {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        // What is wrong with the configuration is said while the old daemon still runs.
        let config = self.config.origin()?.load()?;
        stop(&config.daemon.socket, self.wait)?;
        start(&self.config, json)
    }
}
