//! `kill -9`, of the client and of the daemon, at every step of the protocol.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use librorum_fs::{Fs, FsOptions};
use librorum_rpc::client::{Client, WriteOptions};
use librorum_rpc::frame::{Header, Kind, Opcode};
use librorum_rpc::proto::v1;
use librorum_sys::arena::Arena;
use prost::Message;

use crate::harness::{ALL_FEATURES, Raw, encode, meta, transfer};
use crate::operation::Content;
use crate::process::{Daemon, Process, argument, belongings, doors, say, wait_for_end};
use crate::world::{Way, World, check};

const LEN: usize = 2_000_000;
const PART: usize = 256 << 10;
const OLD: Content = Content { len: LEN, seed: 1 };
const NEW: Content = Content { len: LEN, seed: 2 };
const KEY: [u8; 16] = [9; 16];

/// Where a client may stand when either side dies.
const STEPS: [&str; 24] = [
    "connected",
    "half a header",
    "half of HELLO",
    "HELLO sent",
    "HELLO answered",
    "READ_OPEN sent",
    "descriptors held",
    "READ into frames sent",
    "READ into slots sent",
    "WRITE_OPEN sent",
    "descriptor half written",
    "descriptor written and still open",
    "half of WRITE",
    "WRITE sent",
    "WRITE answered",
    "slots held by the daemon",
    "COMMIT sent",
    "COMMIT answered",
    "keyed upload half written",
    "half of PUT",
    "PUT sent",
    "REMOVE sent",
    "LIST sent",
    "RENAME sent",
];

fn greeted(socket: &Path) -> Raw {
    let mut raw = Raw::new(std::os::unix::net::UnixStream::connect(socket).unwrap());
    raw.hello(ALL_FEATURES);
    raw
}

fn hello() -> Vec<u8> {
    let hello = v1::Hello {
        version_min: 1,
        version_max: 1,
        features: ALL_FEATURES,
        descriptors_max: 16,
        ..Default::default()
    };
    let meta = meta(0, None, &hello.encode_to_vec());
    encode(Header::new(Kind::Req, Opcode::HELLO, 1), &meta, &[])
}

fn open_read(want: v1::Transport) -> Vec<u8> {
    let want = want.into();
    v1::OpenReadRequest { path: "old".into(), want, ..Default::default() }.encode_to_vec()
}

fn open_write(want: v1::Transport, key: &[u8]) -> Vec<u8> {
    let (want, key) = (want.into(), key.to_vec().into());
    v1::OpenWriteRequest { path: "file".into(), want, key, ..Default::default() }.encode_to_vec()
}

/// All but the commit of `file`'s new content.
fn write_all(raw: &mut Raw) -> u64 {
    raw.upload(v1::Transport::Inline, "file", &NEW.bytes())
}

fn commit(upload: u64) -> Vec<u8> {
    let (path, len, mode) = ("file".into(), LEN as u64, 0o644);
    v1::CommitRequest { upload, path, len, mode, ..Default::default() }.encode_to_vec()
}

fn put() -> (Vec<u8>, Vec<u8>) {
    let asked = v1::PutRequest { path: "small".into(), mode: 0o644, ..Default::default() };
    (asked.encode_to_vec(), Content { len: 50_000, seed: 2 }.bytes())
}

fn arena(raw: &mut Raw) -> Arena {
    let asked = v1::ArenaOpenRequest::default();
    let mut frame = raw.call(Opcode::ARENA_OPEN, &asked, &[]).unwrap();
    let opened = v1::ArenaOpenResponse::decode(frame.meta).unwrap();
    let descriptor = frame.descriptors.pop().unwrap();
    Arena::open(descriptor, opened.slot_bytes, opened.slot_count).unwrap()
}

/// Sends a request's first half.
fn half(raw: &mut Raw, opcode: Opcode, message: &[u8], payload: &[u8]) {
    let id = raw.id();
    let frame = encode(Header::new(Kind::Req, opcode, id), &meta(0, None, message), payload);
    raw.bytes(&frame[..frame.len() / 2]).unwrap();
}

/// Goes up to a step. What it answers is what a client would still hold there.
fn go_to(step: &str, socket: &Path) -> Box<dyn std::any::Any> {
    if matches!(step, "connected" | "half a header" | "half of HELLO" | "HELLO sent") {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let bytes = hello();
        let len = match step {
            "connected" => 0,
            "half a header" => 16,
            "half of HELLO" => bytes.len() - 3,
            _ => bytes.len(),
        };
        stream.write_all(&bytes[..len]).unwrap();
        return Box::new(stream);
    }
    let mut raw = greeted(socket);
    match step {
        "HELLO answered" => {}
        "READ_OPEN sent" => {
            // Their descriptors are on the way, or in the socket.
            for _ in 0..8 {
                raw.ask(Opcode::READ_OPEN, &open_read(v1::Transport::Fd), &[]);
            }
        }
        "descriptors held" => {
            let (opened, frame) = raw.read_open(v1::Transport::Fd, "old", 0, &[]).unwrap();
            assert!(!frame.descriptors.is_empty(), "{opened:?}");
            return Box::new((raw, frame));
        }
        "READ into frames sent" => {
            let (opened, _) = raw.read_open(v1::Transport::Inline, "old", 0, &[]).unwrap();
            for part in 0..7 {
                let asked = transfer(opened.handle, part * PART as u64, PART as u32, None);
                raw.ask(Opcode::READ, &asked, &[]);
            }
        }
        "READ into slots sent" => {
            let arena = arena(&mut raw);
            let (opened, _) = raw.read_open(v1::Transport::Arena, "old", 0, &[]).unwrap();
            for slot in 0..7 {
                let offset = u64::from(slot) * PART as u64;
                let asked = transfer(opened.handle, offset, PART as u32, Some(slot));
                raw.ask(Opcode::READ, &asked, &[]);
            }
            return Box::new((raw, arena));
        }
        "WRITE_OPEN sent" => {
            raw.ask(Opcode::WRITE_OPEN, &open_write(v1::Transport::Fd, &[]), &[]);
        }
        "descriptor half written" | "descriptor written and still open" => {
            let (opened, mut fds) = raw.write_open(v1::Transport::Fd, "file", &[]);
            let file = std::fs::File::from(fds.pop().unwrap());
            if step == "descriptor half written" {
                file.write_all_at(&NEW.bytes()[..LEN / 2], 0).unwrap();
            } else {
                file.write_all_at(&NEW.bytes(), 0).unwrap();
                // Which is refused: we could still write.
                raw.ask(Opcode::COMMIT, &commit(opened.upload), &[]);
            }
            return Box::new((raw, file));
        }
        "half of WRITE" | "WRITE sent" | "WRITE answered" => {
            let (opened, _) = raw.write_open(v1::Transport::Inline, "file", &[]);
            let part = &NEW.bytes()[..PART];
            let asked = transfer(opened.upload, 0, PART as u32, None);
            match step {
                "half of WRITE" => half(&mut raw, Opcode::WRITE, &asked, part),
                "WRITE sent" => {
                    raw.ask(Opcode::WRITE, &asked, part);
                }
                _ => {
                    raw.write(opened.upload, 0, part, None).unwrap();
                }
            }
        }
        "slots held by the daemon" => {
            let arena = arena(&mut raw);
            let (opened, _) = raw.write_open(v1::Transport::Arena, "file", &[]);
            let bytes = NEW.bytes();
            for slot in 0..7_u32 {
                let at = slot as usize * PART;
                arena.copy_in(slot, &bytes[at..at + PART]).unwrap();
                let asked = transfer(opened.upload, at as u64, PART as u32, Some(slot));
                raw.ask(Opcode::WRITE, &asked, &[]);
            }
            return Box::new((raw, arena));
        }
        "COMMIT sent" => {
            let upload = write_all(&mut raw);
            raw.ask(Opcode::COMMIT, &commit(upload), &[]);
        }
        "COMMIT answered" => {
            let upload = write_all(&mut raw);
            raw.commit(upload, "file", LEN as u64).unwrap();
        }
        "keyed upload half written" => {
            let (opened, _) = raw.write_open(v1::Transport::Inline, "file", &KEY);
            let bytes = NEW.bytes();
            for part in [0, 1, 4] {
                let at = part * PART;
                raw.write(opened.upload, at as u64, &bytes[at..at + PART], None).unwrap();
            }
        }
        "half of PUT" | "PUT sent" => {
            let (asked, data) = put();
            if step == "PUT sent" {
                raw.ask(Opcode::PUT, &asked, &data);
            } else {
                half(&mut raw, Opcode::PUT, &asked, &data);
            }
        }
        "REMOVE sent" => {
            let asked =
                v1::RemoveRequest { path: "tree".into(), recursive: true, ..Default::default() };
            raw.ask(Opcode::REMOVE, &asked.encode_to_vec(), &[]);
        }
        "LIST sent" => {
            let asked = v1::ListRequest { recursive: true, ..Default::default() };
            raw.ask(Opcode::LIST, &asked.encode_to_vec(), &[]);
        }
        "RENAME sent" => {
            let asked = v1::RenameRequest {
                from: "file".into(),
                to: "old".into(),
                replace: v1::Replace::Exchange.into(),
                ..Default::default()
            };
            raw.ask(Opcode::RENAME, &asked.encode_to_vec(), &[]);
        }
        other => panic!("no step {other}"),
    }
    Box::new(raw)
}

/// The client that is killed: goes to its step and stands there.
pub(crate) fn stand() {
    let step = argument("STEP");
    let held = match Way::of(&step) {
        Some(way) => stand_by_client(&doors().client(way)),
        None => go_to(&step, &doors().socket),
    };
    say("there");
    wait_for_end();
    drop(held);
}

/// An upload half written and a file half read.
fn stand_by_client(client: &Client) -> Box<dyn std::any::Any> {
    let options = WriteOptions { size_hint: LEN as u64, ..WriteOptions::default() };
    let upload = client.create("", b"file", options).unwrap();
    upload.write_at(0, &NEW.bytes()[..LEN / 2]).unwrap();
    let file = client.open("", b"old").unwrap();
    let mut part = vec![0; LEN / 3];
    assert_eq!(file.read_into(0, &mut part).unwrap(), part.len());
    Box::new((upload, file))
}

fn put_all(client: &Client, path: &str, content: Content) {
    let upload = client.create("", path.as_bytes(), WriteOptions::default()).unwrap();
    upload.write_at(0, &content.bytes()).unwrap();
    assert_eq!(upload.commit().unwrap().size_bytes, content.len as u64);
}

fn read_all(client: &Client, path: &str) -> Vec<u8> {
    let file = client.open("", path.as_bytes()).unwrap();
    let mut bytes = vec![0; file.len() as usize + 1];
    let len = file.read_into(0, &mut bytes).unwrap();
    assert_eq!(len as u64, file.len());
    bytes.truncate(len);
    bytes
}

/// What each step finds.
fn prepare(daemon: &mut Daemon) {
    let client = daemon.doors.client(Way::Inline);
    put_all(&client, "file", OLD);
    put_all(&client, "old", OLD);
    put_all(&client, "small", Content { len: 50_000, seed: 1 });
    let mut pipeline = client.pipeline();
    let mut tickets = Vec::new();
    for name in 0..40 {
        let path = format!("tree/{name}/below").into();
        let asked = v1::MakeDirectoryRequest { path, parents: true, ..Default::default() };
        tickets.push(pipeline.make_directory(&asked));
    }
    let mut answers = pipeline.send().unwrap();
    for ticket in tickets {
        answers.take(ticket).unwrap();
    }
    daemon.seal();
}

/// Names have their old content or their new one, whole; trees may be gone in part.
fn assert_whole(client: &Client, step: &str) {
    for (path, len) in [("file", LEN), ("old", LEN), ("small", 50_000)] {
        let found = read_all(client, path);
        let is_whole = [1, 2].iter().any(|&seed| found == Content { len, seed }.bytes());
        assert!(is_whole, "'{step}': {path} is torn, of {} bytes", found.len());
    }
    let listed = v1::ListRequest { recursive: true, ..Default::default() };
    for entry in client.entries(listed) {
        let path = entry.unwrap().path;
        let name = path.split(|&byte| byte == b'/').next().unwrap();
        let known: [&[u8]; 4] = [b"file", b"old", b"small", b"tree"];
        assert!(known.contains(&name), "'{step}' left {}", path.escape_ascii());
    }
}

/// Goes on with the keyed upload, and counts what has to be sent for it.
fn resume(client: &Client, step: &str) {
    let bytes = NEW.bytes();
    let blake3 = Some(*blake3::hash(&bytes).as_bytes());
    let options = WriteOptions { key: Some(KEY), blake3, ..WriteOptions::default() };
    let upload = client.create("", b"file", options).unwrap();
    let received = upload.received();
    let part = PART as u64;
    let expected =
        [v1::Range { start: 0, end: 2 * part }, v1::Range { start: 4 * part, end: 5 * part }];
    assert_eq!(received, expected, "'{step}'");
    let mut at = 0;
    for range in received.into_iter().chain([v1::Range { start: LEN as u64, end: 0 }]) {
        let lacking = at as usize..range.start as usize;
        if !lacking.is_empty() {
            upload.write_at(at, &bytes[lacking]).unwrap();
        }
        at = range.end;
    }
    assert_eq!(upload.commit().unwrap().size_bytes, LEN as u64);
    let sent: u64 = client
        .transports()
        .iter()
        .filter(|used| used.operation == "WRITE")
        .map(|used| used.bytes)
        .sum();
    assert_eq!(sent, LEN as u64 - 3 * part, "'{step}' sends what lacks");
    assert!(read_all(client, "file") == bytes, "'{step}'");
}

#[test]
fn a_client_that_is_killed_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    prepare(&mut daemon);
    let ways = Way::ALL.map(|way| format!("{way:?}"));
    let steps: Vec<&str> = STEPS.into_iter().chain(ways.iter().map(String::as_str)).collect();
    // What starts with the first need for it is there before anything is counted.
    for way in Way::ALL {
        assert_whole(&daemon.doors.client(way), "before");
    }
    daemon.wait_until_idle();
    let mut idle = None;
    for round in 0..2 {
        for step in &steps {
            let mut arguments = daemon.arguments();
            arguments.push(("STEP", (*step).to_owned()));
            let mut client = Process::start("stander", &arguments);
            assert_eq!(client.hear(), "there");
            client.kill();
            daemon.wait_until_idle();
            let client = daemon.doors.client(Way::Inline);
            assert_whole(&client, step);
            if *step == "keyed upload half written" {
                resume(&client, step);
            }
            if *step == "REMOVE sent" || *step == "COMMIT answered" {
                drop(client);
                prepare(&mut daemon);
            }
        }
        daemon.wait_until_idle();
        let id = daemon.process.id();
        let before = idle.get_or_insert_with(|| belongings(id)).clone();
        let mut found = before.clone();
        crate::harness::eventually("everything to be let go", || {
            found = belongings(id);
            found == before || round == 0
        });
        assert_eq!(found, before);
        assert_eq!(found.get("memfd"), None, "{found:?}");
        assert_eq!(found.get("mapping of shared memory"), None, "{found:?}");
        assert_eq!(found.get("upload with a name"), None, "{found:?}");
        assert_eq!(found.get("connection's thread"), None, "{found:?}");
    }
    daemon.stop();
    // Among other things that no file is there that nothing names.
    assert_eq!(check(&dir.path().join("main")), []);
    let kept = dir.path().join("main/uploads");
    assert!(!kept.exists() || std::fs::read_dir(kept).unwrap().count() == 0);
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_torn() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    prepare(&mut daemon);
    for step in STEPS {
        let held = go_to(step, &daemon.doors.socket);
        daemon.process.kill();
        drop(held);
        let folder = dir.path().join("main");
        let damage: Vec<_> = check(&folder).into_iter().filter(|found| found.damage).collect();
        assert_eq!(damage, [], "'{step}'");
        daemon = Daemon::start(dir.path());
        let client = daemon.doors.client(Way::Inline);
        assert_whole(&client, step);
        if step == "keyed upload half written" {
            resume(&client, step);
        }
        drop(client);
        if step == "REMOVE sent" || step == "COMMIT answered" {
            prepare(&mut daemon);
        }
        daemon.wait_until_idle();
    }
    daemon.stop();
    let folder = dir.path().join("main");
    give_back_what_was_left(&folder);
    assert_eq!(check(&folder), []);
}

/// Opens the volume until the search for what kills have left has ended: then it is closed without its
/// mark of being open, or the next one would search again.
fn give_back_what_was_left(folder: &Path) {
    crate::harness::eventually("what was left to be found", || {
        let fs = Fs::open_volume(folder, FsOptions::default()).unwrap();
        // One round of the search, and the removal of what it found.
        librorum_sys::clock::sleep(Duration::from_millis(1100));
        fs.shut_down().unwrap();
        !folder.join("open").exists()
    });
}

/// Space that clients' deaths took is given back: of uploads without a key at once.
#[test]
fn the_space_of_abandoned_uploads_is_free_again() {
    const BYTES: usize = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    prepare(&mut daemon);
    daemon.wait_until_idle();
    let id = daemon.process.id();
    let unnamed = || {
        let mut blocks = 0;
        for entry in std::fs::read_dir(format!("/proc/{id}/fd")).unwrap() {
            let path = entry.unwrap().path();
            let Ok(target) = std::fs::read_link(&path) else { continue };
            if target.to_string_lossy().ends_with(" (deleted)") {
                use std::os::unix::fs::MetadataExt;
                blocks += std::fs::metadata(&path).map_or(0, |found| found.blocks() * 512);
            }
        }
        blocks
    };
    let before = unnamed();
    let client = daemon.doors.client(Way::Descriptor);
    let options = WriteOptions { size_hint: BYTES as u64, ..WriteOptions::default() };
    let upload = client.create("", b"file", options).unwrap();
    let part = Content { len: 1 << 20, seed: 3 }.bytes();
    for at in 0..BYTES >> 20 {
        upload.write_at((at << 20) as u64, &part).unwrap();
    }
    assert!(unnamed() >= before + BYTES as u64, "{before}, {}", unnamed());
    drop((upload, client));
    daemon.wait_until_idle();
    crate::harness::eventually("the file to go", || unnamed() <= before);
    daemon.stop();
}

/// Whoever lost a connection may open its upload again before the daemon has seen that the old one is
/// gone. The end of the old session once closed the upload under the new one.
#[test]
fn an_upload_with_a_key_outlives_the_session_that_began_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::open(dir.path(), &["main"], 20);
    let bytes = NEW.bytes();
    let mut first = greeted(&world.doors.socket);
    let (opened, _) = first.write_open(v1::Transport::Inline, "file", &KEY);
    first.write(opened.upload, 0, &bytes[..PART], None).unwrap();
    let mut second = greeted(&world.doors.socket);
    let (again, _) = second.write_open(v1::Transport::Inline, "file", &KEY);
    assert_eq!(again.received, [v1::Range { start: 0, end: PART as u64 }]);
    drop(first);
    crate::harness::eventually("the first session to end", || world.server.session_count() == 1);
    second.write(again.upload, PART as u64, &bytes[PART..2 * PART], None).unwrap();
    let entry = second.commit(again.upload, "file", 2 * PART as u64).unwrap();
    assert_eq!(entry.size_bytes, 2 * PART as u64);
    drop(second);
    world.end();
}
