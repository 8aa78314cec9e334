//! One trace of operations, in seven ways on seven volumes.

use std::path::Path;

use librorum_daemon::service::{Call, Caller};
use librorum_rpc::client::WriteOptions;
use librorum_rpc::proto::v1;

use crate::operation::{Content, Operation, Random};
use crate::ways::{Answer, ByClient, ByMount, ByService, Doer, Seen};
use crate::world::{Way, World, can_mount, check};

const VOLUMES: [&str; 7] =
    ["service", "descriptor", "arena", "inline", "grpc-socket", "grpc-tcp", "mount"];

const STEPS: usize = 500;

/// A link on the way is followed by the kernel and not by the service, as 0007 says: nothing to compare.
fn meets_a_link(root: &Path, operation: &Operation) -> bool {
    let (paths, follows_last) = operation.paths();
    paths.into_iter().any(|path| {
        let count = path.split('/').count();
        let mut at = root.to_owned();
        path.split('/').enumerate().any(|(index, name)| {
            at.push(name);
            let is_link = at.symlink_metadata().is_ok_and(|found| found.is_symlink());
            is_link && (follows_last || index + 1 < count)
        })
    })
}

/// All entries, and the hashes of all files.
fn tree(doer: &dyn Doer) -> Vec<(Seen, Option<blake3::Hash>)> {
    let Ok(Answer::Entries(entries)) = doer.act(&Operation::List(String::new())) else {
        panic!("the root is there")
    };
    entries
        .into_iter()
        .map(|entry| {
            let path = String::from_utf8(entry.path.clone()).unwrap();
            let is_file = entry.kind == i32::from(v1::Kind::Regular as u8);
            let hash = is_file.then(|| {
                let len = entry.size as usize + 1;
                match doer.act(&Operation::Read { path, offset: 0, len }) {
                    Ok(Answer::Bytes(count, hash)) => {
                        assert_eq!(count as u64, entry.size);
                        hash
                    }
                    other => panic!("{other:?}"),
                }
            });
            (entry, hash)
        })
        .collect()
}

#[test]
fn one_trace_has_the_same_answers_in_every_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), &VOLUMES, 20);
    let mountpoint = dir.path().join("mountpoint");
    let mounted = can_mount();
    // New directories and files have the modes that were asked for.
    rustix::process::umask(rustix::fs::Mode::empty());
    let service = world.service.clone();
    let by_service =
        ByService { service: &service, call: Call::new(Caller::own()), volume: VOLUMES[0] };
    let mut doers: Vec<(&str, Box<dyn Doer + '_>)> = vec![(VOLUMES[0], Box::new(by_service))];
    let mut clients = Vec::new();
    for (way, volume) in Way::ALL.into_iter().zip(&VOLUMES[1..]) {
        let client = world.doors.client(way);
        clients.push((way, client.clone()));
        doers.push((volume, Box::new(ByClient { client, volume })));
    }
    if mounted {
        world.mount(6, &mountpoint);
        doers.push((VOLUMES[6], Box::new(ByMount { root: mountpoint.clone() })));
    }
    let names_root = if mounted { mountpoint.clone() } else { dir.path().join("nowhere") };

    let mut random = Random::new();
    let seed = random.0;
    let (mut done, mut refused) = (0, std::collections::BTreeMap::<i32, usize>::new());
    let mut ways_used = std::collections::BTreeMap::<(usize, String), u64>::new();
    for step in 0..STEPS {
        let mut operation = random.operation();
        if let Operation::Upload { path, replace, .. } = &mut operation
            && let Ok(Answer::Entry(found)) = doers[0].1.act(&Operation::Stat(path.clone()))
            && found.kind == i32::from(v1::Kind::Directory as u8)
        {
            // The beginning of an upload does not say whether it replaces, and refuses a directory.
            *replace = true;
        }
        if meets_a_link(&names_root, &operation) {
            continue;
        }
        if matches!(operation, Operation::Seal) {
            world.seal_all();
        }
        let expected = doers[0].1.act(&operation);
        for (name, doer) in &doers[1..] {
            let found = doer.act(&operation);
            assert_eq!(found, expected, "step {step}, {operation:?}: {name}; seed {seed}");
        }
        match expected {
            Ok(_) => done += 1,
            Err(refusal) => *refused.entry(refusal.errno).or_default() += 1,
        }
        for (index, (_, client)) in clients.iter().enumerate() {
            // Notes are kept for the newest operations only, so each step's are of interest.
            if let Some(used) = client.transports().last() {
                *ways_used.entry((index, used.transport.to_string())).or_default() += used.bytes;
            }
        }
        if step % 100 == 99 {
            let expected = tree(&*doers[0].1);
            for (name, doer) in &doers[1..] {
                assert_eq!(tree(&**doer), expected, "after step {step}: {name}; seed {seed}");
            }
        }
    }
    world.seal_all();
    let expected = tree(&*doers[0].1);
    for (name, doer) in &doers[1..] {
        assert_eq!(tree(&**doer), expected, "at the end: {name}; seed {seed}");
    }
    eprintln!("{done} done, refused by errno {refused:?}; {} entries", expected.len());
    assert!(done > STEPS / 5, "{done}");
    assert!(refused.len() >= 4, "{refused:?}");
    for (index, (way, _)) in clients.iter().enumerate() {
        let moved = ways_used.get(&(index, way.transport().to_string())).copied().unwrap_or(0);
        assert!(moved > 1 << 20, "{way:?} moved {moved} bytes; {ways_used:?}");
    }
    drop((doers, clients));
    drop(service);
    world.end();
    for name in VOLUMES {
        assert_eq!(check(&dir.path().join(name)), [], "{name}; seed {seed}");
    }
}

/// More than the credit of a connection is asked for at once, and each answer has many frames.
#[test]
fn many_threads_read_whole_parts_over_one_client() {
    const PART: usize = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let world = World::open(dir.path(), &["main"], 20);
    let bytes = Content { len: 4 * PART, seed: 1 }.bytes();
    let client = world.doors.client(Way::Inline);
    let upload = client.create("", b"file", WriteOptions::default()).unwrap();
    upload.write_at(0, &bytes).unwrap();
    upload.commit().unwrap();
    drop(client);
    world.seal_all();
    let file = world.service.open_read(&Call::new(Caller::own()), "", b"file", 0).unwrap();
    let by_service = |at: usize, buffer: &mut [u8]| file.read_at(at as u64, buffer).unwrap();
    read_by_threads(&bytes, PART, "the service", &by_service);
    for way in Way::ALL {
        let client = world.doors.client(way);
        let by_client = |at: usize, buffer: &mut [u8]| {
            client.open("", b"file").unwrap().read_into(at as u64, buffer).unwrap()
        };
        read_by_threads(&bytes, PART, &format!("{way:?}"), &by_client);
    }
    drop(file);
    world.end();
}

fn read_by_threads(
    bytes: &[u8],
    part: usize,
    how: &str,
    read: &(dyn Fn(usize, &mut [u8]) -> usize + Sync),
) {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                let mut buffer = vec![0; part];
                for turn in 0..8 {
                    let at = (thread + turn) % 4 * part;
                    buffer.fill(0xaa);
                    let count = read(at, &mut buffer);
                    assert_eq!(count, part, "{how}, at {at}");
                    assert!(buffer == bytes[at..at + part], "{how}, at {at}: other bytes");
                }
            });
        }
    });
}
