//! What one side does, the other has when the call returns: clients and mount of one process.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use librorum_format::ErrorKind;
use librorum_rpc::Reason;
use librorum_rpc::client::{Client, Transport, WriteOptions};
use librorum_rpc::proto::v1;

use crate::operation::{Content, Operation, Random};
use crate::ways::{Answer, ByClient, ByMount, Doer};
use crate::world::{Way, World, can_mount, check};

fn put(client: &Client, path: &str, data: &[u8]) {
    let upload = client.create("", path.as_bytes(), WriteOptions::default()).unwrap();
    upload.write_at(0, data).unwrap();
    upload.commit().unwrap();
}

fn get(client: &Client, path: &str) -> Vec<u8> {
    let file = client.open("", path.as_bytes()).unwrap();
    let mut bytes = vec![0; file.len() as usize + 1];
    let len = file.read_into(0, &mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

fn stat(client: &Client, path: &str) -> Result<v1::Entry, Reason> {
    let asked = v1::StatRequest { path: path.to_owned().into(), ..Default::default() };
    client.stat(&asked).map(|found| found.entry.unwrap()).map_err(|failure| failure.reason)
}

const GONE: Reason = Reason::File(ErrorKind::NotFound);

/// The kernel's caches are filled before each change.
fn clients_change_and_the_mount_has_it(client: &Client, root: &Path) {
    // A name that was not there.
    assert!(fs::symlink_metadata(root.join("file")).is_err());
    let old = Content { len: 300_000, seed: 1 }.bytes();
    put(client, "file", &old);
    assert!(fs::read(root.join("file")).unwrap() == old);
    // Attributes, and pages, and a descriptor that is open.
    let mut open = fs::File::open(root.join("file")).unwrap();
    assert_eq!(fs::metadata(root.join("file")).unwrap().len(), 300_000);
    let new = Content { len: 200_001, seed: 2 }.bytes();
    put(client, "file", &new);
    assert_eq!(fs::metadata(root.join("file")).unwrap().len(), 200_001);
    assert!(fs::read(root.join("file")).unwrap() == new);
    let mut kept = Vec::new();
    open.read_to_end(&mut kept).unwrap();
    assert!(kept == old, "a descriptor keeps the file that it was opened for");
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    let asked = v1::SetAttributesRequest {
        path: "file".into(),
        mode: Some(0o604),
        mtime: Some(v1::Timestamp { seconds: 77, nanos: 5 }),
        ..Default::default()
    };
    client.set_attributes(&asked).unwrap();
    let found = fs::metadata(root.join("file")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.mtime(), found.mtime_nsec()), (0o604, 77, 5));
    let asked = v1::LinkRequest { from: "file".into(), to: "second".into(), ..Default::default() };
    client.link(&asked).unwrap();
    assert_eq!(fs::metadata(root.join("file")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(root.join("second")).unwrap().ino(), found.ino());
    let asked =
        v1::RenameRequest { from: "second".into(), to: "third".into(), ..Default::default() };
    client.rename(&asked).unwrap();
    assert!(fs::metadata(root.join("second")).is_err());
    assert_eq!(fs::metadata(root.join("third")).unwrap().ino(), found.ino());
    let names = || {
        let entries = fs::read_dir(root).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["file", "third"]);
    let open = fs::File::open(root.join("file")).unwrap();
    for path in ["file", "third"] {
        client.remove(&v1::RemoveRequest { path: path.into(), ..Default::default() }).unwrap();
        assert!(fs::metadata(root.join(path)).is_err());
    }
    assert!(names().is_empty());
    let mut byte = [0];
    assert_eq!(open.read_at(&mut byte, 200_000).unwrap(), 1);
    assert_eq!(byte[0], new[200_000]);
}

/// With what the mount's pages have not written back yet.
fn the_mount_changes_and_clients_have_it(client: &Client, way: Way, root: &Path) {
    assert_eq!(stat(client, "file").unwrap_err(), GONE);
    let old = Content { len: 300_000, seed: 1 }.bytes();
    fs::write(root.join("file"), &old).unwrap();
    assert!(get(client, "file") == old);
    let file = fs::OpenOptions::new().write(true).open(root.join("file")).unwrap();
    file.write_all_at(b"changed", 100_000).unwrap();
    let found = get(client, "file");
    assert_eq!(&found[100_000..100_007], b"changed", "while the writer has it open");
    file.set_len(100_003).unwrap();
    assert_eq!(stat(client, "file").unwrap().size_bytes, 100_003);
    assert_eq!(get(client, "file").len(), 100_003);
    drop(file);
    fs::set_permissions(root.join("file"), PermissionsExt::from_mode(0o611)).unwrap();
    assert_eq!(stat(client, "file").unwrap().mode, 0o611);
    fs::hard_link(root.join("file"), root.join("second")).unwrap();
    assert_eq!(stat(client, "second").unwrap().nlink, 2);
    fs::rename(root.join("second"), root.join("third")).unwrap();
    assert_eq!(stat(client, "second").unwrap_err(), GONE);
    fs::create_dir(root.join("directory")).unwrap();
    fs::rename(root.join("third"), root.join("directory/third")).unwrap();
    assert_eq!(get(client, "directory/third").len(), 100_003);
    let listing = v1::ListRequest { recursive: true, ..Default::default() };
    let paths: Vec<_> = client.entries(listing).map(|entry| entry.unwrap().path).collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    let open = client.open("", b"file").unwrap();
    fs::remove_dir_all(root.join("directory")).unwrap();
    fs::remove_file(root.join("file")).unwrap();
    assert_eq!(stat(client, "file").unwrap_err(), GONE);
    let mut bytes = [0; 7];
    let read = open.read_into(100_000, &mut bytes);
    if way.transport() == Transport::Grpc {
        // There are no open files: each read looks the path up.
        assert_eq!(read.unwrap_err().reason, GONE);
    } else {
        assert_eq!(read.unwrap(), 3);
        assert_eq!(&bytes[..3], b"cha", "who has it open still reads it");
    }
}

#[test]
fn what_one_side_does_is_there_for_the_other() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), &["main"], 20);
    let root = dir.path().join("mountpoint");
    world.mount(0, &root);
    for way in Way::ALL {
        let client = world.doors.client(way);
        for _ in 0..3 {
            clients_change_and_the_mount_has_it(&client, &root);
            the_mount_changes_and_clients_have_it(&client, way, &root);
            world.seal_all();
        }
    }
    world.end();
    assert_eq!(check(&dir.path().join("main")), []);
}

/// Everybody at work at once, each in a directory of its own, looked at from the other side after each
/// step, and all in one that they share.
#[test]
fn clients_and_mount_at_work_together_agree() {
    const STEPS: usize = 120;
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), &["main"], 20);
    let root = dir.path().join("mountpoint");
    world.mount(0, &root);
    rustix::process::umask(rustix::fs::Mode::empty());
    fs::create_dir(root.join("shared")).unwrap();
    let seed = Random::new().0;
    let done = AtomicUsize::new(0);
    let below = |directory: &str, path: &str| format!("{directory}/{path}");
    std::thread::scope(|scope| {
        for index in 0..Way::ALL.len() + 2 {
            let (world, root, done) = (&world, &root, &done);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_add(index as u64 * 2) | 1);
                let by_mount = ByMount { root: root.clone() };
                let way = Way::ALL[index % Way::ALL.len()];
                let by_client = ByClient { client: world.doors.client(way), volume: "main" };
                let (actor, witness): (&dyn Doer, &dyn Doer) = if index < Way::ALL.len() {
                    (&by_client, &by_mount)
                } else {
                    (&by_mount, &by_client)
                };
                let own = format!("own-{index}");
                actor.act(&Operation::MakeDirectory(own.clone(), 0o755)).unwrap();
                for step in 0..STEPS {
                    let path = below(&own, &format!("{}", random.below(4)));
                    let content = Content { len: random.below(200_000), seed: random.0 };
                    let operation = match random.below(4) {
                        0 => Operation::Unlink(path.clone()),
                        1 => Operation::Rename(
                            below(&own, &format!("{}", random.below(4))),
                            path.clone(),
                            crate::operation::Move::Replace,
                        ),
                        _ => Operation::Upload {
                            path: path.clone(),
                            content,
                            replace: true,
                            order: random.0,
                        },
                    };
                    let uploaded = matches!(operation, Operation::Upload { .. });
                    let answer = actor.act(&operation);
                    done.fetch_add(usize::from(answer.is_ok()), Ordering::Relaxed);
                    let told = format!("{index}, step {step}, {operation:?}; seed {seed}");
                    for look in [
                        Operation::Stat(path.clone()),
                        Operation::Read { path: path.clone(), offset: 0, len: 300_000 },
                    ] {
                        assert_eq!(witness.act(&look), actor.act(&look), "{told}");
                    }
                    if uploaded {
                        let read = Operation::Read { path, offset: 0, len: 300_000 };
                        let hash = blake3::hash(&content.bytes());
                        let expected = Ok(Answer::Bytes(content.len, hash));
                        assert_eq!(witness.act(&read), expected, "{told}");
                    }
                    // What comes of it depends on the others; what is left, not on who looks.
                    let path = below("shared", &random.path());
                    let other = below("shared", &random.path());
                    let content = Content { len: random.below(100_000), seed: 1 };
                    let operation = match random.below(6) {
                        0 => Operation::MakeDirectory(path, 0o755),
                        1 => Operation::Unlink(path),
                        2 => Operation::Rename(path, other, crate::operation::Move::Exchange),
                        3 => Operation::Link(path, other),
                        4 => Operation::Chmod(path, 0o700 + random.below(8) as u32),
                        _ => {
                            let order = random.0;
                            Operation::Upload { path, content, replace: true, order }
                        }
                    };
                    // Two of the mount's users share the name of what they publish from.
                    let is_upload = matches!(operation, Operation::Upload { .. });
                    if index < Way::ALL.len() || !is_upload {
                        drop(actor.act(&operation));
                    }
                }
            });
        }
    });
    assert!(done.load(Ordering::Relaxed) > STEPS);
    let by_mount = ByMount { root };
    let by_client = ByClient { client: world.doors.client(Way::Inline), volume: "main" };
    for _ in 0..2 {
        let everything = Operation::List(String::new());
        let expected = by_mount.act(&everything);
        assert_eq!(by_client.act(&everything), expected, "seed {seed}");
        let Ok(Answer::Entries(entries)) = expected else { panic!("the root is there") };
        for entry in entries {
            let path = String::from_utf8(entry.path).unwrap();
            let read = Operation::Read { path, offset: 0, len: 300_000 };
            assert_eq!(by_client.act(&read), by_mount.act(&read), "{read:?}; seed {seed}");
        }
        world.seal_all();
    }
    drop(by_client);
    world.end();
    assert_eq!(check(&dir.path().join("main")), []);
}
