//! How fast bytes and requests travel, against the file system below: figures for `bench/transport.py`.
//!
//! `transports DIR ROUNDS` makes a volume in `DIR`, serves it from a process of its own and prints one
//! JSON object. `transports --serve DIR` is that process.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures and progress")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use librorum_daemon::admin::Admin;
use librorum_daemon::lbru::{self, Access, bind};
use librorum_daemon::logbook::LogBook;
use librorum_daemon::metrics::Metrics;
use librorum_daemon::nodes::{self, Nodes};
use librorum_daemon::service::{ServedVolume, Service};
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};
use librorum_rpc::client::{Client, ClientOptions, Target, Transport, WriteOptions};
use librorum_rpc::proto::v1;
use librorum_sys::clock;

const FILE_BYTES: u64 = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "--serve", dir] => serve(Path::new(dir)),
        [_, dir, rounds] => measure(Path::new(dir), rounds.parse().unwrap()),
        _ => {
            eprintln!("usage: transports DIR ROUNDS");
            std::process::exit(2);
        }
    }
}

fn serve(dir: &Path) {
    let volume = dir.join("volume");
    Volume::format(&volume, &FormatOptions::default()).unwrap();
    // Sealing is wanted where it is asked for, and nowhere else.
    let options = FsOptions { quiet_ms: 3_600_000, ..FsOptions::default() };
    let fs = Fs::open_volume(&volume, options).unwrap();
    let service = Service::new();
    service.add_volume(ServedVolume::new("main", Arc::clone(&fs), false)).unwrap();
    let metrics = Metrics::new();
    let log = LogBook::in_memory();
    let nodes = Nodes::start(nodes::Options::default()).unwrap();
    let admin = Admin::new(service.clone(), metrics.clone(), log.clone(), nodes.clone(), None);
    let server = lbru::Server::new(
        service.clone(),
        admin.clone(),
        metrics.clone(),
        lbru::Options::default(),
    )
    .unwrap();
    server.serve(bind(&dir.join("run/lbru.sock"), Access::Everybody).unwrap()).unwrap();
    let options = librorum_daemon::grpc::Options {
        tcp: Vec::new(),
        socket: Some(dir.join("run/grpc.sock")),
        ..librorum_daemon::grpc::Options::default()
    };
    let grpc = librorum_daemon::grpc::serve(service, admin, metrics, log, nodes, &options).unwrap();
    println!("ready");
    // Ends with whoever started it.
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).unwrap();
    server.shut_down();
    grpc.shut_down(Duration::from_secs(1));
    fs.shut_down().unwrap();
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

fn start(dir: &Path) -> Server {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("--serve")
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Server(child)
}

/// A client that can do nothing but this.
fn only(dir: &Path, transport: Transport) -> Client {
    let all = [Transport::Descriptor, Transport::Arena, Transport::Inline];
    let forbid = all.into_iter().filter(|&other| other != transport).collect();
    let options = ClientOptions { forbid, ..ClientOptions::default() };
    let target = if transport == Transport::Grpc {
        Target::Grpc(format!("unix:{}", dir.join("run/grpc.sock").display()))
    } else {
        Target::Socket(dir.join("run/lbru.sock"))
    };
    let options = if transport == Transport::Grpc { ClientOptions::default() } else { options };
    Client::connect(target, options).unwrap()
}

fn plain(dir: &Path) -> Client {
    Client::connect(Target::Socket(dir.join("run/lbru.sock")), ClientOptions::default()).unwrap()
}

/// GB/s of `bytes` moved by `work`.
fn rate(bytes: u64, work: impl FnOnce()) -> f64 {
    let start = clock::instant();
    work();
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Lets the disk finish what was written before, and touches memory: what the host has taken back is dear
/// to touch first.
fn calm() {
    rustix::fs::sync();
    let mut memory = vec![0_u8; 1536 << 20];
    for at in (0..memory.len()).step_by(4096) {
        memory[at] = 1;
    }
    std::hint::black_box(&memory);
}

fn measure(dir: &Path, rounds: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let server = start(dir);
    let mut results: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let ways = [
        ("fd", Transport::Descriptor),
        ("arena", Transport::Arena),
        ("inline", Transport::Inline),
        ("grpc uds", Transport::Grpc),
    ];
    let clients: Vec<(&str, Client)> =
        ways.iter().map(|&(name, way)| (name, only(dir, way))).collect();
    let content: Vec<u8> = content();
    let native = dir.join("native");
    std::fs::write(&native, &content).unwrap();
    let upload = clients[0].1.create("", b"/read", sized()).unwrap();
    for (index, piece) in content.chunks(PIECE_BYTES).enumerate() {
        upload.write_at((index * PIECE_BYTES) as u64, piece).unwrap();
    }
    upload.commit().unwrap();
    clients[0].1.sync(&v1::SyncRequest { seal: true, ..Default::default() }).unwrap();

    let mut add = |name: String, value: f64| {
        eprintln!("{name}: {value:.3}");
        results.entry(name).or_default().push(value);
    };
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let mut turn: Vec<&(&str, Client)> = clients.iter().collect();
        turn.rotate_left(round % clients.len());
        read_round(&native, &turn, &mut add);
        write_round(dir, &content, &turn, &mut add);
        request_round(dir, &mut add);
    }
    drop(clients);
    drop(server);
    println!("{}", serde_json::to_string(&results).unwrap());
}

fn sized() -> WriteOptions {
    WriteOptions { size_hint: FILE_BYTES, ..WriteOptions::default() }
}

/// Bytes that are all different, so that nothing is deduplicated away.
fn content() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(usize::try_from(FILE_BYTES).unwrap());
    while (bytes.len() as u64) < FILE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn read_round(native: &Path, clients: &[&(&str, Client)], add: &mut impl FnMut(String, f64)) {
    let mut buffer = vec![0; PIECE_BYTES];
    let file = File::open(native).unwrap();
    let local = rate(FILE_BYTES, || {
        for at in (0..FILE_BYTES).step_by(PIECE_BYTES) {
            file.read_exact_at(&mut buffer, at).unwrap();
        }
    });
    add("read local pread GB/s".into(), local);
    for (name, client) in clients {
        let found = rate(FILE_BYTES, || {
            let file = client.open("", b"/read").unwrap();
            for at in (0..FILE_BYTES).step_by(PIECE_BYTES) {
                assert_eq!(file.read_into(at, &mut buffer).unwrap(), PIECE_BYTES);
            }
        });
        add(format!("read {name} GB/s"), found);
        add(format!("read {name} / local"), found / local);
    }
}

fn write_round(
    dir: &Path,
    content: &[u8],
    clients: &[&(&str, Client)],
    add: &mut impl FnMut(String, f64),
) {
    calm();
    let path = dir.join("written");
    let local = rate(FILE_BYTES, || std::fs::write(&path, content).unwrap());
    std::fs::remove_file(&path).unwrap();
    add("write local fs::write GB/s".into(), local);
    for (name, client) in clients {
        calm();
        let found = rate(FILE_BYTES, || {
            let upload = client.create("", b"/written", sized()).unwrap();
            for (index, piece) in content.chunks(PIECE_BYTES).enumerate() {
                upload.write_at((index * PIECE_BYTES) as u64, piece).unwrap();
            }
            upload.commit().unwrap();
        });
        client
            .remove(&v1::RemoveRequest { path: "/written".into(), ..Default::default() })
            .unwrap();
        add(format!("write {name} GB/s"), found);
        add(format!("write {name} / local"), found / local);
    }
}

fn stat() -> v1::StatRequest {
    v1::StatRequest { path: "/read".into(), ..v1::StatRequest::default() }
}

/// Requests one after the other: how many a second, and the latencies in microseconds.
fn serial(client: &Client, count: usize) -> (f64, f64, f64) {
    let mut latencies = Vec::with_capacity(count);
    let start = clock::instant();
    for _ in 0..count {
        let asked = clock::instant();
        client.stat(&stat()).unwrap();
        latencies.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    (rate, latencies[count / 2], latencies[count * 99 / 100])
}

fn request_round(dir: &Path, add: &mut impl FnMut(String, f64)) {
    let client = plain(dir);
    serial(&client, 2000);
    let (rate, p50, p99) = serial(&client, 30_000);
    add("lbru serial requests/s".into(), rate);
    add("lbru serial p50 us".into(), p50);
    add("lbru serial p99 us".into(), p99);
    let start = clock::instant();
    let (batches, batch) = (400, 1000);
    for _ in 0..batches {
        let mut pipeline = client.pipeline();
        for _ in 0..batch {
            pipeline.stat(&stat());
        }
        assert_eq!(pipeline.send().unwrap().len(), batch);
    }
    let pipelined = (batches * batch) as f64 / start.elapsed().as_secs_f64();
    add("lbru pipelined requests/s".into(), pipelined);

    // With a bulk transfer beside, in another session.
    let stop = Arc::new(AtomicBool::new(false));
    let bulk = {
        let (stop, client) = (Arc::clone(&stop), only(dir, Transport::Inline));
        std::thread::spawn(move || {
            let file = client.open("", b"/read").unwrap();
            let mut buffer = vec![0; PIECE_BYTES];
            let mut moved = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let at = moved % FILE_BYTES;
                moved += file.read_into(at, &mut buffer).unwrap() as u64;
            }
            moved
        })
    };
    let (rate, p50, p99) = serial(&client, 20_000);
    stop.store(true, Ordering::Relaxed);
    assert!(bulk.join().unwrap() > 0);
    add("lbru beside bulk requests/s".into(), rate);
    add("lbru beside bulk p50 us".into(), p50);
    add("lbru beside bulk p99 us".into(), p99);

    // With a client that asks for bytes and never takes them.
    let stalled = Stalled::new(&dir.join("run/lbru.sock"));
    let (_, _, p99) = serial(&client, 20_000);
    add("lbru beside a stalled reader p99 us".into(), p99);
    drop(stalled);

    let grpc = only(dir, Transport::Grpc);
    serial(&grpc, 500);
    let (rate, p50, p99) = serial(&grpc, 5000);
    add("grpc uds serial requests/s".into(), rate);
    add("grpc uds serial p50 us".into(), p50);
    add("grpc uds serial p99 us".into(), p99);
}

/// A connection with as many reads under way as its credit allows, whose answers nobody reads.
struct Stalled(#[expect(dead_code, reason = "kept open")] std::os::unix::net::UnixStream);

impl Stalled {
    fn new(socket: &Path) -> Self {
        use librorum_rpc::frame::{Header, Kind, Opcode, Prefix, Transfer};
        use prost::Message;
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let mut send = |opcode: Opcode, id: u64, message: &[u8]| {
            let mut meta = Vec::new();
            Prefix::default().encode_to(&mut meta);
            meta.extend_from_slice(message);
            let header = Header {
                kind: Kind::Req,
                opcode,
                flags: 0,
                payload_len: 0,
                request_id: id,
                meta_len: u16::try_from(meta.len()).unwrap(),
                fd_count: 0,
                status: 0,
            };
            stream.write_all(&header.encode()).unwrap();
            stream.write_all(&meta).unwrap();
        };
        let hello = v1::Hello {
            version_min: 1,
            version_max: 1,
            payload_bytes_max: 256 << 10,
            requests_max: 256,
            ..v1::Hello::default()
        };
        send(Opcode::HELLO, 1, &hello.encode_to_vec());
        let open = v1::OpenReadRequest { path: "/read".into(), ..v1::OpenReadRequest::default() };
        send(Opcode::READ_OPEN, 3, &open.encode_to_vec());
        // The first handle of a session is 1.
        for index in 0..16 {
            let transfer = Transfer { handle: 1, offset: index << 18, len: 256 << 10, slot: None };
            send(Opcode::READ, 5 + 2 * index, &transfer.encode());
        }
        Self(stream)
    }
}
