//! A daemon's side of the socket, played from a script: it says what a test wants it to.

#![allow(dead_code, reason = "not every test needs all of it")]
#![allow(unreachable_pub, reason = "it is compiled into several tests")]

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use bytes::Bytes;
use librorum_rpc::Failure;
use librorum_rpc::frame::{Frame, Header, Kind, Limits, Opcode, Prefix, Splitter, Transfer};
use librorum_rpc::proto::v1;
use librorum_sys::socket;
use prost::Message;

pub const INSTANCE: [u8; 16] = [7; 16];

/// One connection, seen by the daemon.
pub struct Peer {
    pub stream: UnixStream,
    splitter: Splitter,
}

/// A request, taken apart.
#[derive(Debug)]
pub struct Asked {
    pub id: u64,
    pub opcode: Opcode,
    pub prefix: Prefix,
    pub message: Bytes,
    pub payload: Bytes,
}

impl Asked {
    pub fn decode<M: Message + Default>(&self) -> M {
        M::decode(self.message.clone()).unwrap()
    }

    pub fn transfer(&self) -> Transfer {
        Transfer::decode(&self.message).unwrap()
    }
}

/// An answer to be sent.
#[derive(Default)]
pub struct Answer<'a> {
    pub meta: Vec<u8>,
    pub payload: &'a [u8],
    pub descriptors: &'a [BorrowedFd<'a>],
    pub status: u8,
    /// Said instead of how many descriptors there are.
    pub fd_count: Option<u8>,
}

pub fn reply() -> v1::HelloReply {
    v1::HelloReply {
        version: 1,
        features: 7,
        payload_bytes_max: 256 << 10,
        requests_max: 256,
        bytes_max: 4 << 20,
        descriptors_max: 16,
        session: 5,
        session_secret: Bytes::from_static(&[1; 16]),
        instance: Bytes::from_static(&INSTANCE),
        leases_max: 64,
        server: "a script".to_owned(),
        grpc_address: String::new(),
        ping_after_ms: 30_000,
    }
}

impl Peer {
    pub fn new(stream: UnixStream) -> Self {
        let limits =
            Limits { payload_bytes_max: 1 << 20, meta_bytes_max: u16::MAX, descriptors_max: 16 };
        Self { stream, splitter: Splitter::new(limits) }
    }

    /// The next frame; none when the client has gone.
    pub fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.splitter.next().expect("clients keep to the protocol") {
                return Some(frame);
            }
            let mut fds = Vec::new();
            let space = self.splitter.space();
            match socket::receive(self.stream.as_fd(), space, &mut fds, 16) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.splitter.filled(n, fds).unwrap(),
            }
        }
    }

    /// The next request; PINGs are answered and other frames left out.
    pub fn request(&mut self) -> Option<Asked> {
        loop {
            let frame = self.frame()?;
            match frame.header.kind {
                Kind::Req => {
                    let (prefix, message) =
                        Prefix::decode(&frame.meta, frame.header.flags).unwrap();
                    return Some(Asked {
                        id: frame.header.request_id,
                        opcode: frame.header.opcode,
                        prefix,
                        message,
                        payload: frame.payload,
                    });
                }
                Kind::Res
                | Kind::Data
                | Kind::Credit
                | Kind::Cancel
                | Kind::Ping
                | Kind::GoAway => {}
            }
        }
    }

    /// The next request, which has to be this.
    pub fn expect(&mut self, opcode: Opcode) -> Asked {
        let asked = self.request().expect("a request");
        assert_eq!(asked.opcode, opcode);
        asked
    }

    pub fn hello(&mut self) -> v1::Hello {
        self.hello_as(&reply())
    }

    pub fn hello_as(&mut self, reply: &v1::HelloReply) -> v1::Hello {
        let asked = self.expect(Opcode::HELLO);
        self.say(&asked, reply);
        asked.decode()
    }

    pub fn send(&mut self, kind: Kind, opcode: Opcode, id: u64, answer: &Answer<'_>) {
        let count = u8::try_from(answer.descriptors.len()).unwrap();
        let header = Header {
            payload_len: u32::try_from(answer.payload.len()).unwrap(),
            meta_len: u16::try_from(answer.meta.len()).unwrap(),
            fd_count: answer.fd_count.unwrap_or(count),
            status: answer.status,
            ..Header::new(kind, opcode, id)
        };
        let bytes = [&header.encode()[..], &answer.meta, answer.payload].concat();
        let sent = socket::send(self.stream.as_fd(), &[IoSlice::new(&bytes)], answer.descriptors);
        if let Ok(sent) = sent {
            // The client may have had enough.
            drop(self.stream.write_all(&bytes[sent..]));
        }
    }

    pub fn answer(&mut self, asked: &Asked, answer: &Answer<'_>) {
        self.send(Kind::Res, asked.opcode, asked.id, answer);
    }

    pub fn say<M: Message>(&mut self, asked: &Asked, message: &M) {
        let meta = message.encode_to_vec();
        self.answer(asked, &Answer { meta, ..Answer::default() });
    }

    pub fn fail(&mut self, asked: &Asked, failure: &Failure) {
        let meta = failure.to_message().encode_to_vec();
        let status = u8::try_from(failure.code()).unwrap();
        self.answer(asked, &Answer { meta, status, ..Answer::default() });
    }

    /// Until the client goes: every STAT with its path and the length of it.
    pub fn serve_stats(&mut self) {
        while let Some(asked) = self.request() {
            self.stat(&asked);
        }
    }

    pub fn stat(&mut self, asked: &Asked) {
        let request: v1::StatRequest = asked.decode();
        let entry = v1::Entry {
            size_bytes: request.path.len() as u64,
            path: request.path,
            ..v1::Entry::default()
        };
        self.say(asked, &v1::StatResponse { entry: Some(entry), ..Default::default() });
    }
}

/// A daemon that plays `script` on one end of a pair; the other end is answered.
pub fn pair(script: impl FnOnce(Peer) + Send + 'static) -> (UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (theirs, std::thread::spawn(move || script(Peer::new(ours))))
}

/// A daemon with a socket in a folder, which plays the scripts for its connections in turn.
pub struct Daemon {
    pub path: PathBuf,
    pub scripts: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

pub type Script = Box<dyn FnOnce(Peer) + Send>;

pub fn daemon(scripts: Vec<Script>) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let scripts = std::thread::spawn(move || {
        let running: Vec<JoinHandle<()>> = scripts
            .into_iter()
            .map(|script| {
                let (stream, _) = listener.accept().unwrap();
                std::thread::spawn(move || script(Peer::new(stream)))
            })
            .collect();
        for script in running {
            script.join().unwrap();
        }
    });
    Daemon { path, scripts, _folder: folder }
}

/// A file with this content, which nobody else can find.
pub fn file_of(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

pub fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
}
