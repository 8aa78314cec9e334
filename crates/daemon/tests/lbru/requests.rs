//! Requests: order, credit, withdrawal, deadlines, numbers.

use std::time::Duration;

use librorum_daemon::lbru::{Limits, Options};
use librorum_rpc::frame::{Header, Kind, Opcode, flag};
use librorum_rpc::proto::v1;
use prost::Message;

use crate::harness::{Raw, World, encode, eventually, meta, result};

/// Waits for a record that never comes.
fn waiting(wait_ms: u32) -> Vec<u8> {
    v1::LogsRequest { wait_ms, after: 1 << 60, ..Default::default() }.encode_to_vec()
}

#[test]
fn an_unknown_operation_or_message_costs_nothing_else() {
    let world = World::new();
    let mut client = world.greeted();
    let id = client.ask(Opcode(0x777), b"anything", &[]);
    let error = result(client.answer(id)).unwrap_err();
    assert_eq!((error.kind.as_str(), error.code), ("Unimplemented", 12));
    let id = client.ask(Opcode::STAT, &[0xff; 9], &[]);
    assert_eq!(result(client.answer(id)).unwrap_err().kind, "Protocol");
    let id = client.ask(Opcode::READ, &[0; 23], &[]);
    assert_eq!(result(client.answer(id)).unwrap_err().kind, "Protocol");
    // An unknown low flag is ignored, an unknown high one is the end.
    let mut header = Header::new(Kind::Req, Opcode::STAT, client.id());
    header.flags = 0x8000;
    client.frame(header, &meta(0, None, &[]), &[]).unwrap();
    assert_eq!(client.answer(header.request_id).header.status, 0);
    header.flags = 0x8000_0000;
    client.frame(header, &meta(0, None, &[]), &[]).unwrap();
    assert_eq!(client.ends().unwrap().kind, "Protocol");
}

#[test]
fn what_is_sent_together_is_all_answered() {
    let world = World::new();
    let mut client = world.greeted();
    let asked = v1::StatRequest::default().encode_to_vec();
    let mut bytes = Vec::new();
    let ids: Vec<u64> = (0..5000).map(|_| client.id()).collect();
    for &id in &ids {
        let header = Header::new(Kind::Req, Opcode::STAT, id);
        bytes.extend_from_slice(&encode(header, &meta(0, None, &asked), &[]));
    }
    let mut writer = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
    for id in ids {
        assert_eq!(client.answer(id).header.status, 0);
    }
    sender.join().unwrap().unwrap();
}

#[test]
fn a_ping_comes_back() {
    let world = World::new();
    let mut client = world.greeted();
    client.frame(Header::new(Kind::Ping, Opcode::NONE, 42), &[], b"payload").unwrap();
    let frame = client.next().unwrap();
    assert_eq!((frame.header.kind, frame.header.flags), (Kind::Ping, flag::ACK));
    assert_eq!((frame.header.request_id, &frame.payload[..]), (42, &b"payload"[..]));
    client.frame(Header::new(Kind::Ping, Opcode::NONE, 44), &[], &[0; 65]).unwrap();
    assert_eq!(client.ends().unwrap().kind, "Protocol");
}

#[test]
fn an_id_is_odd_and_used_once() {
    let world = World::new();
    for id in [2, 1] {
        let mut client = world.greeted();
        client.frame(Header::new(Kind::Req, Opcode::STAT, id), &meta(0, None, &[]), &[]).unwrap();
        assert_eq!(client.ends().unwrap().kind, "Protocol");
    }
}

#[test]
fn a_slow_request_delays_nobody() {
    let world = World::new();
    let mut client = world.greeted();
    let slow: Vec<u64> = (0..4).map(|_| client.ask(Opcode::LOGS, &waiting(60_000), &[])).collect();
    for _ in 0..100 {
        assert!(client.is_answered());
    }
    assert!(client.put("file", b"bytes").is_ok());
    assert!(world.greeted().is_answered());
    for &id in &slow {
        client.frame(Header::new(Kind::Cancel, Opcode::NONE, id), &[], &[]).unwrap();
    }
    for id in slow {
        assert_eq!(result(client.answer(id)).unwrap_err().kind, "Cancelled");
    }
    assert!(client.is_answered());
}

#[test]
fn a_withdrawn_request_that_is_over_stays_answered() {
    let world = World::new();
    let mut client = world.greeted();
    assert!(client.is_answered());
    for id in [1, 3, 999] {
        client.frame(Header::new(Kind::Cancel, Opcode::NONE, id), &[], &[]).unwrap();
    }
    assert!(client.is_answered());
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    let world = World::new();
    let mut client = world.greeted();
    let begun = librorum_sys::clock::monotonic();
    // The second waits for the first's turn.
    let first = client.ask_with(Opcode::LOGS, 300, None, &waiting(60_000), &[]);
    let second = client.ask_with(Opcode::LOGS, 50, None, &waiting(60_000), &[]);
    for id in [second, first] {
        let error = result(client.answer(id)).unwrap_err();
        assert_eq!((error.kind.as_str(), error.code), ("DeadlineExceeded", 4));
    }
    assert!(librorum_sys::clock::monotonic() - begun < Duration::from_secs(20));
}

#[test]
fn beyond_its_credit_a_client_is_told_to_wait() {
    let limits = Limits { requests_max: 2, bytes_max: 1000, ..Limits::default() };
    let world = World::with(Options { limits, ..Options::default() });
    let mut client = world.greeted();
    assert_eq!((client.reply.requests_max, client.reply.bytes_max), (2, 1000));
    // A single request may always be made.
    assert!(client.put("large", &[1; 5000]).is_ok());
    let slow: Vec<u64> = (0..2).map(|_| client.ask(Opcode::LOGS, &waiting(60_000), &[])).collect();
    let error = client.stat("").unwrap_err();
    assert_eq!((error.kind.as_str(), error.code), ("Overloaded", 8));
    assert!(error.retry_after_ms > 0);
    assert_eq!(world.metrics.stats().credits_stalled, 1);
    client.frame(Header::new(Kind::Cancel, Opcode::NONE, slow[0]), &[], &[]).unwrap();
    client.answer(slow[0]);
    assert!(client.is_answered());
    assert_eq!(client.put("large", &[1; 5000]).unwrap_err().kind, "Overloaded");
    assert!(client.put("small", &[1; 500]).is_ok());
    assert!(world.greeted().is_answered(), "credit is each connection's own");
}

#[test]
fn a_user_has_so_many_connections() {
    let limits = Limits { connections_per_user_max: 3, ..Limits::default() };
    let world = World::with(Options { limits, ..Options::default() });
    let held: Vec<Raw> = (0..3).map(|_| world.greeted()).collect();
    let mut more = world.connect();
    let error = more.ends().unwrap();
    assert_eq!(error.kind, "Overloaded");
    assert!(error.retry_after_ms > 0);
    drop(held);
    eventually("room", || world.server.connection_count() == 0);
    assert!(world.greeted().is_answered());
}

#[test]
fn every_operation_is_counted() {
    let world = World::new();
    let mut client = world.greeted();
    client.put("file", b"1234567").unwrap();
    client.stat("nothing").unwrap_err();
    let stats = world.metrics.stats();
    let put = stats.operations.iter().find(|found| found.operation == "PUT").unwrap();
    assert_eq!((put.transport.as_str(), put.count, put.bytes), ("lbru-inline", 1, 7));
    let stat = stats.operations.iter().find(|found| found.operation == "STAT").unwrap();
    assert_eq!((stat.transport.as_str(), stat.count, stat.error_count), ("lbru", 1, 1));
    assert_eq!(stats.requests_in_flight, 0);
}
