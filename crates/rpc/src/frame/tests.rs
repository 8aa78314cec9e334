//! Headers against the golden frames; streams under every split.

use std::fs::File;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use serde_json::Value;

use super::*;
use crate::proto::v1;

/// All that a frame can have: what HELLO can agree on at most.
const WIDEST: Limits =
    Limits { payload_bytes_max: PAYLOAD_LEN_MAX, meta_bytes_max: u16::MAX, descriptors_max: 64 };

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/golden-frames.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn number<T: TryFrom<u64>>(value: &Value, field: &str) -> T {
    let number = value[field].as_u64().unwrap_or_else(|| panic!("{field} of {value}"));
    T::try_from(number).ok().unwrap()
}

fn bytes(value: &Value, field: &str) -> Vec<u8> {
    let hex = value[field].as_str().unwrap_or_default();
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn kind_named(name: &str) -> Kind {
    let known = |kind: &Kind| format!("{kind:?}").eq_ignore_ascii_case(name);
    Kind::ALL.into_iter().find(known).unwrap()
}

#[test]
fn headers_are_the_golden_ones() {
    let golden = golden();
    for frame in golden["frames"].as_array().unwrap() {
        let header = Header {
            kind: kind_named(frame["kind"].as_str().unwrap()),
            opcode: Opcode(number(frame, "opcode")),
            flags: number(frame, "flags"),
            payload_len: number(frame, "payload_len"),
            request_id: number(frame, "request_id"),
            meta_len: number(frame, "meta_len"),
            fd_count: number(frame, "fd_count"),
            status: number(frame, "status"),
        };
        let encoded = [&header.encode()[..], &bytes(frame, "meta"), &bytes(frame, "payload")];
        assert_eq!(encoded.concat(), bytes(frame, "hex"), "{}", frame["name"]);
        assert_eq!(Header::decode(&header.encode()).unwrap(), header, "{}", frame["name"]);
        WIDEST.check(&header).unwrap();
    }
    let has = |kind: &Kind| {
        let name = format!("{kind:?}").to_uppercase();
        golden["frames"].as_array().unwrap().iter().any(|frame| frame["kind"] == name.as_str())
    };
    assert!(Kind::ALL.iter().all(has));
}

#[test]
fn prefixes_transfers_and_credits_are_the_golden_ones() {
    for frame in golden()["frames"].as_array().unwrap() {
        let mut rest = Bytes::from(bytes(frame, "meta"));
        let said = &frame["prefix"];
        if said.is_object() {
            let key = bytes(said, "key");
            let prefix = Prefix {
                deadline_ms: number(said, "deadline_ms"),
                cpu: 0,
                trace_id: number(said, "trace_id"),
                key: (!key.is_empty()).then(|| key.try_into().unwrap()),
            };
            let (decoded, message) = Prefix::decode(&rest, number(frame, "flags")).unwrap();
            assert_eq!(decoded, prefix);
            let mut encoded = Vec::new();
            prefix.encode_to(&mut encoded);
            assert_eq!(encoded, rest[..rest.len() - message.len()]);
            assert_eq!(prefix.flags(), number::<u32>(frame, "flags") & flag::KEY);
            rest = message;
        }
        let said = &frame["transfer"];
        if said.is_object() {
            let transfer = Transfer {
                handle: number(said, "handle"),
                offset: number(said, "offset"),
                len: number(said, "len"),
                slot: (!said["slot"].is_null()).then(|| number(said, "slot")),
            };
            assert_eq!(Transfer::decode(&rest).unwrap(), transfer);
            assert_eq!(transfer.encode(), rest[..]);
        }
        let said = &frame["credit"];
        if said.is_object() {
            let credit = Credit {
                requests_max: number(said, "requests_max"),
                bytes_max: number(said, "bytes_max"),
            };
            assert_eq!(Credit::decode(&rest).unwrap(), credit);
            assert_eq!(credit.encode(), rest[..]);
        }
    }
}

/// Decodes, compares one field by which the message is known, and encodes again.
fn check<M: Message + Default + std::fmt::Debug>(message: &[u8], known: impl Fn(&M) -> bool) {
    let decoded = M::decode(message).unwrap();
    assert!(known(&decoded), "{decoded:?}");
    assert_eq!(decoded.encode_to_vec(), message);
}

#[test]
fn messages_are_the_golden_ones() {
    for frame in golden()["frames"].as_array().unwrap() {
        let meta = Bytes::from(bytes(frame, "meta"));
        let message = if frame["prefix"].is_object() {
            Prefix::decode(&meta, number(frame, "flags")).unwrap().1
        } else {
            meta
        };
        let said = &frame["message"]["fields"];
        match frame["message"]["type"].as_str().and_then(|name| name.rsplit('.').next()) {
            None => {}
            Some("Hello") => check::<v1::Hello>(&message, |hello| {
                hello.features == number::<u64>(said, "features")
                    && hello.session_secret == bytes(said, "session_secret")
            }),
            Some("HelloReply") => check::<v1::HelloReply>(&message, |reply| {
                reply.instance == bytes(said, "instance")
                    && reply.bytes_max == number::<u64>(said, "bytes_max")
                    && reply.ping_after_ms == number::<u32>(said, "ping_after_ms")
            }),
            Some("StatRequest") => {
                check::<v1::StatRequest>(&message, |request| request.path == bytes(said, "path"));
            }
            Some("StatResponse") => check::<v1::StatResponse>(&message, |response| {
                response.entry.as_ref().unwrap().ino == number::<u64>(&said["entry"], "ino")
            }),
            Some("RenameRequest") => check::<v1::RenameRequest>(&message, |request| {
                request.from == bytes(said, "from") && request.to == bytes(said, "to")
            }),
            Some("Error") => check::<v1::Error>(&message, |error| {
                error.code == number::<u32>(frame, "status")
                    && error.kind == said["kind"].as_str().unwrap()
            }),
            Some("PutRequest") => check::<v1::PutRequest>(&message, |request| {
                request.mode == number::<u32>(said, "mode")
            }),
            Some("OpenReadResponse") => check::<v1::OpenReadResponse>(&message, |response| {
                response.handle == number::<u64>(said, "handle")
                    && response.pieces[0].segment == number::<u64>(&said["pieces"][0], "segment")
            }),
            Some("GoAway") => check::<v1::GoAway>(&message, |goaway| {
                goaway.reason.as_ref().unwrap().message
                    == said["reason"]["message"].as_str().unwrap()
            }),
            Some(other) => panic!("{other} is not checked"),
        }
    }
}

#[test]
fn invalid_headers_are_refused_for_their_reason() {
    for invalid in golden()["invalid"].as_array().unwrap() {
        let header: [u8; HEADER_LEN] = bytes(invalid, "hex").try_into().unwrap();
        let error = Header::decode(&header).and_then(|header| WIDEST.check(&header)).unwrap_err();
        let reason = match error {
            FrameError::Magic { .. } => "magic",
            FrameError::Version { .. } => "version",
            FrameError::Checksum { .. } => "checksum",
            FrameError::Kind { .. } => "kind",
            FrameError::Flags { .. } => "flags",
            FrameError::Payload { .. } => "payload",
            FrameError::Meta { .. } => "meta",
            FrameError::Descriptors { .. } => "descriptors",
            error @ (FrameError::Claim { .. }
            | FrameError::Stray { .. }
            | FrameError::Short { .. }) => panic!("{error}"),
        };
        assert_eq!(reason, invalid["reason"], "{}", invalid["name"]);
    }
}

#[test]
fn short_metas_are_refused() {
    assert!(Prefix::decode(&Bytes::from_static(&[0; 15]), 0).is_err());
    assert!(Prefix::decode(&Bytes::from_static(&[0; 16]), 0).is_ok());
    assert!(Prefix::decode(&Bytes::from_static(&[0; 31]), flag::KEY).is_err());
    assert!(Prefix::decode(&Bytes::from_static(&[0; 32]), flag::KEY).is_ok());
    assert!(Transfer::decode(&[0; 23]).is_err());
    assert!(Transfer::decode(&[0; 25]).is_err());
    assert!(Credit::decode(&[0; 15]).is_err());
}

#[test]
fn no_two_opcodes_are_alike() {
    for (index, opcode) in Opcode::ALL.iter().enumerate() {
        assert!(opcode.name().is_some());
        assert!(Opcode::ALL[index + 1..].iter().all(|other| other != opcode));
    }
    assert_eq!(Opcode(0x7777).name(), None);
}

/// A frame to be sent, and its bytes.
#[derive(Clone, Debug)]
struct Sent {
    meta: Vec<u8>,
    payload: Vec<u8>,
    fd_count: u8,
}

impl Sent {
    fn encode(&self, request_id: u64) -> Vec<u8> {
        let header = Header {
            payload_len: u32::try_from(self.payload.len()).unwrap(),
            meta_len: u16::try_from(self.meta.len()).unwrap(),
            fd_count: self.fd_count,
            ..Header::new(Kind::Res, Opcode::READ_OPEN, request_id)
        };
        [&header.encode()[..], &self.meta, &self.payload].concat()
    }
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
}

fn feed(
    splitter: &mut Splitter,
    bytes: &[u8],
    fds: Vec<OwnedFd>,
    frames: &mut Vec<Frame>,
) -> Result<(), FrameError> {
    feed_with(splitter, bytes, (0, fds), frames)
}

/// The descriptors come with the byte at this place.
fn feed_with(
    splitter: &mut Splitter,
    mut bytes: &[u8],
    (mut at, mut fds): (usize, Vec<OwnedFd>),
    frames: &mut Vec<Frame>,
) -> Result<(), FrameError> {
    while !bytes.is_empty() {
        let space = splitter.space();
        assert!(!space.is_empty());
        let n = space.len().min(bytes.len());
        space[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        let come = if at < n { std::mem::take(&mut fds) } else { Vec::new() };
        at = at.saturating_sub(n);
        splitter.filled(n, come)?;
        while let Some(frame) = splitter.next()? {
            frames.push(frame);
        }
    }
    Ok(())
}

fn frame_to_send() -> impl Strategy<Value = Sent> {
    let small = proptest::collection::vec(any::<u8>(), 0..200);
    let large = (0_usize..100_000, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]);
    let payload = prop_oneof![4 => small.clone(), 1 => large];
    (small, payload, prop_oneof![3 => Just(0_u8), 1 => 1_u8..5])
        .prop_map(|(meta, payload, fd_count)| Sent { meta, payload, fd_count })
}

/// Sends frames as the kernel may deliver them: `cuts` are lengths of chunks, used in turn, and a chunk
/// ends at the latest with the bytes that its descriptors were sent with.
fn deliver(sent: &[Sent], cuts: &[usize]) -> Vec<Frame> {
    let mut splitter = Splitter::new(WIDEST);
    let mut received = Vec::new();
    let mut chunk = Vec::new();
    // Where in the chunk they come, and which.
    let mut fds = (0, Vec::new());
    let mut cuts = cuts.iter().copied().cycle();
    let mut room = cuts.next().unwrap();
    let mut flush = |chunk: &mut Vec<u8>, fds: &mut (usize, Vec<OwnedFd>)| {
        let fds = std::mem::take(fds);
        feed_with(&mut splitter, &std::mem::take(chunk), fds, &mut received).unwrap();
    };
    for (index, frame) in sent.iter().enumerate() {
        for (at, &byte) in frame.encode(index as u64).iter().enumerate() {
            if at == 0 && frame.fd_count > 0 {
                if !fds.1.is_empty() {
                    flush(&mut chunk, &mut fds);
                }
                fds = (chunk.len(), descriptors(usize::from(frame.fd_count)));
            }
            chunk.push(byte);
            room -= 1;
            if room == 0 {
                flush(&mut chunk, &mut fds);
                room = cuts.next().unwrap();
            }
        }
    }
    flush(&mut chunk, &mut fds);
    assert!(splitter.is_between_frames());
    received
}

fn assert_same(sent: &[Sent], received: &[Frame]) {
    assert_eq!(sent.len(), received.len());
    for (index, (sent, received)) in sent.iter().zip(received).enumerate() {
        assert_eq!(received.header.request_id, index as u64);
        assert_eq!(received.meta, sent.meta);
        assert!(received.payload == sent.payload, "the payload of frame {index}");
        assert_eq!(received.descriptors.len(), usize::from(sent.fd_count));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn frames_survive_every_split(
        sent in proptest::collection::vec(frame_to_send(), 1..12),
        cuts in proptest::collection::vec(prop_oneof![1_usize..40, 1_usize..70_000], 1..8),
    ) {
        assert_same(&sent, &deliver(&sent, &cuts));
    }

    #[test]
    fn arbitrary_bytes_end_in_an_error_or_in_waiting(
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        begins_well in any::<bool>(),
        cut in 1_usize..100,
    ) {
        let mut stream = Vec::new();
        if begins_well {
            stream = Sent { meta: vec![1; 9], payload: vec![2; 20_000], fd_count: 0 }.encode(0);
        }
        stream.extend(bytes);
        let mut splitter = Splitter::new(WIDEST);
        let mut frames = Vec::new();
        for chunk in stream.chunks(cut) {
            if feed(&mut splitter, chunk, Vec::new(), &mut frames).is_err() {
                break;
            }
        }
        prop_assert_eq!(frames.len(), usize::from(begins_well));
    }

    /// Whatever lies in a meta, its decoders answer.
    #[test]
    fn arbitrary_metas_are_refused_or_read(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        flags in prop_oneof![Just(0), Just(flag::KEY)],
    ) {
        let meta = Bytes::from(bytes);
        if let Ok((prefix, rest)) = Prefix::decode(&meta, flags) {
            let mut again = Vec::new();
            prefix.encode_to(&mut again);
            prop_assert_eq!(again.len() + rest.len(), meta.len());
            if let Ok(transfer) = Transfer::decode(&rest) {
                prop_assert_eq!(&transfer.encode()[..], &rest[..]);
            }
            drop(v1::OpenReadRequest::decode(rest.clone()));
            drop(v1::CommitRequest::decode(rest));
        }
        drop(v1::HelloReply::decode(meta.clone()));
        drop(v1::OpenReadResponse::decode(meta.clone()));
        if let Ok(error) = v1::Error::decode(meta) {
            let failure = crate::Failure::from_message(&error);
            prop_assert_eq!(crate::Failure::from_message(&failure.to_message()), failure);
        }
    }

    /// A damaged byte anywhere in a header is noticed.
    #[test]
    fn damaged_headers_are_refused(at in 0..HEADER_LEN, flip in 1_u8..) {
        let mut header = Header::new(Kind::Req, Opcode::STAT, 77).encode();
        header[at] ^= flip;
        prop_assert!(Header::decode(&header).is_err());
    }

    /// Descriptors that come later than with the first byte of the frame that expects them.
    #[test]
    fn descriptors_on_any_other_byte_are_refused(
        at in 1_usize..20_100,
        expects in any::<bool>(),
    ) {
        let sent = Sent {
            meta: vec![1; 100],
            payload: vec![2; 20_000],
            fd_count: u8::from(expects),
        };
        let encoded = sent.encode(0);
        let mut splitter = Splitter::new(WIDEST);
        let mut frames = Vec::new();
        let result = feed(&mut splitter, &encoded[..at], Vec::new(), &mut frames)
            .and_then(|()| feed(&mut splitter, &encoded[at..], descriptors(1), &mut frames));
        prop_assert!(result.is_err());
        prop_assert!(frames.len() <= usize::from(!expects));
    }
}

#[test]
fn one_byte_at_a_time_and_all_at_once_are_the_same() {
    let sent: Vec<Sent> = (0..6_u8)
        .map(|index| Sent {
            meta: vec![index; usize::from(index) * 50],
            payload: vec![index; usize::from(index % 3) * 17_000],
            fd_count: index % 3,
        })
        .collect();
    for cut in [1, 31, 32, 33, usize::MAX] {
        assert_same(&sent, &deliver(&sent, &[cut]));
    }
}

#[test]
fn descriptors_without_a_frame_are_refused_and_closed() {
    let none = Sent { meta: Vec::new(), payload: Vec::new(), fd_count: 0 };
    let mut splitter = Splitter::new(WIDEST);
    let mut frames = Vec::new();
    let result = feed(&mut splitter, &none.encode(0), descriptors(2), &mut frames);
    assert_eq!(result, Err(FrameError::Stray { count: 2 }));

    // On every byte of a header: the second ones have no frame.
    let two = Sent { fd_count: 2, ..none.clone() };
    let mut splitter = Splitter::new(WIDEST);
    let encoded = two.encode(0);
    feed(&mut splitter, &encoded[..1], descriptors(2), &mut frames).unwrap();
    let result = feed(&mut splitter, &encoded[1..2], descriptors(2), &mut frames);
    assert_eq!(result, Err(FrameError::Stray { count: 4 }));

    // Too few and too many for the frame.
    for count in [1, 3] {
        let mut splitter = Splitter::new(WIDEST);
        let result = feed(&mut splitter, &encoded, descriptors(count), &mut frames);
        assert_eq!(result, Err(FrameError::Claim { expected: 2, found: count }));
    }
}

/// A body that was received into its own buffer did not count as a part of the stream, so that the
/// descriptors of every later frame seemed to come with other bytes.
#[test]
fn descriptors_after_a_long_body_are_those_of_their_frame() {
    let long = Sent { meta: Vec::new(), payload: vec![7; 100_000], fd_count: 0 };
    let with = Sent { meta: Vec::new(), payload: Vec::new(), fd_count: 2 };
    let mut splitter = Splitter::new(WIDEST);
    let mut frames = Vec::new();
    for part in long.encode(0).chunks(30_000) {
        feed(&mut splitter, part, Vec::new(), &mut frames).unwrap();
    }
    feed(&mut splitter, &with.encode(1), descriptors(2), &mut frames).unwrap();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[1].descriptors.len(), 2);
}

#[test]
fn before_hello_only_a_small_meta_is_taken() {
    let refused = [
        Sent { meta: vec![0; 4097], payload: Vec::new(), fd_count: 0 },
        Sent { meta: Vec::new(), payload: vec![0], fd_count: 0 },
        Sent { meta: Vec::new(), payload: Vec::new(), fd_count: 1 },
    ];
    for sent in refused {
        let mut splitter = Splitter::new(Limits::BEFORE_HELLO);
        let fds = descriptors(usize::from(sent.fd_count));
        assert!(feed(&mut splitter, &sent.encode(0), fds, &mut Vec::new()).is_err());
    }
    let mut splitter = Splitter::new(Limits::BEFORE_HELLO);
    let sent = Sent { meta: vec![0; 4096], payload: Vec::new(), fd_count: 0 };
    let mut frames = Vec::new();
    feed(&mut splitter, &sent.encode(0), Vec::new(), &mut frames).unwrap();
    assert_same(&[sent], &frames);
}
