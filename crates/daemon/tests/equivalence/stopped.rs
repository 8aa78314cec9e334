//! A client that stops reading while large answers are on their way to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use librorum_rpc::client::WriteOptions;
use librorum_rpc::proto::v1;
use rustix::process::Signal;

use crate::operation::Content;
use crate::process::{Daemon, Process, argument, doors, memory_bytes, say};
use crate::world::Way;

const LEN: usize = 32 << 20;
const READERS: usize = 8;
const CLIENTS: usize = 2;

/// Credit of two connections, what waits for a reader that does not come, gRPC's windows, and what the
/// daemon has at rest.
const MEMORY_BYTES_MAX: u64 = 100 << 20;

/// The client that is stopped: many threads read a large file over and over.
pub(crate) fn read_for_ever() {
    let way = Way::of(&argument("WAY")).unwrap();
    let client = doors().client(way);
    let read = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut buffer = vec![0; 4 << 20];
                loop {
                    let file = client.open("", b"large").unwrap();
                    for at in (0..LEN).step_by(buffer.len()) {
                        assert_eq!(file.read_into(at as u64, &mut buffer).unwrap(), buffer.len());
                        // All are in the midst of it, by then.
                        if read.fetch_add(1, Ordering::SeqCst) + 1 == 2 * READERS as u64 {
                            say("reading");
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn others_are_answered_while_a_reader_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let bytes = Content { len: LEN, seed: 1 }.bytes();
    let client = daemon.doors.client(Way::Inline);
    let upload = client.create("", b"large", WriteOptions::default()).unwrap();
    upload.write_at(0, &bytes).unwrap();
    upload.commit().unwrap();
    drop(client);
    daemon.seal();
    for way in Way::ALL {
        let mut arguments = daemon.arguments();
        arguments.push(("WAY", format!("{way:?}")));
        let mut readers: Vec<Process> =
            (0..CLIENTS).map(|_| Process::start("reader", &arguments)).collect();
        for reader in &mut readers {
            assert_eq!(reader.hear(), "reading");
            reader.signal(Signal::STOP);
        }
        let mut answered = 0;
        for other in Way::ALL {
            let client = daemon.doors.client(other);
            for turn in 0..40 {
                let path = bytes::Bytes::from(format!("{way:?}-{other:?}-{turn}").into_bytes());
                let asked =
                    v1::PutRequest { path: path.clone(), mode: 0o644, ..Default::default() };
                client.put(&asked, b"words").unwrap();
                let asked = v1::StatRequest { path, ..Default::default() };
                assert_eq!(client.stat(&asked).unwrap().entry.unwrap().size_bytes, 5);
                answered += 2;
            }
            let file = client.open("", b"large").unwrap();
            let mut part = vec![0; 1 << 20];
            for at in [0, 7 << 20, LEN - (1 << 20)] {
                assert_eq!(file.read_into(at as u64, &mut part).unwrap(), part.len());
                assert!(part == bytes[at..at + part.len()], "{way:?}, {other:?}, at {at}");
                answered += 1;
            }
        }
        assert_eq!(answered, 5 * (80 + 3));
        let memory = memory_bytes(daemon.process.id());
        eprintln!("{way:?}: {} KiB", memory >> 10);
        assert!(memory < MEMORY_BYTES_MAX, "{way:?}: {memory} bytes");
        for (index, reader) in readers.iter_mut().enumerate() {
            // One goes on first, the other dies as it is.
            if index == 0 {
                reader.signal(Signal::CONT);
            }
            reader.kill();
        }
        daemon.wait_until_idle();
    }
    daemon.stop();
}
