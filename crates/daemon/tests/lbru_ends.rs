//! A connection may end at any step of any request: nothing of it is left. One test, in a process of its
//! own, because it counts the descriptors and threads of all of it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

#[path = "lbru/harness.rs"]
mod harness;

use librorum_rpc::frame::{Header, Kind, Opcode};
use librorum_rpc::proto::v1;
use prost::Message;

use harness::{Raw, World, encode, eventually, meta, noise, transfer};

fn open_files() -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.display().to_string())
        .filter(|target| {
            ["socket:", "eventfd", "memfd", "(deleted)"].iter().any(|kind| target.contains(kind))
        })
        .collect();
    found.sort();
    found
}

fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

type Step = (&'static str, fn(&mut Raw));

/// What a client does before it is gone.
const STEPS: &[Step] = &[
    ("hello", |_| ()),
    ("half a header", |client| {
        client.bytes(b"LBRU\x01\x01").unwrap();
    }),
    ("half a payload", |client| {
        let header = Header { payload_len: 100_000, ..Header::new(Kind::Req, Opcode::PUT, 1001) };
        client.bytes(&header.encode()).unwrap();
        client.bytes(&[0; 50_000]).unwrap();
    }),
    ("an open file", |client| {
        client.read_open(v1::Transport::Inline, "large", 0, &[]).unwrap();
    }),
    ("lent descriptors", |client| {
        client.read_open(v1::Transport::Fd, "large", 0, &[]).unwrap();
    }),
    ("lent descriptors that are not received", |client| {
        let asked = v1::OpenReadRequest {
            path: "large".into(),
            want: v1::Transport::Fd.into(),
            ..Default::default()
        };
        for _ in 0..50 {
            client.ask(Opcode::READ_OPEN, &asked.encode_to_vec(), &[]);
        }
    }),
    ("an answer that is not read", |client| {
        let (opened, _) = client.read_open(v1::Transport::Inline, "large", 0, &[]).unwrap();
        client.ask(Opcode::READ, &transfer(opened.handle, 0, 3_000_000, None), &[]);
        client.next().unwrap();
    }),
    ("an upload in frames", |client| {
        client.upload(v1::Transport::Inline, "new", &noise(500_000, 1));
    }),
    ("an upload by descriptor", |client| {
        client.write_open(v1::Transport::Fd, "new", &[]);
    }),
    ("an upload that is just being opened", |client| {
        let asked = v1::OpenWriteRequest { path: "new".into(), ..Default::default() };
        for _ in 0..50 {
            client.ask(Opcode::WRITE_OPEN, &asked.encode_to_vec(), &[]);
        }
    }),
    ("a commit", |client| {
        let upload = client.upload(v1::Transport::Inline, "new", &noise(500_000, 1));
        let asked = v1::CommitRequest {
            upload,
            path: "new".into(),
            len: 500_000,
            durable: true,
            ..Default::default()
        };
        client.ask(Opcode::COMMIT, &asked.encode_to_vec(), &[]);
    }),
    ("an arena", |client| {
        client.call(Opcode::ARENA_OPEN, &v1::ArenaOpenRequest::default(), &[]).unwrap();
    }),
    ("an arena that is being read into", |client| {
        client.call(Opcode::ARENA_OPEN, &v1::ArenaOpenRequest::default(), &[]).unwrap();
        let (opened, _) = client.read_open(v1::Transport::Arena, "large", 0, &[]).unwrap();
        for slot in 0..8 {
            client.ask(Opcode::READ, &transfer(opened.handle, 0, 256 << 10, Some(slot)), &[]);
        }
    }),
    ("a wait for the log", |client| {
        let asked = v1::LogsRequest { wait_ms: 600_000, after: 1 << 60, ..Default::default() };
        client.ask(Opcode::LOGS, &asked.encode_to_vec(), &[]);
        client.ask(Opcode::LOGS, &asked.encode_to_vec(), &[]);
    }),
    ("a request with a key", |client| {
        let asked = v1::MakeDirectoryRequest { path: "folder".into(), ..Default::default() };
        for _ in 0..20 {
            let key = Some([1; 16]);
            client.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &asked.encode_to_vec(), &[]);
        }
    }),
    ("garbage", |client| {
        client.bytes(&[0xa5; 1000]).unwrap();
    }),
    ("descriptors", |client| {
        let null = std::fs::File::open("/dev/null").unwrap();
        let header = Header { fd_count: 3, ..Header::new(Kind::Req, Opcode::STAT, 1001) };
        let bytes = encode(header, &meta(0, None, &[]), &[]);
        let fd = std::os::fd::AsFd::as_fd(&null);
        client.send_with(&bytes, &[fd, fd, fd]).unwrap();
    }),
];

#[test]
fn nothing_is_left_of_a_client_that_is_gone() {
    let world = World::new();
    world.put("large", &noise(3_000_000, 1));
    world.wait_until_idle();
    // What is started once and stays: workers, files of the volume.
    for (_, step) in STEPS {
        let mut client = world.greeted();
        step(&mut client);
    }
    world.wait_until_idle();
    eventually("the uploads to end", || world.service.upload_count() == 0);
    // Workers leave after ten seconds without work.
    let mut threads = thread_count();
    eventually("idle workers to leave", || {
        librorum_sys::clock::sleep(std::time::Duration::from_millis(500));
        let now = thread_count();
        let is_stable = now == threads;
        threads = now;
        is_stable
            && !std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
                let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
                name.unwrap_or_default().starts_with("lbru-work")
            })
    });
    let files = open_files();
    for (what, step) in STEPS {
        for round in 0..3 {
            let mut client = world.greeted();
            step(&mut client);
            if round == 1 {
                librorum_sys::clock::sleep(std::time::Duration::from_millis(20));
            }
            drop(client);
        }
        world.wait_until_idle();
        eventually(what, || world.service.upload_count() == 0);
        eventually(what, || open_files() == files);
    }
    let stats = world.metrics.stats();
    assert_eq!((stats.connections, stats.requests_in_flight), (0, 0));
    world.server.shut_down();
    assert!(world.server.connection_count() == 0);
    eventually("all threads to end", || {
        !std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
            let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
            name.unwrap_or_default().starts_with("lbru-")
        })
    });
}
