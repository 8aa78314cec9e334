//! Databases, which know better than anybody what a file system promised them.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{Mode, Mount, Output, Python, Rng, Run, in_modes, program, within};

in_modes!(sqlite_survives_kills_of_writer_and_mount: passthrough, cached, unprivileged);

/// Inserts in transactions and tells each that was committed; `synchronous=extra` makes that a promise,
/// also where the last step is to unlink a journal.
const SQLITE_WRITER: &str = r#"
import sqlite3
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute('pragma journal_mode=' + sys.argv[2])
database.execute('pragma synchronous=extra')
database.execute('create table if not exists rows (n integer primary key, filler blob)')
n = database.execute('select coalesce(max(n), 0) from rows').fetchone()[0]
while True:
    n += 1
    database.execute('begin immediate')
    database.execute('insert into rows values (?, ?)', (n, os.urandom(n * 37 % 5000)))
    if n % 5 == 0:
        database.execute('update rows set filler = ? where n = ?', (os.urandom(9000), n // 2))
    database.execute('commit')
    os.write(1, f'{n}\n'.encode())
"#;

fn sqlite_survives_kills_of_writer_and_mount(mode: Mode) {
    let mut rng = Rng::from_environment();
    let mut mount = Mount::with(mode, &["seal_after=20"]);
    for journal in ["wal", "delete"] {
        let database = mount.path(&format!("{journal}.db"));
        for round in 0..4 {
            // Outside: what was acknowledged must not depend on the mount.
            let told = mount.outside("told").join(format!("{journal}-{round}"));
            let mut writer = Python::script(SQLITE_WRITER);
            writer.arg(&database).arg(journal).stdout(fs::File::create(&told).unwrap());
            let writer = writer.stderr(Stdio::null()).start();
            within("the first commits", || (fs::metadata(&told).unwrap().len() > 20).then_some(()));
            librorum_sys::clock::sleep(Duration::from_millis(rng.below(150)));
            let told_so_far = || -> u64 {
                let told = fs::read_to_string(&told).unwrap();
                told.lines().last().unwrap().parse().unwrap()
            };
            let committed = if round % 2 == 0 {
                writer.kill();
                told_so_far()
            } else {
                // Not what is told later: SQLite commits by unlinking the journal, and takes a
                // directory that it cannot open any more for one that needs no sync.
                let committed = told_so_far();
                mount.kill();
                drop(writer);
                mount.librorum(&["umount", "--lazy"]).arg(mount.root()).ok();
                mount.mount();
                committed
            };
            let asked = "pragma integrity_check; select count(*), max(n) from rows;";
            let answer = program("sqlite3").arg(&database).arg(asked).ok().stdout;
            let (check, counts) = answer.trim().split_once('\n').unwrap_or((&answer, ""));
            assert_eq!(check, "ok", "{journal}, round {round}: {answer}");
            let (count, newest) = counts.split_once('|').unwrap();
            assert_eq!(count, newest, "no row in between is missing");
            let newest: u64 = newest.parse().unwrap();
            assert!(newest >= committed, "{journal}, round {round}: {newest} of {committed} rows");
        }
    }
}

/// PostgreSQL's programs, in Debian's place.
fn postgres_dir() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let found = versions.map(|entry| entry.unwrap().path().join("bin"));
    found.filter(|dir| dir.join("initdb").exists()).max()
}

/// A running server.
struct Postgres<'a> {
    bin: &'a Path,
    socket: &'a Path,
    server: Child,
}

impl<'a> Postgres<'a> {
    fn start(bin: &'a Path, data: &'a Path, socket: &'a Path) -> Self {
        let log = socket.join("log");
        // The processes of a killed server need a moment to notice; until then PostgreSQL itself
        // refuses to start.
        within("PostgreSQL to start", || {
            let log = fs::File::options().create(true).append(true).open(&log).unwrap();
            let mut command = as_postgres(&bin.join("postgres"));
            command.arg("-D").arg(data).args(["-c", "listen_addresses="]);
            command.arg("-c").arg(format!("unix_socket_directories={}", socket.display()));
            command.args(["-c", "shared_buffers=16MB", "-c", "max_wal_size=64MB"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let mut postgres = Self { bin, socket, server: command.spawn().unwrap() };
            let is_ready = within("PostgreSQL to answer or give up", || {
                if postgres.server.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                let answer = postgres.client("psql").args(["-c", "select 1"]).run();
                (answer.code == Some(0)).then_some(true)
            });
            is_ready.then_some(postgres)
        })
    }

    fn client(&self, name: &str) -> Command {
        let mut command = as_postgres(&self.bin.join(name));
        command.arg("-h").arg(self.socket).env("PGDATABASE", "postgres");
        command
    }

    fn sql(&self, text: &str) -> Output {
        self.client("psql").args(["-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]).ok()
    }

    /// Ends it as a crash would.
    fn kill(mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.server);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let status = within("PostgreSQL to end", || self.server.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Postgres<'_> {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

fn as_postgres(name: &Path) -> Command {
    let mut command = program("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(name);
    command.current_dir("/");
    command
}

in_modes!(postgresql_recovers_from_crashes: passthrough, cached);

/// Root's mounts only: PostgreSQL insists on a user of its own, who cannot enter another's mount.
fn postgresql_recovers_from_crashes(mode: Mode) {
    let Some(bin) = postgres_dir() else {
        let required = std::env::var_os("LIBRORUM_POSTGRES").is_some();
        assert!(!required, "PostgreSQL is missing: ./test installs it");
        println!("no PostgreSQL here");
        return;
    };
    let mut mount = Mount::with(mode, &["seal_after=100"]);
    let (data, socket) = (mount.path("data"), mount.outside("socket"));
    fs::create_dir(&data).unwrap();
    for dir in [&data, &socket] {
        chown(dir, Some(id_of_postgres("-u")), Some(id_of_postgres("-g"))).unwrap();
    }
    let mut initdb = as_postgres(&bin.join("initdb"));
    initdb.arg("-D").arg(&data).args(["-A", "trust", "--no-sync", "--data-checksums"]).ok();
    let postgres = Postgres::start(&bin, &data, &socket);
    postgres.client("pgbench").args(["-i", "-s", "2", "-q"]).ok();
    let bench = |postgres: &Postgres<'_>| {
        let mut command = postgres.client("pgbench");
        command.args(["-n", "-c", "4", "-j", "2", "-t", "150"]).ok();
    };
    let history = |postgres: &Postgres<'_>| -> u64 {
        // What pgbench's every transaction keeps equal.
        let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) \
                    from pgbench_tellers), (select count(*) from pgbench_history)";
        let answer = postgres.sql(sums).stdout;
        let (equal, count) = answer.trim().split_once('|').unwrap();
        assert_eq!(equal, "t");
        count.parse().unwrap()
    };
    bench(&postgres);
    assert_eq!(history(&postgres), 600);
    postgres.kill();
    let postgres = Postgres::start(&bin, &data, &socket);
    assert_eq!(history(&postgres), 600, "after a crash of the server");
    bench(&postgres);
    // The mount goes away below the running server.
    mount.kill();
    postgres.kill();
    mount.librorum(&["umount", "--lazy"]).arg(mount.root()).ok();
    mount.mount();
    let postgres = Postgres::start(&bin, &data, &socket);
    assert_eq!(history(&postgres), 1200, "after a crash of the mount");
    bench(&postgres);
    postgres.sql("vacuum full");
    postgres.stop();
    mount.seal();
    mount.remount();
    let checksums = as_postgres(&bin.join("pg_checksums")).arg("--check").arg("-D").arg(&data).ok();
    assert!(checksums.stdout.contains("Bad checksums:  0"), "{checksums}");
    let postgres = Postgres::start(&bin, &data, &socket);
    assert_eq!(history(&postgres), 1800, "on a remounted volume");
    postgres.stop();
}

fn id_of_postgres(which: &str) -> u32 {
    program("id").args([which, "postgres"]).ok().stdout.trim().parse().unwrap()
}
