//! Contents: by descriptor, through shared memory, in frames.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use librorum_daemon::lbru::{Limits, Options};
use librorum_rpc::frame::{Opcode, feature};
use librorum_rpc::proto::v1;
use librorum_sys::arena::Arena;

use crate::harness::{World, noise, result, transfer};

const LEN: usize = 3_000_000;

#[test]
fn a_small_file_comes_with_the_answer() {
    let world = World::new();
    let mut client = world.greeted();
    client.put("small", b"all of it").unwrap();
    let (opened, frame) = client.read_open(v1::Transport::Fd, "small", 1000, &[]).unwrap();
    assert_eq!((opened.handle, &frame.payload[..]), (0, &b"all of it"[..]));
    assert_eq!(opened.entry.unwrap().size_bytes, 9);
    let (opened, frame) = client.read_open(v1::Transport::Inline, "small", 5, &[]).unwrap();
    assert_ne!(opened.handle, 0);
    assert!(frame.payload.is_empty());
    assert_eq!(client.read(opened.handle, 4, 100).unwrap().0, b"of it");
    let close = v1::ReadCloseRequest { handle: opened.handle };
    client.ok::<v1::ReadCloseResponse>(Opcode::READ_CLOSE, &close);
    assert_eq!(client.read(opened.handle, 0, 1).unwrap_err().kind, "Stale");
    assert_eq!(client.read_open(v1::Transport::Fd, "no", 0, &[]).unwrap_err().kind, "NotFound");
}

/// What the pieces of an answer show.
fn assemble(opened: &v1::OpenReadResponse, descriptors: &[OwnedFd], len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for piece in &opened.pieces {
        assert_eq!(piece.source(), v1::Source::Fd, "{piece:?}");
        let fd = descriptors[piece.fd_index as usize - 1].try_clone().unwrap();
        let range = piece.offset as usize..(piece.offset + piece.len) as usize;
        File::from(fd).read_exact_at(&mut bytes[range], piece.fd_offset).unwrap();
    }
    bytes
}

#[test]
fn a_large_file_is_read_by_descriptor() {
    let world = World::new();
    let data = noise(LEN, 1);
    world.put("large", &data);
    let mut client = world.greeted();
    let (opened, frame) = client.read_open(v1::Transport::Fd, "large", 1000, &[]).unwrap();
    assert_eq!(opened.demoted_because, "");
    assert!(!frame.descriptors.is_empty());
    assert_eq!(assemble(&opened, &frame.descriptors, LEN), data);
    // Read only, whoever holds it.
    assert!(File::from(frame.descriptors[0].try_clone().unwrap()).write_at(b"x", 0).is_err());
    let known: Vec<u64> = opened.pieces.iter().map(|piece| piece.segment).collect();
    let (again, frame) = client.read_open(v1::Transport::Fd, "large", 0, &known).unwrap();
    assert!(frame.descriptors.is_empty());
    assert!(again.pieces.iter().all(|piece| piece.fd_index == 0));
    assert_eq!(again.pieces.len(), opened.pieces.len());
    let stats = world.metrics.stats();
    assert_eq!(stats.lent_descriptors, known.len() as u64);
    assert_eq!(stats.copies_avoided_bytes, 2 * LEN as u64);
}

#[test]
fn leases_are_counted_and_given_back() {
    let limits = Limits { leases_max: 1, ..Limits::default() };
    let world = World::with(Options { limits, ..Options::default() });
    world.put("a", &noise(LEN, 1));
    world.put("b", &noise(LEN, 2));
    let mut client = world.greeted();
    let (first, frame) = client.read_open(v1::Transport::Fd, "a", 0, &[]).unwrap();
    assert_eq!(frame.descriptors.len(), 1);
    let (second, frame) = client.read_open(v1::Transport::Fd, "b", 0, &[]).unwrap();
    assert!(frame.descriptors.is_empty());
    assert_eq!(second.pieces[0].source(), v1::Source::Read);
    assert_ne!(second.demoted_because, "");
    assert!(client.read(second.handle, 0, LEN as u32).unwrap().0 == noise(LEN, 2));
    let release = v1::LeaseReleaseRequest { segments: vec![first.pieces[0].segment, 12345] };
    client.ok::<v1::LeaseReleaseResponse>(Opcode::LEASE_RELEASE, &release);
    let asked = v1::ReadPiecesRequest { handle: second.handle, ..Default::default() };
    let frame = client.call(Opcode::READ_PIECES, &asked, &[]).unwrap();
    assert_eq!(frame.descriptors.len(), 1);
}

#[test]
fn without_the_feature_there_is_no_descriptor() {
    let world = World::new();
    world.put("large", &noise(LEN, 1));
    let mut client = world.connect();
    client.hello(0);
    let (opened, frame) = client.read_open(v1::Transport::Fd, "large", 0, &[]).unwrap();
    assert!(frame.descriptors.is_empty());
    assert_ne!(opened.demoted_because, "");
    let (opened, descriptors) = client.write_open(v1::Transport::Fd, "new", &[]);
    assert_eq!(opened.transport(), v1::Transport::Inline);
    assert!(descriptors.is_empty() && !opened.demoted_because.is_empty());
    let asked = v1::ArenaOpenRequest::default();
    let error = client.call(Opcode::ARENA_OPEN, &asked, &[]).unwrap_err();
    assert_eq!(error.kind, "Unsupported");
}

#[test]
fn a_long_read_comes_in_many_frames() {
    let world = World::new();
    let data = noise(LEN, 3);
    world.put("large", &data);
    let mut client = world.greeted();
    let (opened, _) = client.read_open(v1::Transport::Inline, "large", 0, &[]).unwrap();
    let (bytes, frame_count) = client.read(opened.handle, 5, u32::MAX).unwrap();
    assert!(bytes == data[5..]);
    assert_eq!(frame_count, (LEN - 5).div_ceil(256 << 10));
    assert_eq!(client.read(opened.handle, LEN as u64 + 5, 100).unwrap().0, b"");
    assert_eq!(client.read(opened.handle, u64::MAX, 100).unwrap().0, b"");
}

#[test]
fn contents_go_through_the_arena_both_ways() {
    let world = World::new();
    let data = noise(1 << 20, 4);
    let mut client = world.greeted();
    let asked = v1::ArenaOpenRequest { slot_bytes: 100_000, slot_count: 1000 };
    let frame = client.call(Opcode::ARENA_OPEN, &asked, &[]).unwrap();
    let opened: v1::ArenaOpenResponse = prost::Message::decode(frame.meta).unwrap();
    assert_eq!((opened.slot_bytes, opened.slot_count), (102_400, 64));
    let descriptor = frame.descriptors.into_iter().next().unwrap();
    let arena = Arena::open(descriptor, opened.slot_bytes, opened.slot_count).unwrap();
    let (upload, _) = client.write_open(v1::Transport::Arena, "file", &[]);
    assert_eq!(upload.transport(), v1::Transport::Arena);
    let mut ids = Vec::new();
    for (at, part) in data.chunks(102_400).enumerate() {
        let slot = at as u32;
        arena.copy_in(slot, part).unwrap();
        let offset = at as u64 * 102_400;
        let asked = transfer(upload.upload, offset, part.len() as u32, Some(slot));
        ids.push(client.ask(Opcode::WRITE, &asked, &[]));
    }
    for id in ids {
        result(client.answer(id)).unwrap();
    }
    client.commit(upload.upload, "file", 1 << 20).unwrap();
    let (file, _) = client.read_open(v1::Transport::Arena, "file", 0, &[]).unwrap();
    let id = client.ask(Opcode::READ, &transfer(file.handle, 1000, 102_400, Some(63)), &[]);
    let frame = result(client.answer(id)).unwrap();
    assert_eq!(frame.meta[..], 102_400_u32.to_le_bytes());
    let mut bytes = vec![0; 102_400];
    arena.copy_out(63, &mut bytes).unwrap();
    assert!(bytes == data[1000..103_400]);
    for (len, slot) in [(10, 64), (102_401, 0), (10, u32::MAX - 1)] {
        let id = client.ask(Opcode::READ, &transfer(file.handle, 0, len, Some(slot)), &[]);
        assert_eq!(result(client.answer(id)).unwrap_err().kind, "InvalidInput");
    }
    // The arena cannot be cut, nor opened anew by others.
    let stat = rustix::fs::fstat(arena.descriptor()).unwrap();
    assert_eq!(stat.st_mode & 0o777, 0o600);
    assert!(rustix::fs::ftruncate(arena.descriptor(), 0).is_err());
}

fn write_by_descriptor(client: &mut crate::harness::Raw, data: &[u8]) -> (u64, File) {
    let (opened, descriptors) = client.write_open(v1::Transport::Fd, "file", &[]);
    assert_eq!(opened.transport(), v1::Transport::Fd);
    let file = File::from(descriptors.into_iter().next().unwrap());
    file.write_all_at(data, 0).unwrap();
    (opened.upload, file)
}

#[test]
fn a_commit_proves_that_no_writer_is_left() {
    let world = World::new();
    let mut client = world.greeted();
    let data = noise(100_000, 5);
    let (upload, file) = write_by_descriptor(&mut client, &data);
    let refused = |client: &mut crate::harness::Raw| {
        let error = client.commit(upload, "file", 100_000).unwrap_err();
        assert_eq!(error.kind, "FailedPrecondition");
        assert_eq!(client.stat("file").unwrap_err().kind, "NotFound");
    };
    refused(&mut client);
    // A second description, and a descriptor that lies in a socket's queue.
    let second = File::options()
        .write(true)
        .open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))
        .unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    librorum_sys::socket::send(here.as_fd(), &[std::io::IoSlice::new(b"x")], &[file.as_fd()])
        .unwrap();
    drop(file);
    refused(&mut client);
    drop(second);
    refused(&mut client);
    drop((here, there));
    client.commit(upload, "file", 100_000).unwrap();
    let (opened, _) = client.read_open(v1::Transport::Inline, "file", 0, &[]).unwrap();
    assert!(client.read(opened.handle, 0, 200_000).unwrap().0 == data);
}

#[test]
fn a_mapping_is_a_writer_too() {
    let world = World::new();
    let mut client = world.greeted();
    let (upload, file) = write_by_descriptor(&mut client, &[1; 8192]);
    // A process that maps the file, and closes its descriptor.
    let script = "import mmap, os, time\n\
        m = mmap.mmap(0, 8192)\nos.close(0)\nprint('mapped', flush=True)\ntime.sleep(600)";
    let mut child = std::process::Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(file)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    let error = client.commit(upload, "file", 8192).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(error.kind, "FailedPrecondition");
    client.commit(upload, "file", 8192).unwrap();
}

#[test]
fn an_upload_with_a_key_is_found_again() {
    let world = World::new();
    let mut client = world.greeted();
    let key = [3; 16];
    let (opened, _) = client.write_open(v1::Transport::Inline, "file", &key);
    client.write(opened.upload, 0, &noise(1 << 20, 1)[..1 << 18], None).unwrap();
    drop(client);
    world.wait_until_idle();
    let mut client = world.greeted();
    let asked = v1::QueryUploadRequest { key: key.to_vec().into(), ..Default::default() };
    let found: v1::QueryUploadResponse = client.ok(Opcode::QUERY_UPLOAD, &asked);
    assert!(found.known);
    let (opened, _) = client.write_open(v1::Transport::Inline, "file", &key);
    assert_eq!(opened.received.first().map(|range| (range.start, range.end)), Some((0, 1 << 18)));
    client.ok::<v1::AbortResponse>(Opcode::ABORT, &v1::AbortRequest { upload: opened.upload });
    let error = client.write(opened.upload, 0, b"x", None).unwrap_err();
    assert_eq!(error.kind, "NotFound");
}

#[test]
fn a_write_says_how_long_it_is() {
    let world = World::new();
    let mut client = world.greeted();
    let (opened, _) = client.write_open(v1::Transport::Inline, "file", &[]);
    let id = client.ask(Opcode::WRITE, &transfer(opened.upload, 0, 5, None), b"four");
    assert_eq!(result(client.answer(id)).unwrap_err().kind, "InvalidInput");
    let id = client.ask(Opcode::WRITE, &transfer(opened.upload, 0, 4, Some(0)), &[]);
    assert_eq!(result(client.answer(id)).unwrap_err().kind, "FailedPrecondition");
    let error = client.write(opened.upload, u64::MAX - 2, b"four", None).unwrap_err();
    assert_eq!(error.kind, "TooLarge");
    assert_eq!(feature::ARENA, 4);
}
