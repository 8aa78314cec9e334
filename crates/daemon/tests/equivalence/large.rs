//! A gigabyte, up and down, through less than 100 MiB of memory on each side.
//!
//! What counts is memory that only the process can give back: anonymous pages and shared memory
//! (`RssAnon` and `RssShmem`). Pages of files that are mapped are the kernel's cache, which it takes back
//! when it likes; the program itself is among them. Both processes are looked at after each MiB.

use crate::process::{Daemon, Process, argument, doors, memory_bytes, say};
use crate::world::{Way, check};
use librorum_rpc::client::WriteOptions;

const MEMORY_BYTES_MAX: u64 = 100 << 20;
const STEP: usize = 1 << 20;

/// A MiB that no other is like.
fn stamp(bytes: &mut [u8], index: usize) {
    for part in bytes.chunks_mut(4096) {
        part[..8].copy_from_slice(&(index as u64).to_le_bytes());
    }
}

/// The client that is measured: writes a file, reads it again, and says what memory both sides took.
pub(crate) fn move_and_measure() {
    let way = Way::of(&argument("WAY")).unwrap();
    let steps: usize = argument("MIB").parse().unwrap();
    let daemon: u32 = argument("DAEMON").parse().unwrap();
    let client = doors().client(way);
    let mut most = [0; 2];
    let mut measure = || {
        for (most, id) in most.iter_mut().zip([std::process::id(), daemon]) {
            *most = memory_bytes(id).max(*most);
        }
    };
    let mut bytes = crate::harness::noise(STEP, 1);
    let options = WriteOptions { size_hint: (steps * STEP) as u64, ..WriteOptions::default() };
    let upload = client.create("", b"large", options).unwrap();
    for index in 0..steps {
        stamp(&mut bytes, index);
        upload.write_at((index * STEP) as u64, &bytes).unwrap();
        measure();
    }
    assert_eq!(upload.commit().unwrap().size_bytes, (steps * STEP) as u64);
    measure();
    let file = client.open("", b"large").unwrap();
    let mut read = vec![0; STEP];
    for index in 0..steps {
        assert_eq!(file.read_into((index * STEP) as u64, &mut read).unwrap(), STEP);
        stamp(&mut bytes, index);
        assert!(read == bytes, "MiB {index} is another");
        measure();
    }
    assert_eq!(file.read_into((steps * STEP) as u64, &mut read).unwrap(), 0);
    drop(file);
    let used = client.transports();
    let moved: u64 =
        used.iter().filter(|used| used.transport == way.transport()).map(|used| used.bytes).sum();
    assert!(moved >= 2 * (steps * STEP) as u64, "{used:?}");
    say(&format!("{} {}", most[0], most[1]));
}

#[test]
fn a_large_file_takes_little_memory_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    for (way, mib) in [
        (Way::Descriptor, 1024),
        (Way::Arena, 1024),
        (Way::Inline, 256),
        (Way::GrpcSocket, 256),
        (Way::GrpcTcp, 256),
    ] {
        let mut arguments = daemon.arguments();
        arguments.push(("WAY", format!("{way:?}")));
        arguments.push(("MIB", mib.to_string()));
        let mut client = Process::start("mover", &arguments);
        let said = client.hear();
        let memory: Vec<u64> =
            said.split_ascii_whitespace().map(|bytes| bytes.parse().unwrap()).collect();
        eprintln!(
            "{way:?}, {mib} MiB: client {} KiB, daemon {} KiB",
            memory[0] >> 10,
            memory[1] >> 10
        );
        assert!(memory[0] < MEMORY_BYTES_MAX, "{way:?}: the client had {} bytes", memory[0]);
        assert!(memory[1] < MEMORY_BYTES_MAX, "{way:?}: the daemon had {} bytes", memory[1]);
        assert!(client.is_well());
        daemon.wait_until_idle();
    }
    // Sealing is work of the daemon's, too.
    daemon.seal();
    assert!(memory_bytes(daemon.process.id()) < MEMORY_BYTES_MAX);
    daemon.stop();
    assert_eq!(check(&dir.path().join("main")), []);
}
