//! HELLO, sessions, and who may come in.

use librorum_daemon::lbru::{Allowed, Options};
use librorum_rpc::frame::{Header, Kind, Opcode, feature};
use librorum_rpc::proto::v1;

use crate::harness::{ALL_FEATURES, World};

fn hello() -> v1::Hello {
    v1::Hello { version_min: 1, version_max: 1, descriptors_max: 16, ..Default::default() }
}

#[test]
fn both_sides_get_the_smaller_of_each_limit() {
    let world = World::new();
    let mut client = world.connect();
    let reply = client
        .hello_with(&v1::Hello {
            version_max: 7,
            features: feature::FD_READ | 1 << 40,
            payload_bytes_max: 10_000,
            requests_max: 3,
            descriptors_max: 200,
            ..hello()
        })
        .unwrap();
    assert_eq!((reply.version, reply.features), (1, feature::FD_READ));
    assert_eq!((reply.payload_bytes_max, reply.requests_max), (10_000, 3));
    assert_eq!(reply.descriptors_max, 16);
    assert_eq!(reply.instance, world.service.instance().to_vec());
    assert!(client.is_answered());
    let mut other = world.connect();
    let reply = other.hello_with(&v1::Hello { payload_bytes_max: 1 << 30, ..hello() }).unwrap();
    assert_eq!((reply.payload_bytes_max, reply.requests_max), (256 << 10, 256));
    assert_eq!(reply.features, 0);
}

#[test]
fn without_a_common_version_nothing_is_agreed() {
    let world = World::new();
    let mut client = world.connect();
    let hello = v1::Hello { version_min: 2, version_max: 3, ..hello() };
    assert_eq!(client.hello_with(&hello).unwrap_err().kind, "FailedPrecondition");
    assert_eq!(client.ends(), None);
    world.wait_until_idle();
}

#[test]
fn whoever_does_not_say_hello_first_is_gone() {
    let world = World::new();
    let mut client = world.connect();
    client.ask(Opcode::STAT, &[], &[]);
    assert_eq!(client.ends().unwrap().kind, "Protocol");
    // Larger than anything before HELLO may be.
    for (meta_len, payload_len, fd_count) in [(5000, 0, 0), (16, 1, 0), (16, 0, 1)] {
        let mut client = world.connect();
        let header =
            Header { meta_len, payload_len, fd_count, ..Header::new(Kind::Req, Opcode::HELLO, 1) };
        client.bytes(&header.encode()).unwrap();
        assert_eq!(client.ends().unwrap().kind, "Protocol");
    }
    let mut client = world.greeted();
    let error = client.hello_with(&hello()).unwrap_err();
    assert_eq!(error.kind, "FailedPrecondition");
    assert!(client.is_answered(), "a second HELLO changes nothing");
}

#[test]
fn a_session_has_several_connections_and_a_secret() {
    let world = World::new();
    world.put("file", &[7; 100_000]);
    let mut first = world.greeted();
    let (opened, _) = first.read_open(v1::Transport::Inline, "file", 0, &[]).unwrap();
    let joining = v1::Hello {
        session: first.reply.session,
        session_secret: first.reply.session_secret.clone(),
        features: ALL_FEATURES,
        ..hello()
    };
    let mut second = world.connect();
    second.hello_with(&joining).unwrap();
    assert_eq!(second.read(opened.handle, 0, 10).unwrap().0, [7; 10]);
    for wrong in [
        v1::Hello { session_secret: vec![0; 16].into(), ..joining.clone() },
        v1::Hello { session_secret: Vec::new().into(), ..joining.clone() },
        v1::Hello { session: joining.session ^ 1, ..joining.clone() },
    ] {
        let mut stranger = world.connect();
        assert_eq!(stranger.hello_with(&wrong).unwrap_err().kind, "AccessDenied");
        assert_eq!(stranger.ends(), None);
    }
    drop(first);
    assert_eq!(second.read(opened.handle, 0, 10).unwrap().0, [7; 10]);
    assert_eq!(world.server.session_count(), 1);
    let mut other = world.greeted();
    assert_eq!(other.read(opened.handle, 0, 10).unwrap_err().kind, "Stale");
    drop((second, other));
    world.wait_until_idle();
    let mut late = world.connect();
    assert_eq!(late.hello_with(&joining).unwrap_err().kind, "AccessDenied");
}

#[test]
fn root_and_the_daemons_user_are_always_on_the_list() {
    let allowed = Some(Allowed { uids: vec![12_345], gids: Vec::new() });
    let world = World::with(Options { allowed, ..Options::default() });
    assert!(world.greeted().is_answered());
}

#[test]
fn stopping_lets_requests_end_and_tells_the_clients() {
    let world = World::new();
    let mut idle = world.greeted();
    let mut busy = world.greeted();
    let logs = v1::LogsRequest { wait_ms: 700, after: 1 << 60, ..Default::default() };
    let id = busy.ask(Opcode::LOGS, &prost::Message::encode_to_vec(&logs), &[]);
    assert!(busy.is_answered());
    let server = world.server.clone();
    let stopping = std::thread::spawn(move || server.shut_down());
    assert_eq!(idle.ends().unwrap().kind, "Disconnected");
    let goaway = busy.next().unwrap();
    assert_eq!(goaway.header.kind, Kind::GoAway);
    let refused = busy.ask(Opcode::STAT, &[], &[]);
    let mut found = Vec::new();
    while let Some(frame) = busy.next() {
        found.push((frame.header.request_id, frame.header.status));
    }
    assert_eq!(found, [(refused, 14), (id, 0)]);
    stopping.join().unwrap();
    assert!(std::os::unix::net::UnixStream::connect(&world.socket).is_err());
}

#[test]
fn new_limits_are_told() {
    let world = World::new();
    let mut client = world.greeted();
    world.server.set_credit(1, 1000);
    let frame = client.next().unwrap();
    assert_eq!(frame.header.kind, Kind::Credit);
    assert_eq!(frame.meta[..], [1, 0, 0, 0, 0, 0, 0, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0]);
}
