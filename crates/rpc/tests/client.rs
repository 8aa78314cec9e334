//! The client against a daemon that is played from a script over real sockets.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    clippy::wildcard_enum_match_arm,
    reason = "tests"
)]

mod peer;

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::Bytes;
use librorum_format::ErrorKind;
use librorum_rpc::client::{CallOptions, Cancel, Client, ClientOptions, Target};
use librorum_rpc::frame::{Credit, Header, Kind, Opcode};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use peer::{Answer, Peer, daemon, descriptors, pair, reply};
use prost::Message;

fn options() -> ClientOptions {
    ClientOptions { retry_for: Duration::from_secs(5), ..ClientOptions::default() }
}

fn stat_of(path: &str) -> v1::StatRequest {
    v1::StatRequest { path: Bytes::copy_from_slice(path.as_bytes()), ..Default::default() }
}

fn size(response: v1::StatResponse) -> u64 {
    response.entry.unwrap().size_bytes
}

/// What a client that is connected to this script answers to a STAT.
fn stat_against(script: impl FnOnce(Peer) + Send + 'static) -> Result<v1::StatResponse, Failure> {
    let (stream, script) = pair(move |mut peer| {
        peer.hello();
        script(peer);
    });
    let client = Client::connect(Target::Connected(stream), options()).unwrap();
    let answer = client.stat(&stat_of("a"));
    drop(client);
    script.join().unwrap();
    answer
}

#[test]
fn a_request_is_answered_and_a_failure_is_told() {
    let (stream, script) = pair(|mut peer| {
        let hello = peer.hello();
        assert_eq!((hello.version_min, hello.version_max, hello.features), (1, 1, 7));
        let asked = peer.expect(Opcode::STAT);
        assert_eq!(asked.id % 2, 1);
        peer.stat(&asked);
        let asked = peer.expect(Opcode::RENAME);
        assert!(asked.prefix.key.is_some());
        peer.fail(&asked, &Failure::file(ErrorKind::NotEmpty, "there is something in it"));
    });
    let client = Client::connect(Target::Connected(stream), options()).unwrap();
    assert_eq!(size(client.stat(&stat_of("abc")).unwrap()), 3);
    let failure = client.rename(&v1::RenameRequest::default()).unwrap_err();
    assert_eq!(failure, Failure::file(ErrorKind::NotEmpty, "there is something in it"));
    script.join().unwrap();
}

#[test]
fn an_answer_may_come_byte_by_byte() {
    let answer = stat_against(|mut peer| {
        let asked = peer.expect(Opcode::STAT);
        let entry = v1::Entry { size_bytes: 9, ..Default::default() };
        let meta = v1::StatResponse { entry: Some(entry), ..Default::default() }.encode_to_vec();
        let header = Header {
            meta_len: u16::try_from(meta.len()).unwrap(),
            ..Header::new(Kind::Res, Opcode::STAT, asked.id)
        };
        for byte in [&header.encode()[..], &meta].concat() {
            peer.stream.write_all(&[byte]).unwrap();
        }
        peer.request();
    });
    assert_eq!(size(answer.unwrap()), 9);
}

type Script = Box<dyn FnOnce(Peer) + Send>;

#[test]
fn hostile_answers_end_the_connection() {
    let scripts: Vec<(&str, Script)> = vec![
        (
            "an id that was not asked",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                peer.send(Kind::Res, asked.opcode, asked.id + 2, &Answer::default());
                peer.request();
            }),
        ),
        (
            "bytes that were not asked for",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                let answer = Answer { payload: b"x", ..Answer::default() };
                peer.send(Kind::Data, asked.opcode, asked.id, &answer);
                peer.request();
            }),
        ),
        (
            "more descriptors than agreed",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                let files = descriptors(17);
                let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                peer.answer(&asked, &Answer { descriptors: &files, ..Answer::default() });
                peer.request();
            }),
        ),
        (
            "fewer descriptors than said",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                let files = descriptors(1);
                let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                let answer = Answer { descriptors: &files, fd_count: Some(2), ..Answer::default() };
                peer.answer(&asked, &answer);
                peer.request();
            }),
        ),
        (
            "a descriptor that no header mentions",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                let files = descriptors(1);
                let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                let answer = Answer { descriptors: &files, fd_count: Some(0), ..Answer::default() };
                // It comes with bytes of no request: an answer would be taken before.
                peer.send(Kind::Ping, Opcode::NONE, asked.id, &answer);
                peer.request();
            }),
        ),
        (
            "a payload above the limit",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                let header = Header {
                    payload_len: (256 << 10) + 1,
                    ..Header::new(Kind::Res, asked.opcode, asked.id)
                };
                peer.stream.write_all(&header.encode()).unwrap();
                peer.request();
            }),
        ),
        (
            "a wrong checksum",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                let mut header = Header::new(Kind::Res, asked.opcode, asked.id).encode();
                header[31] ^= 1;
                peer.stream.write_all(&header).unwrap();
                peer.request();
            }),
        ),
        (
            "a request",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                peer.send(Kind::Req, asked.opcode, 2, &Answer::default());
                peer.request();
            }),
        ),
        (
            "a message that is none",
            Box::new(|mut peer| {
                let asked = peer.request().unwrap();
                peer.answer(&asked, &Answer { meta: vec![0xff; 9], ..Answer::default() });
                peer.request();
            }),
        ),
    ];
    for (what, script) in scripts {
        let failure = stat_against(script).unwrap_err();
        assert_eq!(failure.reason, Reason::Protocol, "{what}: {failure}");
    }
}

#[test]
fn a_daemon_that_chose_what_was_not_offered_is_refused() {
    let wrong = [
        v1::HelloReply { version: 2, ..reply() },
        v1::HelloReply { features: 15, ..reply() },
        v1::HelloReply { instance: Bytes::new(), ..reply() },
        v1::HelloReply { payload_bytes_max: 1 << 20, ..reply() },
        v1::HelloReply { descriptors_max: 17, ..reply() },
    ];
    for wrong in wrong {
        let (stream, script) = pair(move |mut peer| drop(peer.hello_as(&wrong)));
        let failure = Client::connect(Target::Connected(stream), options()).unwrap_err();
        assert_eq!(failure.reason, Reason::Protocol, "{failure}");
        script.join().unwrap();
    }
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    let answer = stat_against(|mut peer| {
        let asked = peer.expect(Opcode::STAT);
        let ping = Answer { payload: b"there?", ..Answer::default() };
        peer.send(Kind::Ping, Opcode::NONE, 44, &ping);
        let pong = peer.frame().unwrap();
        assert_eq!((pong.header.kind, pong.header.flags), (Kind::Ping, 1));
        assert_eq!((pong.header.request_id, &pong.payload[..]), (44, &b"there?"[..]));
        peer.stat(&asked);
        peer.request();
    });
    assert_eq!(size(answer.unwrap()), 1);
}

#[test]
fn a_lost_connection_is_made_again_and_the_request_repeated_with_its_key() {
    let daemon = daemon(vec![
        Box::new(|mut peer: Peer| {
            peer.hello();
            let first = peer.expect(Opcode::REMOVE);
            assert!(first.prefix.key.is_some());
        }),
        Box::new(|mut peer: Peer| {
            let instance = Bytes::from_static(&[9; 16]);
            peer.hello_as(&v1::HelloReply { instance, ..reply() });
            let again = peer.expect(Opcode::REMOVE);
            assert_eq!(again.prefix.key, Some([3; 16]));
            peer.say(&again, &v1::RemoveResponse { removed_count: 1, ..Default::default() });
            peer.request();
        }),
    ]);
    let client = Client::connect(Target::Socket(daemon.path.clone()), options()).unwrap();
    let before = client.instance().unwrap();
    let keyed = client.with(CallOptions { key: Some([3; 16]), ..CallOptions::default() });
    let answer = keyed.remove(&v1::RemoveRequest::default()).unwrap();
    assert_eq!(answer.removed_count, 1);
    assert_ne!(client.instance().unwrap(), before);
    drop((client, keyed));
    daemon.scripts.join().unwrap();
}

#[test]
fn goaway_moves_requests_to_a_new_connection() {
    let daemon = daemon(vec![
        Box::new(|mut peer: Peer| {
            peer.hello();
            let asked = peer.expect(Opcode::STAT);
            let reason = Failure::file(ErrorKind::Unavailable, "it restarts").to_message();
            let meta = v1::GoAway { reason: Some(reason) }.encode_to_vec();
            peer.send(Kind::GoAway, Opcode::NONE, 0, &Answer { meta, ..Answer::default() });
            // What was asked before is still answered.
            peer.stat(&asked);
            assert!(peer.request().is_none());
        }),
        Box::new(|mut peer: Peer| {
            peer.hello();
            peer.serve_stats();
        }),
    ]);
    let client = Client::connect(Target::Socket(daemon.path.clone()), options()).unwrap();
    assert_eq!(size(client.stat(&stat_of("abc")).unwrap()), 3);
    assert_eq!(size(client.stat(&stat_of("abcd")).unwrap()), 4);
    drop(client);
    daemon.scripts.join().unwrap();
}

#[test]
fn an_end_without_a_way_back_is_disconnected() {
    let answer = stat_against(|mut peer| {
        peer.expect(Opcode::STAT);
    });
    assert_eq!(answer.unwrap_err().reason, Reason::Disconnected);
}

#[test]
fn an_overloaded_daemon_is_asked_again() {
    let answer = stat_against(|mut peer| {
        for _ in 0..2 {
            let asked = peer.expect(Opcode::STAT);
            let mut failure = Failure::new(Reason::Overloaded, "too much");
            failure.retry_after_ms = 5;
            peer.fail(&asked, &failure);
        }
        peer.serve_stats();
    });
    assert_eq!(size(answer.unwrap()), 1);
}

#[test]
fn never_more_requests_are_under_way_than_credit_allows() {
    let (stream, script) = pair(|mut peer| {
        peer.hello_as(&v1::HelloReply { requests_max: 4, ..reply() });
        // All that come without an answer, and nothing more for a while.
        let asked: Vec<_> = (0..4).map(|_| peer.request().unwrap()).collect();
        peer.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(peer.request().is_none());
        peer.stream.set_read_timeout(None).unwrap();
        let credit = Credit { requests_max: 2, bytes_max: 1 << 20 }.encode().to_vec();
        peer.send(Kind::Credit, Opcode::NONE, 0, &Answer { meta: credit, ..Answer::default() });
        for asked in asked.iter().rev() {
            peer.stat(asked);
        }
        peer.serve_stats();
    });
    let client = Client::connect(Target::Connected(stream), options()).unwrap();
    let mut pipeline = client.pipeline();
    let tickets: Vec<_> = (0..100).map(|len| pipeline.stat(&stat_of(&"x".repeat(len)))).collect();
    let mut answers = pipeline.send().unwrap();
    assert_eq!(answers.len(), 100);
    for (len, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(size(answers.take(ticket).unwrap()), len as u64);
    }
    assert!(client.credits_stalled() > 0);
    drop(client);
    script.join().unwrap();
}

#[test]
fn many_threads_share_a_client() {
    let (stream, script) = pair(|mut peer| {
        peer.hello();
        // Answers two requests at a time in the wrong order, where there are two.
        while let Some(first) = peer.request() {
            peer.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let second = peer.request();
            peer.stream.set_read_timeout(None).unwrap();
            if let Some(second) = second {
                peer.stat(&second);
            }
            peer.stat(&first);
        }
    });
    let client = Client::connect(Target::Connected(stream), options()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..100 {
                    let len = thread * 100 + round;
                    let answer = client.stat(&stat_of(&"x".repeat(len))).unwrap();
                    assert_eq!(size(answer), len as u64);
                }
            });
        }
    });
    drop(client);
    script.join().unwrap();
}

#[test]
fn a_deadline_is_sent_and_kept() {
    let (stream, script) = pair(|mut peer| {
        peer.hello();
        let asked = peer.expect(Opcode::STAT);
        assert!((1..=300).contains(&asked.prefix.deadline_ms), "{asked:?}");
        // No answer: the client gives up by itself and says so.
        let cancel = peer.frame().unwrap();
        assert_eq!((cancel.header.kind, cancel.header.request_id), (Kind::Cancel, asked.id));
        // The answer comes late, and nobody minds.
        peer.fail(&asked, &Failure::new(Reason::Cancelled, "as you wish"));
        peer.serve_stats();
    });
    let client = Client::connect(Target::Connected(stream), options()).unwrap();
    let hasty = client
        .with(CallOptions { deadline: Some(Duration::from_millis(300)), ..CallOptions::default() });
    let failure = hasty.stat(&stat_of("a")).unwrap_err();
    assert_eq!(failure.reason, Reason::DeadlineExceeded);
    assert_eq!(size(client.stat(&stat_of("ab")).unwrap()), 2);
    drop((client, hasty));
    script.join().unwrap();
}

#[test]
fn cancelling_withdraws_the_request() {
    let (asked_for, asked_for_here) = std::sync::mpsc::channel();
    let (stream, script) = pair(move |mut peer| {
        peer.hello();
        let asked = peer.expect(Opcode::STAT);
        asked_for.send(()).unwrap();
        let cancel = peer.frame().unwrap();
        assert_eq!((cancel.header.kind, cancel.header.request_id), (Kind::Cancel, asked.id));
        peer.fail(&asked, &Failure::new(Reason::Cancelled, "as you wish"));
        peer.serve_stats();
    });
    let client = Client::connect(Target::Connected(stream), options()).unwrap();
    let cancel = Cancel::new();
    let cancellable =
        client.with(CallOptions { cancel: Some(cancel.clone()), ..CallOptions::default() });
    let waiting = {
        let cancellable = cancellable.clone();
        std::thread::spawn(move || cancellable.stat(&stat_of("a")))
    };
    asked_for_here.recv().unwrap();
    cancel.cancel();
    assert_eq!(waiting.join().unwrap().unwrap_err().reason, Reason::Cancelled);
    // From now on nothing with it is sent at all.
    assert_eq!(cancellable.stat(&stat_of("a")).unwrap_err().reason, Reason::Cancelled);
    assert_eq!(size(client.stat(&stat_of("ab")).unwrap()), 2);
    drop((client, cancellable));
    script.join().unwrap();
}

#[test]
fn a_listing_goes_through_all_pages() {
    let (stream, script) = pair(|mut peer| {
        peer.hello();
        for page in 0..3_u64 {
            let asked = peer.expect(Opcode::LIST);
            let request: v1::ListRequest = asked.decode();
            assert_eq!(request.cursor.len() as u64, page);
            let entry = |ino| v1::Entry { ino, ..Default::default() };
            let next = if page == 2 { 0 } else { page + 1 };
            let cursor = Bytes::from(vec![0; usize::try_from(next).unwrap()]);
            let entries = vec![entry(page * 2), entry(page * 2 + 1)];
            peer.say(&asked, &v1::ListResponse { entries, cursor, errors: Vec::new() });
        }
    });
    let client = Client::connect(Target::Connected(stream), options()).unwrap();
    let found: Vec<u64> =
        client.entries(v1::ListRequest::default()).map(|entry| entry.unwrap().ino).collect();
    assert_eq!(found, [0, 1, 2, 3, 4, 5]);
    script.join().unwrap();
}
