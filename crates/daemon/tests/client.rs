//! The client against the server of frames: the same contents over every way.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

#[path = "lbru/harness.rs"]
mod harness;

use std::time::Duration;

use librorum_daemon::admin::Admin;
use librorum_daemon::grpc;
use librorum_daemon::logbook::LogBook;
use librorum_daemon::nodes::{self, Nodes};
use librorum_format::ErrorKind;
use librorum_rpc::Reason;
use librorum_rpc::client::{Client, ClientOptions, Target, Transport, WriteOptions};
use librorum_rpc::proto::v1;

use harness::{World, noise};

const FORBIDDEN: [&[Transport]; 4] = [
    &[],
    &[Transport::Descriptor],
    &[Transport::Descriptor, Transport::Inline],
    &[Transport::Descriptor, Transport::Arena],
];

fn client(world: &World, forbid: &[Transport]) -> Client {
    let options = ClientOptions { forbid: forbid.to_vec(), ..ClientOptions::default() };
    Client::connect(Target::Socket(world.socket.clone()), options).unwrap()
}

#[test]
fn contents_are_the_same_over_every_way() {
    let world = World::new();
    for (way, forbid) in FORBIDDEN.into_iter().enumerate() {
        let client = client(&world, forbid);
        for len in [0, 1, 5000, 65_536, 65_537, 3_000_001] {
            let bytes = noise(len, (way + len) as u64);
            let path = format!("file-{way}-{len}").into_bytes();
            let options = WriteOptions { size_hint: len as u64, ..WriteOptions::default() };
            let upload = client.create("", &path, options).unwrap();
            for (index, part) in bytes.chunks(1_000_000).enumerate() {
                upload.write_at((index * 1_000_000) as u64, part).unwrap();
            }
            let entry = upload.commit().unwrap();
            assert_eq!(entry.size_bytes, len as u64, "{forbid:?}");
            for sealed in [false, true] {
                if sealed {
                    world.fs.seal_all();
                }
                for forbid in FORBIDDEN {
                    let reader = self::client(&world, forbid);
                    let file = reader.open("", &path).unwrap();
                    let mut read = vec![0xaa; len + 7];
                    assert_eq!(file.read_into(0, &mut read).unwrap(), len, "{forbid:?}");
                    assert!(read[..len] == bytes[..], "{len} bytes, {forbid:?}, {sealed}");
                    let from = len / 3;
                    let part = file.map_range(from as u64, len).unwrap();
                    assert!(part[..] == bytes[from..], "{len} bytes mapped, {forbid:?}");
                }
            }
        }
    }
    world.wait_until_idle();
}

#[test]
fn small_operations_and_their_failures_are_the_daemons() {
    let world = World::new();
    let client = client(&world, &[]);
    let path = |path: &str| bytes::Bytes::copy_from_slice(path.as_bytes());
    let make = v1::MakeDirectoryRequest { path: path("d"), mode: 0o755, ..Default::default() };
    client.make_directory(&make).unwrap();
    let failure = client.make_directory(&make).unwrap_err();
    assert_eq!(failure.reason, Reason::File(ErrorKind::AlreadyExists));
    for index in 0..100 {
        let request =
            v1::PutRequest { path: path(&format!("d/{index}")), mode: 0o644, ..Default::default() };
        client.put(&request, b"words").unwrap();
    }
    let list = v1::ListRequest { path: path("d"), limit: 7, ..Default::default() };
    assert_eq!(client.entries(list).filter(Result::is_ok).count(), 100);
    let mut pipeline = client.pipeline();
    let tickets: Vec<_> = (0..1000)
        .map(|index| {
            let path = path(&format!("d/{}", index % 101));
            pipeline.stat(&v1::StatRequest { path, ..Default::default() })
        })
        .collect();
    let mut answers = pipeline.send().unwrap();
    for (index, ticket) in tickets.into_iter().enumerate() {
        match answers.take(ticket) {
            Ok(found) => assert_eq!(found.entry.unwrap().size_bytes, 5),
            Err(failure) => {
                assert_eq!((index % 101, failure.reason), (100, Reason::File(ErrorKind::NotFound)));
            }
        }
    }
    assert_eq!(client.open("", b"no").unwrap_err().reason, Reason::File(ErrorKind::NotFound));
    drop(client);
    world.wait_until_idle();
}

#[test]
fn an_upload_with_a_key_is_found_again() {
    let world = World::new();
    let client = client(&world, &[Transport::Descriptor]);
    let bytes = noise(500_000, 3);
    let options = || WriteOptions {
        size_hint: 500_000,
        key: Some([5; 16]),
        blake3: Some(*blake3::hash(&bytes).as_bytes()),
        ..WriteOptions::default()
    };
    let upload = client.create("", b"file", options()).unwrap();
    upload.write_at(0, &bytes[..300_000]).unwrap();
    drop((upload, client));
    let client = self::client(&world, &[]);
    let upload = client.create("", b"file", options()).unwrap();
    assert_eq!(upload.received(), [v1::Range { start: 0, end: 300_000 }]);
    upload.write_at(300_000, &bytes[300_000..]).unwrap();
    assert_eq!(upload.commit().unwrap().size_bytes, 500_000);
    drop(client);
    world.wait_until_idle();
}

#[test]
fn contents_are_the_same_over_grpc() {
    let world = World::new();
    let tokens = world.dir.path().join("tokens");
    let socket = world.dir.path().join("run/grpc.sock");
    let nodes = Nodes::start(nodes::Options::default()).unwrap();
    let log = LogBook::in_memory();
    let metrics = world.metrics.clone();
    let admin =
        Admin::new(world.service.clone(), metrics.clone(), log.clone(), nodes.clone(), None);
    let options = grpc::Options {
        tcp: vec![([127, 0, 0, 1], 0).into()],
        socket: Some(socket.clone()),
        tokens: Some(tokens.clone()),
        tls: None,
    };
    let served = grpc::serve(world.service.clone(), admin, metrics, log, nodes, &options).unwrap();
    let tokens = std::fs::read_to_string(&tokens).unwrap();
    let token = tokens.lines().find(|line| !line.starts_with('#') && !line.is_empty()).unwrap();
    let token = token.split_ascii_whitespace().next().unwrap().to_owned();
    let addresses =
        [format!("http://{}", served.addresses()[0]), format!("unix:{}", socket.display())];
    for (way, address) in addresses.iter().enumerate() {
        let options = ClientOptions { token: token.clone().into(), ..ClientOptions::default() };
        let client = Client::connect(Target::Grpc(address.clone()), options).unwrap();
        for len in [0, 1, 5000, 65_537, 3_000_001] {
            let bytes = noise(len, (way + len) as u64);
            let path = format!("grpc-{way}-{len}").into_bytes();
            let options = WriteOptions { size_hint: len as u64, ..WriteOptions::default() };
            let upload = client.create("", &path, options).unwrap();
            for (index, part) in bytes.chunks(1_000_000).enumerate() {
                upload.write_at((index * 1_000_000) as u64, part).unwrap();
            }
            assert_eq!(upload.commit().unwrap().size_bytes, len as u64);
            for reader in [client.clone(), self::client(&world, &[])] {
                let file = reader.open("", &path).unwrap();
                let mut read = vec![0xaa; len + 7];
                assert_eq!(file.read_into(0, &mut read).unwrap(), len);
                assert!(read[..len] == bytes[..], "{len} bytes over {address}");
            }
        }
        let mut pipeline = client.pipeline();
        let stat = |path: &str| v1::StatRequest {
            path: bytes::Bytes::copy_from_slice(path.as_bytes()),
            ..Default::default()
        };
        let there = pipeline.stat(&stat(&format!("grpc-{way}-5000")));
        let not_there = pipeline.stat(&stat("no"));
        let mut answers = pipeline.send().unwrap();
        assert_eq!(answers.take(there).unwrap().entry.unwrap().size_bytes, 5000);
        let failure = answers.take(not_there).unwrap_err();
        assert_eq!(failure.reason, Reason::File(ErrorKind::NotFound));
        assert!(client.transports().iter().all(|used| used.transport == Transport::Grpc));
    }
    let options = ClientOptions { token: token.into(), ..ClientOptions::default() };
    let nearest = Client::connect_nearest(&addresses[0], &options).unwrap();
    assert!(nearest.transports().iter().all(|used| used.demoted_because.is_some()));
    assert_eq!(nearest.instance().unwrap(), world.service.instance()[..]);
    drop(nearest);
    let stranger = Client::connect(Target::Grpc(addresses[0].clone()), ClientOptions::default());
    let failure = stranger.unwrap().status(&v1::StatusRequest::default()).unwrap_err();
    assert_eq!(failure.reason, Reason::Unauthenticated);
    assert!(served.shut_down(Duration::from_secs(5)));
}
