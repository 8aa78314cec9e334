//! Peers that mean no good, or do not read.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use librorum_daemon::lbru::{Allowed, Limits, Options};
use librorum_rpc::frame::{Header, Kind, Opcode};
use librorum_rpc::proto::v1;
use prost::Message;

use crate::harness::{ALL_FEATURES, Raw, World, encode, eventually, meta, noise, transfer};

#[test]
fn a_damaged_header_is_the_end() {
    let world = World::new();
    let good = encode(Header::new(Kind::Req, Opcode::STAT, 3), &meta(0, None, &[]), &[]);
    for at in 0..32 {
        let mut client = world.greeted();
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        client.bytes(&bad).unwrap();
        assert_eq!(client.ends().unwrap().kind, "Protocol", "byte {at}");
    }
    world.wait_until_idle();
}

#[test]
fn lengths_that_are_too_long_are_not_waited_for() {
    let world = World::new();
    for (payload_len, fd_count, kind) in [
        (u32::MAX, 0, Kind::Req),
        ((256 << 10) + 1, 0, Kind::Req),
        (0, 1, Kind::Req),
        (0, 255, Kind::Req),
        (65, 0, Kind::Ping),
    ] {
        let mut client = world.greeted();
        let header =
            Header { payload_len, fd_count, ..Header::new(kind, Opcode::PUT, client.id()) };
        client.bytes(&header.encode()).unwrap();
        assert_eq!(client.ends().unwrap().kind, "Protocol");
    }
    // A request that is shorter than what it has to have.
    let mut client = world.greeted();
    let id = client.id();
    client.frame(Header::new(Kind::Req, Opcode::STAT, id), &[0; 15], &[]).unwrap();
    assert_eq!(client.ends().unwrap().kind, "Protocol");
    // What only a daemon says.
    for kind in [Kind::Res, Kind::Data, Kind::Credit] {
        let mut client = world.greeted();
        client.frame(Header::new(kind, Opcode::STAT, 3), &[], &[]).unwrap();
        assert_eq!(client.ends().unwrap().kind, "Protocol");
    }
    world.wait_until_idle();
}

#[test]
fn a_message_in_single_bytes_is_one_message() {
    let world = World::new();
    let mut client = world.greeted();
    let id = client.id();
    let asked = v1::PutRequest { path: "file".into(), mode: 0o600, ..Default::default() };
    let header = Header::new(Kind::Req, Opcode::PUT, id);
    for byte in encode(header, &meta(0, None, &asked.encode_to_vec()), b"payload") {
        client.bytes(&[byte]).unwrap();
    }
    assert_eq!(client.answer(id).header.status, 0);
    assert_eq!(client.stat("file").unwrap().size_bytes, 7);
}

fn open_count() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let world = World::new();
    let null = File::open("/dev/null").unwrap();
    let stat = |client: &mut Raw, fd_count| {
        let header = Header { fd_count, ..Header::new(Kind::Req, Opcode::STAT, client.id()) };
        encode(header, &meta(0, None, &[]), &[])
    };
    let before = open_count();
    for round in 0..50 {
        for count in [1, 2, 60] {
            let mut client = world.greeted();
            // In the header's claim or not, at its start or in the middle.
            let bytes = stat(&mut client, if round % 2 == 0 { 0 } else { count as u8 });
            let half = if round % 3 == 0 { bytes.len() / 2 } else { 0 };
            let descriptors = vec![null.as_fd(); count];
            client.bytes(&bytes[..half]).unwrap();
            client.send_with(&bytes[half..], &descriptors).unwrap();
            while client.next().is_some() {}
        }
    }
    world.wait_until_idle();
    // Other tests of this process open and close theirs meanwhile, but not thousands.
    assert!(open_count() < before + 1000);
}

/// Runs a script as another user, with the test's end of a socket as its standard input.
fn as_other_user(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=12345",
            "--regid=12345",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            script,
        ])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: it takes two users, and only root has them");
    }
    is_root
}

#[test]
fn a_lent_descriptor_is_not_reopened_for_writing_by_another_user() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let data = noise(1_000_000, 1);
    world.put("file", &data);
    let mut client = world.greeted();
    let (_, frame) = client.read_open(v1::Transport::Fd, "file", 0, &[]).unwrap();
    let asked = v1::ArenaOpenRequest::default();
    let arena = client.call(Opcode::ARENA_OPEN, &asked, &[]).unwrap();
    // As if it had been lent to that user: the descriptor is what counts.
    let script = "import os, sys\n\
        os.read(0, 10)\n\
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):\n\
        \x20   try:\n\
        \x20       os.open('/proc/self/fd/0', flags)\n\
        \x20       print('opened')\n\
        \x20   except PermissionError:\n\
        \x20       print('refused')\n";
    for descriptor in [&frame.descriptors[0], &arena.descriptors[0]] {
        let out = as_other_user(script, &[])
            .stdin(File::from(descriptor.try_clone().unwrap()))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "refused\nrefused\nrefused\n");
    }
}

/// Says HELLO and one more request as another user; prints the status of each answer, and whether
/// descriptors came.
const OTHER_CLIENT: &str = r"
import socket, struct, sys, array
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
for frame in sys.argv[2:]:
    try: s.sendall(bytes.fromhex(frame))
    except BrokenPipeError: pass  # refused already, which is there to be read
    data, ancillary = b'', []
    while len(data) < 32:
        part, more, _, _ = s.recvmsg(65536, 4096)
        if not part: break
        data += part; ancillary += more
    if len(data) < 32:
        print('end'); break
    print(data[5], data[27], sum(len(a[2]) // 4 for a in ancillary))
";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn request(opcode: Opcode, id: u64, message: &impl Message) -> String {
    let meta = meta(0, None, &message.encode_to_vec());
    hex(&encode(Header::new(Kind::Req, opcode, id), &meta, &[]))
}

fn talk(world: &World, frames: &[String]) -> String {
    let mut arguments = vec![world.socket.to_str().unwrap()];
    arguments.extend(frames.iter().map(String::as_str));
    let out = as_other_user(OTHER_CLIENT, &arguments).output().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn hello(hello: v1::Hello) -> String {
    let hello = v1::Hello {
        version_min: 1,
        version_max: 1,
        features: ALL_FEATURES,
        descriptors_max: 16,
        ..hello
    };
    request(Opcode::HELLO, 1, &hello)
}

#[test]
fn another_user_gets_no_descriptor_to_write_to_and_no_session_but_his_own() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let open = v1::OpenWriteRequest {
        path: "new".into(),
        want: v1::Transport::Fd.into(),
        ..Default::default()
    };
    let said = talk(&world, &[hello(v1::Hello::default()), request(Opcode::WRITE_OPEN, 3, &open)]);
    assert_eq!(said, "2 0 0\n2 0 0\n");
    let root = world.greeted();
    let join = v1::Hello {
        session: root.reply.session,
        session_secret: root.reply.session_secret.clone(),
        ..Default::default()
    };
    assert_eq!(talk(&world, &[hello(join)]), "2 7 0\n");
    drop(root);
    world.wait_until_idle();
}

#[test]
fn who_is_not_on_the_list_needs_a_token() {
    if !is_root() {
        return;
    }
    let allowed = Some(Allowed { uids: vec![1], gids: vec![2] });
    let world = World::with(Options { allowed, ..Options::default() });
    // GOAWAY, before anything was said.
    assert!(talk(&world, &[hello(v1::Hello::default())]).starts_with("7 0 0"));
    let allowed = Some(Allowed { uids: Vec::new(), gids: vec![12_345] });
    let world = World::with(Options { allowed, ..Options::default() });
    assert_eq!(talk(&world, &[hello(v1::Hello::default())]), "2 0 0\n");
    let allowed = Some(Allowed::default());
    let token = Some(b"secret".to_vec());
    let world = World::with(Options { allowed, token, ..Options::default() });
    assert_eq!(talk(&world, &[hello(v1::Hello::default())]), "2 16 0\n");
    let wrong = v1::Hello { token: "secres".into(), ..Default::default() };
    assert_eq!(talk(&world, &[hello(wrong)]), "2 16 0\n");
    let right = v1::Hello { token: "secret".into(), ..Default::default() };
    assert_eq!(talk(&world, &[hello(right)]), "2 0 0\n");
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn who_does_not_read_costs_little_and_delays_nobody() {
    let world = World::new();
    let data = noise(16 << 20, 1);
    world.put("large", &data);
    let mut stopped: Vec<Raw> = (0..20).map(|_| world.greeted()).collect();
    let before = resident_bytes();
    for client in &mut stopped {
        let (opened, _) = client.read_open(v1::Transport::Inline, "large", 0, &[]).unwrap();
        // 16 MiB at once, which is allowed once, and then as many small ones as fit the socket.
        client.ask(Opcode::READ, &transfer(opened.handle, 0, 16 << 20, None), &[]);
        client.stream.set_nonblocking(true).unwrap();
        let mut asked = 0_u64;
        loop {
            let id = client.id();
            let header = Header::new(Kind::Req, Opcode::STAT, id);
            let frame = encode(header, &meta(0, None, &[]), &[]);
            match client.stream.write(&frame) {
                Ok(count) if count == frame.len() => asked += 1,
                _ => break,
            }
            if asked > 1_000_000 {
                panic!("a client that does not read is read from for ever");
            }
        }
    }
    let mut others = world.greeted();
    for _ in 0..2000 {
        assert!(others.is_answered());
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 20 * (12 << 20), "{grown} bytes for 20 clients");
    drop(stopped);
    drop(others);
    world.wait_until_idle();
}

#[test]
fn a_client_that_was_stopped_goes_on_where_it_was() {
    let world = World::new();
    let data = noise(8 << 20, 2);
    world.put("large", &data);
    let mut slow = world.greeted();
    let (opened, _) = slow.read_open(v1::Transport::Inline, "large", 0, &[]).unwrap();
    let id = slow.ask(Opcode::READ, &transfer(opened.handle, 0, 8 << 20, None), &[]);
    let mut others = world.greeted();
    for _ in 0..500 {
        assert!(others.is_answered());
    }
    let mut bytes = Vec::new();
    loop {
        let frame = slow.answer(id);
        bytes.extend_from_slice(&frame.payload);
        if frame.header.kind == Kind::Res {
            break;
        }
        assert!(others.is_answered());
    }
    assert!(bytes == data);
    assert!(slow.is_answered());
}

#[test]
fn bulk_beside_control_leaves_control_its_turn() {
    let world = World::new();
    let data = noise(4 << 20, 2);
    world.put("large", &data);
    let stop = Arc::new(AtomicBool::new(false));
    let moved = Arc::new(AtomicU64::new(0));
    let bulk: Vec<_> = (0..2)
        .map(|_| {
            let mut client = world.greeted();
            let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
            std::thread::spawn(move || {
                let (opened, _) = client.read_open(v1::Transport::Inline, "large", 0, &[]).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let (bytes, _) = client.read(opened.handle, 0, 4 << 20).unwrap();
                    moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut control = world.greeted();
    let asked = Mutex::new(0);
    eventually("bulk and control both to get on", || {
        for _ in 0..50 {
            assert!(control.is_answered());
        }
        let mut asked = asked.lock().unwrap();
        *asked += 50;
        *asked >= 1000 && moved.load(Ordering::Relaxed) > 16 << 20
    });
    stop.store(true, Ordering::Relaxed);
    for thread in bulk {
        thread.join().unwrap();
    }
}

#[test]
fn limits_of_files_and_shared_memory_hold() {
    let limits = Limits {
        handles_max: 2,
        uploads_max: 2,
        arena_bytes_per_user_max: 3 << 20,
        ..Limits::default()
    };
    let world = World::with(Options { limits, ..Options::default() });
    world.put("file", &noise(100_000, 1));
    let mut client = world.greeted();
    for _ in 0..2 {
        client.read_open(v1::Transport::Inline, "file", 0, &[]).unwrap();
        client.write_open(v1::Transport::Inline, "new", &[]);
    }
    let error = client.read_open(v1::Transport::Inline, "file", 0, &[]).unwrap_err();
    assert_eq!(error.kind, "Overloaded");
    let asked = v1::OpenWriteRequest { path: "new".into(), ..Default::default() };
    assert_eq!(client.call(Opcode::WRITE_OPEN, &asked, &[]).unwrap_err().kind, "Overloaded");
    assert_eq!(world.service.upload_count(), 2);
    let mut other = world.greeted();
    let asked = v1::ArenaOpenRequest::default();
    client.call(Opcode::ARENA_OPEN, &asked, &[]).unwrap();
    client.call(Opcode::ARENA_OPEN, &asked, &[]).unwrap();
    let error = other.call(Opcode::ARENA_OPEN, &asked, &[]).unwrap_err();
    assert_eq!(error.kind, "Overloaded");
    drop((client, other));
    world.wait_until_idle();
    let mut other = world.greeted();
    other.call(Opcode::ARENA_OPEN, &asked, &[]).unwrap();
}

#[test]
fn a_socket_pair_is_served_too() {
    let world = World::new();
    let (here, there) = UnixStream::pair().unwrap();
    world.server.serve_connection(there);
    let mut client = Raw::new(here);
    client.hello(ALL_FEATURES);
    assert!(client.is_answered());
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    world.wait_until_idle();
}
