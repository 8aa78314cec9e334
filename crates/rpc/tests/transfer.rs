//! Contents, over every way that frames know, against a daemon that is played from a script.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    clippy::wildcard_enum_match_arm,
    reason = "tests"
)]

mod peer;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use librorum_format::ErrorKind;
use librorum_rpc::client::{Client, ClientOptions, Target, Transport, WriteOptions};
use librorum_rpc::frame::{Kind, Opcode};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use librorum_sys::arena::Arena;
use peer::{Answer, Asked, Peer, daemon, file_of, pair, reply};
use prost::Message;

const HANDLE: u64 = 11;
const UPLOAD: u64 = 21;
const PAYLOAD_MAX: usize = 256 << 10;
const SLOT: u32 = 64 << 10;

/// Not the same in any two pages.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31 + at / 251) & 0xff) as u8).collect()
}

/// A daemon with one file, whose every way works.
struct Tiny {
    content: Vec<u8>,
    arena: Option<Arena>,
    staged: Option<File>,
    written: Arc<Mutex<Vec<u8>>>,
    lends: bool,
    seen: Vec<Opcode>,
}

impl Tiny {
    fn new(content: Vec<u8>) -> Self {
        Self {
            content,
            arena: None,
            staged: None,
            written: Arc::default(),
            lends: true,
            seen: Vec::new(),
        }
    }

    fn entry(&self) -> v1::Entry {
        v1::Entry { size_bytes: self.content.len() as u64, ino: 1, ..Default::default() }
    }

    fn serve(&mut self, peer: &mut Peer) {
        while let Some(asked) = peer.request() {
            self.seen.push(asked.opcode);
            self.answer(peer, &asked);
        }
    }

    fn answer(&mut self, peer: &mut Peer, asked: &Asked) {
        match asked.opcode {
            Opcode::ARENA_OPEN => {
                let arena = self.arena.get_or_insert_with(|| Arena::create(SLOT, 4).unwrap());
                let meta =
                    v1::ArenaOpenResponse { slot_bytes: SLOT, slot_count: 4 }.encode_to_vec();
                let descriptors = [arena.descriptor()];
                peer.answer(
                    asked,
                    &Answer { meta, descriptors: &descriptors, ..Answer::default() },
                );
            }
            Opcode::READ_OPEN => self.read_open(peer, asked),
            Opcode::READ => self.read(peer, asked),
            Opcode::WRITE_OPEN => {
                let request: v1::OpenWriteRequest = asked.decode();
                let lent = self.lends && request.want == v1::Transport::Fd as i32;
                let transport = if lent { v1::Transport::Fd } else { v1::Transport::Inline };
                let staged = self.staged.insert(tempfile::tempfile().unwrap());
                let meta = v1::OpenWriteResponse {
                    upload: UPLOAD,
                    transport: transport as i32,
                    demoted_because: if lent { "" } else { "not for you" }.to_owned(),
                    received: Vec::new(),
                }
                .encode_to_vec();
                let descriptors = [staged.as_fd()];
                let descriptors = if lent { &descriptors[..] } else { &[] };
                peer.answer(asked, &Answer { meta, descriptors, ..Answer::default() });
            }
            Opcode::WRITE => {
                let transfer = asked.transfer();
                let staged = self.staged.as_ref().unwrap();
                let len = usize::try_from(transfer.len).unwrap();
                match transfer.slot {
                    Some(slot) => {
                        let arena = self.arena.as_ref().unwrap();
                        arena.write_to(slot, len, staged, transfer.offset).unwrap();
                    }
                    None => {
                        assert_eq!(asked.payload.len(), len);
                        staged.write_all_at(&asked.payload, transfer.offset).unwrap();
                    }
                }
                peer.answer(asked, &Answer::default());
            }
            Opcode::COMMIT => {
                let request: v1::CommitRequest = asked.decode();
                assert_eq!(request.upload, UPLOAD);
                let mut staged = self.staged.take().unwrap();
                let mut written = self.written.lock().unwrap();
                written.clear();
                staged.rewind().unwrap();
                staged.read_to_end(&mut written).unwrap();
                assert_eq!(written.len() as u64, request.len);
                let entry = v1::Entry { size_bytes: request.len, ..Default::default() };
                peer.say(asked, &v1::EntryResponse { entry: Some(entry) });
            }
            Opcode::PUT => {
                *self.written.lock().unwrap() = asked.payload.to_vec();
                let size_bytes = asked.payload.len() as u64;
                let entry = v1::Entry { size_bytes, ..Default::default() };
                peer.say(asked, &v1::EntryResponse { entry: Some(entry) });
            }
            Opcode::ABORT => {
                self.staged = None;
                peer.say(asked, &v1::AbortResponse {});
            }
            Opcode::READ_CLOSE => peer.say(asked, &v1::ReadCloseResponse {}),
            Opcode::LEASE_RELEASE => peer.say(asked, &v1::LeaseReleaseResponse {}),
            other => peer.fail(asked, &Failure::new(Reason::Unimplemented, format!("{other:?}"))),
        }
    }

    /// The first half lies in a lent segment behind some other bytes, then there is a hole of a page,
    /// and the rest is to be asked for.
    fn read_open(&mut self, peer: &mut Peer, asked: &Asked) {
        let request: v1::OpenReadRequest = asked.decode();
        let len = self.content.len();
        if len <= usize::try_from(request.inline_bytes_max).unwrap() {
            let meta = v1::OpenReadResponse { entry: Some(self.entry()), ..Default::default() }
                .encode_to_vec();
            peer.answer(asked, &Answer { meta, payload: &self.content, ..Answer::default() });
            return;
        }
        let mut response = v1::OpenReadResponse {
            entry: Some(self.entry()),
            handle: HANDLE,
            ..Default::default()
        };
        if !(self.lends && request.want == v1::Transport::Fd as i32) {
            "nothing to lend".clone_into(&mut response.demoted_because);
            peer.say(asked, &response);
            return;
        }
        let half = len / 2;
        let known = request.known_segments.contains(&3);
        response.pieces = vec![
            v1::Piece {
                len: half as u64,
                source: v1::Source::Fd as i32,
                segment: 3,
                fd_index: u32::from(!known),
                fd_offset: 1000,
                ..Default::default()
            },
            v1::Piece {
                offset: half as u64,
                len: 4096,
                source: v1::Source::Hole as i32,
                ..Default::default()
            },
            v1::Piece {
                offset: (half + 4096) as u64,
                len: (len - half - 4096) as u64,
                source: v1::Source::Read as i32,
                ..Default::default()
            },
        ];
        self.content[half..half + 4096].fill(0);
        let segment = file_of(&[&[0xee; 1000][..], &self.content[..half]].concat());
        let descriptors = [segment.as_fd()];
        let descriptors = if known { &[] } else { &descriptors[..] };
        let meta = response.encode_to_vec();
        peer.answer(asked, &Answer { meta, descriptors, ..Answer::default() });
    }

    fn read(&self, peer: &mut Peer, asked: &Asked) {
        let transfer = asked.transfer();
        assert_eq!(transfer.handle, HANDLE);
        let from = usize::try_from(transfer.offset).unwrap().min(self.content.len());
        let to = self.content.len().min(from + usize::try_from(transfer.len).unwrap());
        let bytes = &self.content[from..to];
        if let Some(slot) = transfer.slot {
            self.arena.as_ref().unwrap().copy_in(slot, bytes).unwrap();
            let meta = u32::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
            peer.answer(asked, &Answer { meta, ..Answer::default() });
            return;
        }
        let mut parts = bytes.chunks(PAYLOAD_MAX).peekable();
        while let Some(payload) = parts.next() {
            let kind = if parts.peek().is_some() { Kind::Data } else { Kind::Res };
            peer.send(kind, asked.opcode, asked.id, &Answer { payload, ..Answer::default() });
        }
        if bytes.is_empty() {
            peer.answer(asked, &Answer::default());
        }
    }
}

fn options(forbid: &[Transport]) -> ClientOptions {
    ClientOptions { forbid: forbid.to_vec(), ..ClientOptions::default() }
}

fn with_tiny(mut tiny: Tiny, forbid: &[Transport], test: impl FnOnce(&Client)) -> Vec<Opcode> {
    let (seen, seen_here) = std::sync::mpsc::channel();
    let features = if tiny.lends { 7 } else { 4 };
    let offered = if forbid.contains(&Transport::Descriptor) { 4 } else { 7 }
        & if forbid.contains(&Transport::Arena) { 3 } else { 7 };
    let (stream, script) = pair(move |mut peer| {
        peer.hello_as(&v1::HelloReply { features: features & offered, ..reply() });
        tiny.serve(&mut peer);
        seen.send(tiny.seen).unwrap();
    });
    let client = Client::connect(Target::Connected(stream), options(forbid)).unwrap();
    test(&client);
    drop(client);
    script.join().unwrap();
    seen_here.recv().unwrap()
}

fn used(client: &Client, operation: &str) -> Vec<Transport> {
    let uses = client.transports();
    uses.iter().filter(|used| used.operation == operation).map(|used| used.transport).collect()
}

const LEN: usize = 3_000_001;

/// Reads all ranges that matter and compares.
fn check_reads(client: &Client, mut expected: Vec<u8>, holed: bool) {
    if holed {
        expected[LEN / 2..LEN / 2 + 4096].fill(0);
    }
    let file = client.open("", b"file").unwrap();
    assert_eq!(file.len(), LEN as u64);
    let mut buffer = vec![0xaa; LEN + 10];
    assert_eq!(file.read_into(0, &mut buffer).unwrap(), LEN);
    assert!(buffer[..LEN] == expected[..]);
    for (offset, len) in
        [(1, 5), (LEN / 2 - 3, 5000), (LEN / 2 + 4090, 100_000), (LEN - 5, 100), (LEN, 9)]
    {
        let end = LEN.min(offset + len);
        let bytes = file.read_pooled(offset as u64, len).unwrap();
        assert!(bytes[..] == expected[offset..end], "{len} from {offset}");
        let bytes = file.map_range(offset as u64, len).unwrap();
        assert!(bytes[..] == expected[offset..end], "{len} mapped from {offset}");
    }
}

#[test]
fn reading_takes_the_lent_descriptor_and_asks_for_the_rest() {
    let seen = with_tiny(Tiny::new(content(LEN)), &[], |client| {
        check_reads(client, content(LEN), true);
        assert_eq!(
            used(client, "READ"),
            [Transport::Descriptor, Transport::Arena, Transport::Inline]
        );
        let file = client.open("", b"file").unwrap();
        assert!(file.map_range(100, 100_000).unwrap().is_in_place());
        assert!(!file.map_range((LEN / 2) as u64, 100).unwrap().is_in_place());
        // The second opening names the segment and gets no second descriptor.
        assert_eq!(client.lent_descriptors(), 1);
    });
    assert!(seen.contains(&Opcode::ARENA_OPEN) && seen.contains(&Opcode::READ_CLOSE));
}

#[test]
fn reading_goes_through_the_arena_if_nothing_is_lent() {
    let tiny = Tiny { lends: false, ..Tiny::new(content(LEN)) };
    with_tiny(tiny, &[Transport::Inline], |client| {
        check_reads(client, content(LEN), false);
        assert_eq!(used(client, "READ"), [Transport::Arena]);
        let why = client.transports()[0].demoted_because.clone().unwrap();
        assert!(why.contains("lends no descriptors"), "{why}");
    });
}

#[test]
fn reading_goes_in_frames_if_all_else_is_forbidden() {
    let forbid = [Transport::Descriptor, Transport::Arena];
    let seen = with_tiny(Tiny::new(content(LEN)), &forbid, |client| {
        check_reads(client, content(LEN), false);
        assert_eq!(used(client, "READ"), [Transport::Inline]);
    });
    assert!(!seen.contains(&Opcode::ARENA_OPEN));
}

#[test]
fn a_small_file_comes_with_its_opening() {
    let seen = with_tiny(Tiny::new(content(5000)), &[], |client| {
        let file = client.open("", b"file").unwrap();
        assert!(file.read_pooled(100, 10_000).unwrap()[..] == content(5000)[100..]);
        assert!(file.map_range(0, 5000).unwrap().is_in_place());
        let mut none = [0; 4];
        assert_eq!(file.read_into(5000, &mut none).unwrap(), 0);
    });
    assert_eq!(seen, [Opcode::READ_OPEN]);
}

#[test]
fn many_threads_read_one_file() {
    let tiny = Tiny { lends: false, ..Tiny::new(content(LEN)) };
    with_tiny(tiny, &[], |client| {
        let file = client.open("", b"file").unwrap();
        let expected = content(LEN);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (file, expected) = (&file, &expected);
                scope.spawn(move || {
                    let mut buffer = vec![0; 150_000];
                    for round in 0..20 {
                        let at = (thread * 37 + round * 101_117) % (LEN - buffer.len());
                        file.read_into(at as u64, &mut buffer).unwrap();
                        assert!(buffer[..] == expected[at..at + buffer.len()]);
                    }
                });
            }
        });
    });
}

/// Writes from memory and from a file, and compares.
fn check_writes(client: &Client, written: &Mutex<Vec<u8>>) {
    let bytes = content(LEN);
    let options = || WriteOptions { size_hint: LEN as u64, ..WriteOptions::default() };
    let upload = client.create("", b"file", options()).unwrap();
    // Backwards, so that offsets matter.
    for (index, part) in bytes.chunks(700_000).enumerate().rev() {
        upload.write_at((index * 700_000) as u64, part).unwrap();
    }
    assert_eq!(upload.commit().unwrap().size_bytes, LEN as u64);
    assert!(*written.lock().unwrap() == bytes);

    let source = file_of(&bytes);
    let upload = client.create("", b"file", options()).unwrap();
    let mut progress = Vec::new();
    let all = u64::MAX >> 8;
    let taken = upload.write_from(&source, 0, 0, all, &mut |done| progress.push(done)).unwrap();
    assert_eq!((taken, progress.last()), (LEN as u64, Some(&(LEN as u64))));
    upload.commit().unwrap();
    assert!(*written.lock().unwrap() == bytes);
}

#[test]
fn writing_takes_the_staged_descriptor() {
    let tiny = Tiny::new(Vec::new());
    let written = Arc::clone(&tiny.written);
    let seen = with_tiny(tiny, &[], |client| {
        check_writes(client, &written);
        assert_eq!(used(client, "WRITE"), [Transport::Descriptor; 2]);
    });
    assert!(!seen.contains(&Opcode::WRITE));
}

#[test]
fn writing_goes_through_the_arena_if_nothing_is_lent() {
    let tiny = Tiny { lends: false, ..Tiny::new(Vec::new()) };
    let written = Arc::clone(&tiny.written);
    with_tiny(tiny, &[Transport::Inline], |client| {
        check_writes(client, &written);
        assert_eq!(used(client, "WRITE"), [Transport::Arena; 2]);
        assert!(client.transports()[0].demoted_because.is_some());
    });
}

#[test]
fn writing_goes_in_frames_if_all_else_is_forbidden() {
    let tiny = Tiny::new(Vec::new());
    let written = Arc::clone(&tiny.written);
    with_tiny(tiny, &[Transport::Descriptor, Transport::Arena], |client| {
        check_writes(client, &written);
        assert_eq!(used(client, "WRITE"), [Transport::Inline; 2]);
    });
}

#[test]
fn a_small_file_goes_in_one_message() {
    let tiny = Tiny::new(Vec::new());
    let written = Arc::clone(&tiny.written);
    let seen = with_tiny(tiny, &[], |client| {
        let upload = client.create("", b"file", WriteOptions::default()).unwrap();
        upload.write_at(0, b"hel").unwrap();
        upload.write_at(3, b"lo").unwrap();
        assert_eq!(upload.commit().unwrap().size_bytes, 5);
        assert_eq!(*written.lock().unwrap(), b"hello");
        let empty = client.create("", b"file", WriteOptions::default()).unwrap();
        assert_eq!(empty.commit().unwrap().size_bytes, 0);
    });
    assert_eq!(seen, [Opcode::PUT; 2]);
}

#[test]
fn a_file_that_grows_is_opened_after_all_and_has_what_waited() {
    let tiny = Tiny::new(Vec::new());
    let written = Arc::clone(&tiny.written);
    with_tiny(tiny, &[], |client| {
        let bytes = content(100_000);
        let upload = client.create("", b"file", WriteOptions::default()).unwrap();
        for (index, part) in bytes.chunks(9000).enumerate() {
            upload.write_at((index * 9000) as u64, part).unwrap();
        }
        upload.commit().unwrap();
        assert!(*written.lock().unwrap() == bytes);
    });
}

#[test]
fn an_upload_that_is_dropped_is_given_up() {
    let seen = with_tiny(Tiny::new(Vec::new()), &[Transport::Descriptor], |client| {
        let large = || WriteOptions { size_hint: 1 << 20, ..WriteOptions::default() };
        let upload = client.create("", b"file", large()).unwrap();
        upload.write_at(0, &content(300_000)).unwrap();
        drop(upload);
        client.create("", b"file", large()).unwrap().abort();
        // With a key it waits for whoever has it.
        let keyed = WriteOptions { key: Some([1; 16]), ..large() };
        drop(client.create("", b"file", keyed).unwrap());
    });
    assert_eq!(seen.iter().filter(|&&opcode| opcode == Opcode::ABORT).count(), 2);
}

#[test]
fn a_failed_write_is_told_at_the_latest_by_the_commit() {
    let (stream, script) = pair(|mut peer| {
        peer.hello_as(&v1::HelloReply { features: 0, ..reply() });
        while let Some(asked) = peer.request() {
            match asked.opcode {
                Opcode::WRITE_OPEN => {
                    peer.say(&asked, &v1::OpenWriteResponse { upload: 1, ..Default::default() });
                }
                Opcode::WRITE => {
                    peer.fail(&asked, &Failure::file(ErrorKind::NoSpace, "the disk is full"));
                }
                Opcode::ABORT => peer.say(&asked, &v1::AbortResponse {}),
                other => panic!("{other:?}"),
            }
        }
    });
    let client = Client::connect(Target::Connected(stream), ClientOptions::default()).unwrap();
    let large = WriteOptions { size_hint: 1 << 20, ..WriteOptions::default() };
    let upload = client.create("", b"file", large).unwrap();
    upload.write_at(0, &[1; 100_000]).unwrap();
    let failure = upload.commit().unwrap_err();
    assert_eq!(failure.reason, Reason::File(ErrorKind::NoSpace));
    drop(client);
    script.join().unwrap();
}

#[test]
fn hostile_pieces_are_refused() {
    let piece = |offset, len, fd_index| v1::Piece {
        offset,
        len,
        source: v1::Source::Fd as i32,
        segment: 3,
        fd_index,
        ..Default::default()
    };
    let far = v1::Piece { fd_offset: u64::MAX, ..piece(0, 10, 1) };
    let hostile = [
        vec![piece(0, 10, 2)],
        vec![piece(u64::MAX, 10, 1)],
        vec![piece(0, 10, 1), piece(5, 10, 1)],
        vec![far],
        vec![piece(0, 10, 1), v1::Piece { segment: 4, ..piece(10, 10, 1) }],
    ];
    for pieces in hostile {
        let (stream, script) = pair(|mut peer| {
            peer.hello();
            let asked = peer.expect(Opcode::READ_OPEN);
            let entry = Some(v1::Entry { size_bytes: 20, ..Default::default() });
            let response = v1::OpenReadResponse { entry, handle: 1, pieces, ..Default::default() };
            let segment = file_of(&[0; 20]);
            let descriptors = [segment.as_fd()];
            let meta = response.encode_to_vec();
            peer.answer(&asked, &Answer { meta, descriptors: &descriptors, ..Answer::default() });
        });
        let client = Client::connect(Target::Connected(stream), ClientOptions::default()).unwrap();
        assert_eq!(client.open("", b"file").unwrap_err().reason, Reason::Protocol);
        script.join().unwrap();
    }
}

#[test]
fn an_unsealed_arena_is_not_used() {
    let mut tiny = Tiny { lends: false, ..Tiny::new(content(LEN)) };
    let (stream, script) = pair(move |mut peer| {
        peer.hello_as(&v1::HelloReply { features: 4, ..reply() });
        while let Some(asked) = peer.request() {
            if asked.opcode != Opcode::ARENA_OPEN {
                tiny.answer(&mut peer, &asked);
                continue;
            }
            let file = file_of(&vec![0; 4 * SLOT as usize]);
            let meta = v1::ArenaOpenResponse { slot_bytes: SLOT, slot_count: 4 }.encode_to_vec();
            let descriptors = [file.as_fd()];
            peer.answer(&asked, &Answer { meta, descriptors: &descriptors, ..Answer::default() });
        }
    });
    let client = Client::connect(Target::Connected(stream), ClientOptions::default()).unwrap();
    check_reads(&client, content(LEN), false);
    assert_eq!(used(&client, "READ"), [Transport::Inline]);
    drop(client);
    script.join().unwrap();
}

#[test]
fn a_daemon_that_was_started_anew_lends_anew() {
    let serve = |instance: [u8; 16], content: Vec<u8>, reads: usize| -> peer::Script {
        Box::new(move |mut peer: Peer| {
            let instance = Bytes::copy_from_slice(&instance);
            peer.hello_as(&v1::HelloReply { instance, features: 3, ..reply() });
            let mut tiny = Tiny::new(content);
            for _ in 0..reads {
                let asked = peer.expect(Opcode::READ_OPEN);
                let request: v1::OpenReadRequest = asked.decode();
                assert!(request.known_segments.is_empty());
                tiny.answer(&mut peer, &asked);
            }
        })
    };
    let other = content(LEN + 1);
    let daemon = daemon(vec![
        serve([1; 16], content(LEN), 1),
        serve([2; 16], content(LEN), 1),
        serve([3; 16], other, 1),
    ]);
    let client = Client::connect(Target::Socket(daemon.path.clone()), options(&[])).unwrap();
    let file = client.open("", b"file").unwrap();
    librorum_sys::clock::sleep(std::time::Duration::from_millis(50));
    let mut bytes = [0; 100];
    file.read_into(5, &mut bytes).unwrap();
    assert!(bytes[..] == content(LEN)[5..105]);
    librorum_sys::clock::sleep(std::time::Duration::from_millis(50));
    // Now it is another file.
    let failure = file.read_into(5, &mut bytes).unwrap_err();
    assert_eq!(failure.reason, Reason::File(ErrorKind::Stale));
    drop((file, client));
    daemon.scripts.join().unwrap();
}
