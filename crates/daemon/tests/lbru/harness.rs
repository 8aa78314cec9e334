//! A volume that is served, and a client that says exactly what it is told to.

#![allow(dead_code, reason = "not every test binary needs all of it")]

use std::io::{IoSlice, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use librorum_daemon::admin::Admin;
use librorum_daemon::lbru::{Access, Options, Server, bind};
use librorum_daemon::logbook::LogBook;
use librorum_daemon::metrics::Metrics;
use librorum_daemon::nodes::{self, Nodes};
use librorum_daemon::service::{ServedVolume, Service};
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};
use librorum_rpc::frame::{Frame, Header, Kind, Limits, Opcode, Splitter, feature, flag};
use librorum_rpc::proto::v1;
use librorum_sys::socket;
use prost::Message;

pub(crate) const ALL_FEATURES: u64 = feature::FD_READ | feature::FD_WRITE | feature::ARENA;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) fs: Arc<Fs>,
    pub(crate) service: Service,
    pub(crate) metrics: Metrics,
    pub(crate) server: Server,
    pub(crate) socket: PathBuf,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let volume = dir.path().join("volume");
        Volume::format(&volume, &FormatOptions::default()).unwrap();
        let fs = Fs::open_volume(&volume, FsOptions { quiet_ms: 0, ..Default::default() }).unwrap();
        let service = Service::new();
        let served = ServedVolume::new("main", Arc::clone(&fs), false);
        assert!(service.add_volume(served).is_ok());
        let metrics = Metrics::new();
        let nodes = Nodes::start(nodes::Options::default()).unwrap();
        let log = LogBook::in_memory();
        let admin = Admin::new(service.clone(), metrics.clone(), log, nodes, None);
        let server = Server::new(service.clone(), admin, metrics.clone(), options).unwrap();
        let socket = dir.path().join("run/librorum.sock");
        server.serve(bind(&socket, Access::Everybody).unwrap()).unwrap();
        // Of anybody: other users write in it.
        let world = Self { dir, fs, service, metrics, server, socket };
        let mut client = world.greeted();
        client.ok::<v1::EntryResponse>(
            Opcode::SET_ATTRIBUTES,
            &v1::SetAttributesRequest { mode: Some(0o777), ..Default::default() },
        );
        drop(client);
        world.wait_until_idle();
        world
    }

    pub(crate) fn connect(&self) -> Raw {
        Raw::new(UnixStream::connect(&self.socket).unwrap())
    }

    pub(crate) fn greeted(&self) -> Raw {
        let mut client = self.connect();
        client.hello(ALL_FEATURES);
        client
    }

    /// Until no connection is left.
    pub(crate) fn wait_until_idle(&self) {
        eventually("all connections to end", || self.server.connection_count() == 0);
        assert_eq!(self.server.session_count(), 0);
    }

    /// A file's bytes under a name, sealed.
    pub(crate) fn put(&self, path: &str, data: &[u8]) {
        let mut client = self.greeted();
        let upload = client.upload(v1::Transport::Inline, path, data);
        client.commit(upload, path, data.len() as u64).unwrap();
        self.fs.seal_all();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.server.shut_down();
            self.fs.shut_down().unwrap();
        }
    }
}

pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        librorum_sys::clock::sleep(Duration::from_millis(10));
    }
    panic!("waited 20 seconds for {what}");
}

/// Bytes that differ everywhere and do not compress.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    splitter: Splitter,
    next_id: u64,
    /// Answers that others wait for.
    early: Vec<Frame>,
    pub(crate) reply: v1::HelloReply,
}

impl Raw {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let limits =
            Limits { payload_bytes_max: 1 << 20, meta_bytes_max: 65535, descriptors_max: 64 };
        Self {
            stream,
            splitter: Splitter::new(limits),
            next_id: 1,
            early: Vec::new(),
            reply: v1::HelloReply::default(),
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 2;
        self.next_id - 2
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn frame(
        &mut self,
        header: Header,
        meta: &[u8],
        payload: &[u8],
    ) -> std::io::Result<()> {
        let bytes = encode(header, meta, payload);
        self.stream.write_all(&bytes)
    }

    pub(crate) fn send_with(
        &mut self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> std::io::Result<usize> {
        socket::send(self.stream.as_fd(), &[IoSlice::new(bytes)], descriptors)
    }

    /// Sends a request, and answers its id.
    pub(crate) fn ask(&mut self, opcode: Opcode, message: &[u8], payload: &[u8]) -> u64 {
        self.ask_with(opcode, 0, None, message, payload)
    }

    pub(crate) fn ask_with(
        &mut self,
        opcode: Opcode,
        deadline_ms: u32,
        key: Option<[u8; 16]>,
        message: &[u8],
        payload: &[u8],
    ) -> u64 {
        let id = self.id();
        let mut header = Header::new(Kind::Req, opcode, id);
        if key.is_some() {
            header.flags |= flag::KEY;
        }
        let meta = meta(deadline_ms, key, message);
        self.frame(header, &meta, payload).unwrap();
        id
    }

    /// The next frame; none at the end.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.splitter.next().unwrap() {
                return Some(frame);
            }
            let mut descriptors: Vec<OwnedFd> = Vec::new();
            match socket::receive(self.stream.as_fd(), self.splitter.space(), &mut descriptors, 64)
            {
                Ok(0) => return None,
                Ok(count) => self.splitter.filled(count, descriptors).unwrap(),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("receiving: {error}"),
            }
        }
    }

    /// The frames of an answer, up to its RES.
    pub(crate) fn answer(&mut self, id: u64) -> Frame {
        if let Some(at) = self.early.iter().position(|frame| frame.header.request_id == id) {
            return self.early.remove(at);
        }
        loop {
            let frame = self.next().expect("the connection lives");
            assert_ne!(
                frame.header.kind,
                Kind::GoAway,
                "{:?}",
                v1::GoAway::decode(frame.meta.clone())
            );
            if frame.header.request_id == id {
                return frame;
            }
            self.early.push(frame);
        }
    }

    pub(crate) fn call(
        &mut self,
        opcode: Opcode,
        message: &impl Message,
        payload: &[u8],
    ) -> Result<Frame, v1::Error> {
        let id = self.ask(opcode, &message.encode_to_vec(), payload);
        result(self.answer(id))
    }

    pub(crate) fn ok<R: Message + Default>(&mut self, opcode: Opcode, message: &impl Message) -> R {
        let frame = self.call(opcode, message, &[]).unwrap();
        R::decode(frame.meta).unwrap()
    }

    pub(crate) fn hello(&mut self, features: u64) -> v1::HelloReply {
        let hello = v1::Hello {
            version_min: 1,
            version_max: 1,
            features,
            descriptors_max: 16,
            client: "test".into(),
            ..Default::default()
        };
        self.hello_with(&hello).unwrap()
    }

    pub(crate) fn hello_with(&mut self, hello: &v1::Hello) -> Result<v1::HelloReply, v1::Error> {
        let frame = self.call(Opcode::HELLO, hello, &[])?;
        self.reply = v1::HelloReply::decode(frame.meta).unwrap();
        Ok(self.reply.clone())
    }

    pub(crate) fn stat(&mut self, path: &str) -> Result<v1::Entry, v1::Error> {
        let asked = v1::StatRequest { path: path.to_owned().into(), ..Default::default() };
        let frame = self.call(Opcode::STAT, &asked, &[])?;
        Ok(v1::StatResponse::decode(frame.meta).unwrap().entry.unwrap())
    }

    pub(crate) fn is_answered(&mut self) -> bool {
        self.stat("").is_ok()
    }

    pub(crate) fn put(&mut self, path: &str, data: &[u8]) -> Result<Frame, v1::Error> {
        let asked =
            v1::PutRequest { path: path.to_owned().into(), mode: 0o644, ..Default::default() };
        self.call(Opcode::PUT, &asked, data)
    }

    pub(crate) fn write_open(
        &mut self,
        want: v1::Transport,
        path: &str,
        key: &[u8],
    ) -> (v1::OpenWriteResponse, Vec<OwnedFd>) {
        let asked = v1::OpenWriteRequest {
            path: path.to_owned().into(),
            key: key.to_vec().into(),
            want: want.into(),
            ..Default::default()
        };
        let frame = self.call(Opcode::WRITE_OPEN, &asked, &[]).unwrap();
        (v1::OpenWriteResponse::decode(frame.meta).unwrap(), frame.descriptors)
    }

    pub(crate) fn upload(&mut self, want: v1::Transport, path: &str, data: &[u8]) -> u64 {
        let (opened, _) = self.write_open(want, path, &[]);
        for (at, part) in data.chunks(256 << 10).enumerate() {
            let offset = (at * (256 << 10)) as u64;
            self.write(opened.upload, offset, part, None).unwrap();
        }
        opened.upload
    }

    pub(crate) fn write(
        &mut self,
        upload: u64,
        offset: u64,
        data: &[u8],
        slot: Option<(u32, u32)>,
    ) -> Result<Frame, v1::Error> {
        let len = slot.map_or(data.len() as u32, |(_, len)| len);
        let asked = transfer(upload, offset, len, slot.map(|(slot, _)| slot));
        let id = self.ask(Opcode::WRITE, &asked, data);
        result(self.answer(id))
    }

    pub(crate) fn commit(
        &mut self,
        upload: u64,
        path: &str,
        len: u64,
    ) -> Result<v1::Entry, v1::Error> {
        let asked = v1::CommitRequest {
            upload,
            path: path.to_owned().into(),
            len,
            mode: 0o644,
            ..Default::default()
        };
        let frame = self.call(Opcode::COMMIT, &asked, &[])?;
        Ok(v1::EntryResponse::decode(frame.meta).unwrap().entry.unwrap())
    }

    pub(crate) fn read_open(
        &mut self,
        want: v1::Transport,
        path: &str,
        inline_bytes_max: u32,
        known_segments: &[u64],
    ) -> Result<(v1::OpenReadResponse, Frame), v1::Error> {
        let asked = v1::OpenReadRequest {
            path: path.to_owned().into(),
            want: want.into(),
            inline_bytes_max,
            known_segments: known_segments.to_vec(),
            ..Default::default()
        };
        let frame = self.call(Opcode::READ_OPEN, &asked, &[])?;
        Ok((v1::OpenReadResponse::decode(frame.meta.clone()).unwrap(), frame))
    }

    /// READ into frames: all of the bytes, and how many frames they came in.
    pub(crate) fn read(
        &mut self,
        handle: u64,
        offset: u64,
        len: u32,
    ) -> Result<(Vec<u8>, usize), v1::Error> {
        let id = self.ask(Opcode::READ, &transfer(handle, offset, len, None), &[]);
        let (mut bytes, mut count) = (Vec::new(), 0);
        loop {
            let frame = self.answer(id);
            count += 1;
            bytes.extend_from_slice(&frame.payload);
            if frame.header.kind == Kind::Res {
                return result(frame).map(|_| (bytes, count));
            }
            assert_eq!(frame.header.kind, Kind::Data);
        }
    }

    /// Reads until the connection ends; answers why, if it was told.
    pub(crate) fn ends(&mut self) -> Option<v1::Error> {
        let mut reason = None;
        while let Some(frame) = self.next() {
            if frame.header.kind == Kind::GoAway {
                reason = v1::GoAway::decode(frame.meta).unwrap().reason;
            }
        }
        reason
    }
}

pub(crate) fn result(frame: Frame) -> Result<Frame, v1::Error> {
    assert_eq!(frame.header.kind, Kind::Res);
    match frame.header.status {
        0 => Ok(frame),
        status => {
            let error = v1::Error::decode(frame.meta).unwrap();
            assert_eq!(error.code, u32::from(status));
            Err(error)
        }
    }
}

pub(crate) fn transfer(handle: u64, offset: u64, len: u32, slot: Option<u32>) -> [u8; 24] {
    librorum_rpc::frame::Transfer { handle, offset, len, slot }.encode()
}

pub(crate) fn meta(deadline_ms: u32, key: Option<[u8; 16]>, message: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    librorum_rpc::frame::Prefix { deadline_ms, cpu: 0, trace_id: 0, key }.encode_to(&mut meta);
    meta.extend_from_slice(message);
    meta
}

pub(crate) fn encode(mut header: Header, meta: &[u8], payload: &[u8]) -> Vec<u8> {
    header.meta_len = meta.len().try_into().unwrap();
    header.payload_len = payload.len().try_into().unwrap();
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(meta);
    bytes.extend_from_slice(payload);
    bytes
}
