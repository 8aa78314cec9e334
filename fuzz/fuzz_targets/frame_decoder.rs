//! A stream of frames under any split, with a descriptor somewhere.
//!
//! The first byte says how long the chunks are, the second which of them brings a descriptor; the rest is
//! the stream. `crates/rpc/src/frame/tests.rs` has the same as property tests.

#![no_main]

use std::fs::File;
use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use librorum_rpc::frame::{HEADER_LEN, Limits, Splitter};

fuzz_target!(|data: &[u8]| {
    let &[len, with_descriptor, ref stream @ ..] = data else { return };
    let limits =
        Limits { payload_bytes_max: 1 << 20, meta_bytes_max: u16::MAX, descriptors_max: 16 };
    let mut splitter = Splitter::new(limits);
    let mut frames_len = 0;
    for (index, mut chunk) in stream.chunks(usize::from(len) + 1).enumerate() {
        while !chunk.is_empty() {
            let space = splitter.space();
            let n = space.len().min(chunk.len());
            assert!(n > 0, "there is always space");
            space[..n].copy_from_slice(&chunk[..n]);
            chunk = &chunk[n..];
            let fds: Vec<OwnedFd> = if index == usize::from(with_descriptor) {
                File::open("/dev/null").map(OwnedFd::from).into_iter().collect()
            } else {
                Vec::new()
            };
            if splitter.filled(n, fds).is_err() {
                return;
            }
            loop {
                match splitter.next() {
                    Ok(Some(frame)) => {
                        limits.check(&frame.header).expect("a frame within the limits");
                        assert_eq!(frame.meta.len(), usize::from(frame.header.meta_len));
                        assert_eq!(frame.descriptors.len(), usize::from(frame.header.fd_count));
                        frames_len += HEADER_LEN + frame.meta.len() + frame.payload.len();
                        assert!(frames_len <= stream.len());
                    }
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    }
});
