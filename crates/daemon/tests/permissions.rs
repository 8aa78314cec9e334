//! The same operations by the same users, on a mount and through the service, have the same answers and
//! leave the same tree: random modes, owners, sticky and set-gid directories, by three real users.
//!
//! Needs root and `/dev/fuse`; without them there is nothing to compare with.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use librorum_daemon::mounts::{Mounted, Settings};
use librorum_daemon::service::{Call, Caller, ServedVolume, Service};
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};
use librorum_rpc::Failure;
use librorum_rpc::proto::v1;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};
use serde::{Deserialize, Serialize};

const ACTOR: &str = "LIBRORUM_TEST_ACTOR";

/// Users with their groups: two of them share one.
const USERS: [(u32, u32); 4] = [(0, 0), (4001, 5001), (4002, 5001), (4003, 5003)];

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Operation {
    Stat(String),
    List(String),
    MakeDirectory(String, u32),
    Put(String, u32),
    Read(String),
    Symlink(String, String),
    Link(String, String),
    Rename(String, String),
    RenameNoReplace(String, String),
    Exchange(String, String),
    Unlink(String),
    RemoveDirectory(String),
    Chmod(String, u32),
    Chown(String, Option<u32>, Option<u32>),
    Touch(String),
}

/// Does an operation below `root` with system calls; answers an errno, 0 for none.
fn act(root: &Path, operation: &Operation) -> i32 {
    let at = |path: &str| root.join(path);
    // As the service has it: no symbolic link is followed on the way.
    let open = |path: &Path, flags: OFlags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
    };
    let done: rustix::io::Result<()> = match operation {
        Operation::Stat(path) => rustix::fs::lstat(at(path)).map(drop),
        Operation::List(path) => {
            // What is in it is told too, so it must be open for looking up names.
            open(&at(path), OFlags::RDONLY | OFlags::DIRECTORY).and_then(|dir| {
                rustix::fs::accessat(&dir, ".", rustix::fs::Access::EXEC_OK, AtFlags::EACCESS)
            })
        }
        Operation::MakeDirectory(path, mode) => {
            rustix::fs::mkdir(at(path), Mode::from_raw_mode(*mode))
        }
        Operation::Put(path, mode) => put(&at(path), *mode),
        Operation::Read(path) => {
            open(&at(path), OFlags::RDONLY | OFlags::NONBLOCK).and_then(|file| {
                let mut byte = [0];
                rustix::io::read(&file, &mut byte).map(drop)
            })
        }
        Operation::Symlink(target, path) => rustix::fs::symlink(target, at(path)),
        Operation::Link(from, to) => {
            rustix::fs::linkat(CWD, at(from), CWD, at(to), AtFlags::empty())
        }
        Operation::Rename(from, to) => rustix::fs::rename(at(from), at(to)),
        Operation::RenameNoReplace(from, to) => {
            rustix::fs::renameat_with(CWD, at(from), CWD, at(to), RenameFlags::NOREPLACE)
        }
        Operation::Exchange(from, to) => {
            rustix::fs::renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE)
        }
        Operation::Unlink(path) => rustix::fs::unlink(at(path)),
        Operation::RemoveDirectory(path) => rustix::fs::rmdir(at(path)),
        Operation::Chmod(path, mode) => rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode)),
        Operation::Chown(path, uid, gid) => rustix::fs::chownat(
            CWD,
            at(path),
            uid.map(Uid::from_raw),
            gid.map(Gid::from_raw),
            AtFlags::SYMLINK_NOFOLLOW,
        ),
        Operation::Touch(path) => {
            let time = Timespec { tv_sec: 1_000_000, tv_nsec: 5 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)
        }
    };
    done.err().map_or(0, rustix::io::Errno::raw_os_error)
}

/// What an upload is on a mount: a temporary file that takes the name.
fn put(path: &Path, mode: u32) -> rustix::io::Result<()> {
    let temporary = path.with_file_name(format!(".put-{}", std::process::id()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::open(&temporary, flags, Mode::from_raw_mode(mode))?;
    rustix::io::write(&file, b"content")?;
    // Writing took the set-id bits, unless root did.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    drop(file);
    let renamed = rustix::fs::rename(&temporary, path);
    if renamed.is_err() {
        rustix::fs::unlink(&temporary)?;
    }
    renamed
}

/// One user's process, when this program is started as such: operations in, errnos out.
#[test]
fn actor() {
    let Some(root) = std::env::var_os(ACTOR) else { return };
    rustix::process::umask(Mode::empty());
    for line in std::io::stdin().lines() {
        let operation: Operation = serde_json::from_str(&line.unwrap()).unwrap();
        println!("errno {}", act(Path::new(&root), &operation));
    }
}

struct Actor {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Actor {
    fn start(root: &Path, (uid, gid): (u32, u32)) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "actor", "--nocapture"])
            .env(ACTOR, root)
            .uid(uid)
            .gid(gid)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    fn act(&mut self, operation: &Operation) -> i32 {
        writeln!(self.input, "{}", serde_json::to_string(operation).unwrap()).unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the actor ended");
            if let Some((_, errno)) = line.trim().rsplit_once("errno ") {
                return errno.parse().unwrap();
            }
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Does an operation through the service; answers an errno, 0 for none.
fn serve(service: &Service, call: &Call, operation: &Operation) -> i32 {
    let bytes = |path: &String| path.clone().into_bytes().into();
    let answer: Result<(), Failure> = match operation {
        Operation::Stat(path) => service
            .stat(call, &v1::StatRequest { path: bytes(path), ..Default::default() })
            .map(drop),
        Operation::List(path) => service
            .list(call, &v1::ListRequest { path: bytes(path), ..Default::default() })
            .map(drop),
        Operation::MakeDirectory(path, mode) => service
            .make_directory(
                call,
                &v1::MakeDirectoryRequest { path: bytes(path), mode: *mode, ..Default::default() },
            )
            .map(drop),
        Operation::Put(path, mode) => service
            .put(
                call,
                &v1::PutRequest { path: bytes(path), mode: *mode, ..Default::default() },
                b"content",
            )
            .map(drop),
        Operation::Read(path) => service
            .open_read(call, "", path.as_bytes(), 0)
            .and_then(|file| file.read_at(0, &mut [0]).map(drop)),
        Operation::Symlink(target, path) => service
            .make_symlink(
                call,
                &v1::MakeSymlinkRequest {
                    path: bytes(path),
                    target: bytes(target),
                    ..Default::default()
                },
            )
            .map(drop),
        Operation::Link(from, to) => service
            .link(call, &v1::LinkRequest { from: bytes(from), to: bytes(to), ..Default::default() })
            .map(drop),
        Operation::Rename(from, to) => rename(service, call, from, to, v1::Replace::Yes),
        Operation::RenameNoReplace(from, to) => rename(service, call, from, to, v1::Replace::No),
        Operation::Exchange(from, to) => rename(service, call, from, to, v1::Replace::Exchange),
        Operation::Unlink(path) => service
            .remove(call, &v1::RemoveRequest { path: bytes(path), ..Default::default() })
            .map(drop),
        Operation::RemoveDirectory(path) => service
            .remove(
                call,
                &v1::RemoveRequest { path: bytes(path), directory: true, ..Default::default() },
            )
            .map(drop),
        Operation::Chmod(path, mode) => service
            .set_attributes(
                call,
                &v1::SetAttributesRequest {
                    path: bytes(path),
                    mode: Some(*mode),
                    ..Default::default()
                },
            )
            .map(drop),
        Operation::Chown(path, uid, gid) => service
            .set_attributes(
                call,
                &v1::SetAttributesRequest {
                    path: bytes(path),
                    uid: *uid,
                    gid: *gid,
                    ..Default::default()
                },
            )
            .map(drop),
        Operation::Touch(path) => {
            let time = Some(v1::Timestamp { seconds: 1_000_000, nanos: 5 });
            service
                .set_attributes(
                    call,
                    &v1::SetAttributesRequest {
                        path: bytes(path),
                        atime: time,
                        mtime: time,
                        ..Default::default()
                    },
                )
                .map(drop)
        }
    };
    answer.err().map_or(0, |failure| failure.errno().unwrap_or(-1))
}

fn rename(
    service: &Service,
    call: &Call,
    from: &str,
    to: &str,
    replace: v1::Replace,
) -> Result<(), Failure> {
    let request = v1::RenameRequest {
        from: from.as_bytes().to_vec().into(),
        to: to.as_bytes().to_vec().into(),
        replace: replace.into(),
        ..Default::default()
    };
    service.rename(call, &request).map(drop)
}

/// A small generator of numbers, printed by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn path(&mut self) -> String {
        const NAMES: [&str; 4] = ["a", "b", "c", "d"];
        let depth = 1 + self.below(3);
        (0..depth).map(|_| *self.pick(&NAMES)).collect::<Vec<_>>().join("/")
    }

    fn mode(&mut self) -> u32 {
        const MODES: [u32; 14] = [
            0o777, 0o755, 0o750, 0o700, 0o711, 0o722, 0o733, 0o1777, 0o2775, 0o2777, 0o644, 0o600,
            0o4755, 0o6750,
        ];
        *self.pick(&MODES)
    }

    fn operation(&mut self) -> Operation {
        let owner = |random: &mut Self| match random.below(4) {
            0 => None,
            index => Some(USERS[index]),
        };
        match self.below(20) {
            0 | 1 => Operation::Stat(self.path()),
            2 => Operation::List(self.path()),
            3..=5 => Operation::MakeDirectory(self.path(), self.mode()),
            6..=8 => Operation::Put(self.path(), self.mode()),
            9 => Operation::Read(self.path()),
            10 => Operation::Symlink("target".to_owned(), self.path()),
            11 => Operation::Link(self.path(), self.path()),
            12 | 13 => Operation::Rename(self.path(), self.path()),
            14 => match self.below(2) {
                0 => Operation::RenameNoReplace(self.path(), self.path()),
                _ => Operation::Exchange(self.path(), self.path()),
            },
            15 => Operation::Unlink(self.path()),
            16 => Operation::RemoveDirectory(self.path()),
            17 => Operation::Chmod(self.path(), self.mode()),
            18 => {
                let (uid, gid) = (owner(self), owner(self));
                Operation::Chown(self.path(), uid.map(|user| user.0), gid.map(|user| user.1))
            }
            _ => Operation::Touch(self.path()),
        }
    }
}

/// Whether an operation may pass through or follow a symbolic link: the kernel does, the service does
/// not, so there is nothing to compare.
fn meets_a_link(root: &Path, operation: &Operation) -> bool {
    let (paths, follows_last): (Vec<&String>, bool) = match operation {
        Operation::Chmod(path, _) | Operation::Read(path) | Operation::List(path) => {
            (vec![path], true)
        }
        Operation::Link(from, to)
        | Operation::Rename(from, to)
        | Operation::RenameNoReplace(from, to)
        | Operation::Exchange(from, to) => (vec![from, to], false),
        Operation::Symlink(_, path)
        | Operation::Stat(path)
        | Operation::MakeDirectory(path, _)
        | Operation::Put(path, _)
        | Operation::Unlink(path)
        | Operation::RemoveDirectory(path)
        | Operation::Chown(path, ..)
        | Operation::Touch(path) => (vec![path], false),
    };
    paths.into_iter().any(|path| {
        let count = path.split('/').count();
        let mut at = root.to_owned();
        path.split('/').enumerate().any(|(index, name)| {
            at.push(name);
            let is_link = at.symlink_metadata().is_ok_and(|found| found.is_symlink());
            is_link && (follows_last || index + 1 < count)
        })
    })
}

type Tree = BTreeMap<PathBuf, (u32, u32, u32, u64, u64)>;

fn tree_of_mount(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let found = path.symlink_metadata().unwrap();
            let line =
                (found.mode() & 0o7777, found.uid(), found.gid(), found.nlink(), found.len());
            tree.insert(path.strip_prefix(root).unwrap().to_owned(), line);
            if found.is_dir() {
                directories.push(path);
            }
        }
    }
    tree
}

fn tree_of_service(service: &Service, call: &Call) -> Tree {
    let mut tree = Tree::new();
    let mut cursor = bytes::Bytes::new();
    loop {
        // Small pages, so that cursors are tried too.
        let request =
            v1::ListRequest { recursive: true, cursor, limit: 3, ..v1::ListRequest::default() };
        let page = service.list(call, &request).unwrap();
        assert!(page.errors.is_empty(), "{:?}", page.errors);
        for entry in page.entries {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(&entry.path));
            let nlink = u64::from(entry.nlink);
            let line = (entry.mode, entry.uid, entry.gid, nlink, entry.size_bytes);
            assert!(tree.insert(path, line).is_none(), "listed twice");
        }
        if page.cursor.is_empty() {
            return tree;
        }
        cursor = page.cursor;
    }
}

/// Unmounts, also when the test fails.
struct Unmount(Option<Mounted>);

impl Drop for Unmount {
    fn drop(&mut self) {
        if let Some(mounted) = self.0.take() {
            mounted.end().unwrap();
        }
    }
}

fn volume(dir: &Path) -> Arc<Fs> {
    Volume::format(dir, &FormatOptions::default()).unwrap();
    Fs::open_volume(dir, FsOptions::default()).unwrap()
}

#[test]
fn the_service_refuses_and_allows_what_a_mount_does() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("not root, or no /dev/fuse: nothing to compare with");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Others must reach the mount.
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let root = dir.path().join("mount");
    std::fs::create_dir(&root).unwrap();
    let on_mount = volume(&dir.path().join("one"));
    let one = Arc::new(ServedVolume::new("one", Arc::clone(&on_mount), false));
    let mounted = Mounted::mount(&one, &root, &Settings::default(), None).unwrap();
    let mounted = Unmount(Some(mounted));
    let served = volume(&dir.path().join("two"));
    let service = Service::new();
    service.add_volume(ServedVolume::new("two", Arc::clone(&served), false)).unwrap();

    let calls = USERS.map(|(uid, gid)| Call::new(Caller::new(uid, gid, [])));
    let mut actors = USERS.map(|user| Actor::start(&root, user));
    let open = Operation::Chmod(String::new(), 0o777);
    assert_eq!((actors[0].act(&open), serve(&service, &calls[0], &open)), (0, 0));

    let seed = u64::from_le_bytes(librorum_sys::entropy::random::<8>()) | 1;
    let seed = std::env::var("LIBRORUM_SEED").map_or(seed, |seed| seed.parse().unwrap());
    eprintln!("LIBRORUM_SEED={seed}");
    let mut random = Random(seed);
    let mut allowed = 0;
    let mut refused = 0;
    for step in 0..4000 {
        let operation = random.operation();
        let user = random.below(USERS.len());
        if meets_a_link(&root, &operation) {
            continue;
        }
        let expected = actors[user].act(&operation);
        let found = serve(&service, &calls[user], &operation);
        assert_eq!(
            found,
            expected,
            "step {step}: {operation:?} by {:?}: service {found}, mount {expected}; seed {seed}; {:?}",
            USERS[user],
            tree_of_mount(&root)
        );
        if expected == 0 {
            allowed += 1;
        } else {
            refused += 1;
        }
        if step % 100 == 0 {
            assert_eq!(tree_of_service(&service, &calls[0]), tree_of_mount(&root), "seed {seed}");
        }
    }
    assert_eq!(tree_of_service(&service, &calls[0]), tree_of_mount(&root), "seed {seed}");
    assert!(allowed > 400 && refused > 400, "{allowed} allowed, {refused} refused");
    drop(actors);
    drop(mounted);
    on_mount.shut_down().unwrap();
    served.shut_down().unwrap();
}
