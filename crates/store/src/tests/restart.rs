use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use librorum_format::ErrorKind;

use super::*;

const CHILD: &str = "LIBRORUM_STORE_TEST_CHILD";

/// Runs this test binary again as a process that works on a store until it is killed.
fn spawn_child(dir: &TempDir) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::restart::child_works_until_killed", "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn child_works_until_killed() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let store = Store::open(&dir, &options()).unwrap();
    for round in 0.. {
        for (id, _) in store.create_staging(round % 70 + 1).unwrap() {
            println!("id {:x}", id.0);
        }
        let (segment, _) = seal(&store, &noise(round as u64, 50_000));
        println!("sealed {:x}", segment.0);
    }
}

#[test]
fn ids_are_never_given_out_twice_although_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path()).unwrap();
    let mut seen = HashSet::new();
    for round in 0..4 {
        let mut child = spawn_child(&dir);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut sealed = Vec::new();
        // The first lines are the test harness's own.
        let words = lines.map_while(Result::ok).take(300 + round * 150);
        for line in words {
            // The harness prints the name of the test without ending the line.
            if let Some((_, id)) = line.split_once("id ") {
                assert!(seen.insert(u64::from_str_radix(id, 16).unwrap()), "{line}");
            } else if let Some((_, id)) = line.split_once("sealed ") {
                let id = u64::from_str_radix(id, 16).unwrap();
                assert!(seen.insert(id));
                sealed.push(SegmentId(id));
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let store = Store::open(dir.path(), &options()).unwrap();
        assert!(!sealed.is_empty());
        for segment in sealed {
            let table = store.load_table(segment).unwrap().unwrap();
            assert!(store.scrub_segment(segment, &mut |_| {}).unwrap().is_empty());
            let ids: Vec<ChunkId> = table.entries.iter().map(|entry| entry.chunk).collect();
            assert!(store.find(&ids).unwrap().iter().all(Option::is_some));
        }
        for (id, _) in store.create_staging(3).unwrap() {
            assert!(seen.insert(id.0), "{id} was given out before the kill");
        }
    }
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path()).unwrap();
    let mut child = spawn_child(&dir);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("id ")), "the child has the store open");
    let error = Store::open(dir.path(), &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    Store::open(dir.path(), &options()).unwrap();
}

#[test]
fn a_store_opens_only_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::open(dir.path(), &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    Store::create(dir.path()).unwrap();
    let error = Store::create(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "its ids must not begin anew");
    drop(Store::open(dir.path(), &options()).unwrap());
    std::fs::remove_file(dir.path().join("ids")).unwrap();
    let error = Store::open(dir.path(), &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
}

#[test]
fn a_draft_left_by_a_crash_is_no_table_and_no_obstacle() {
    let (dir, store) = empty_store();
    let bytes = noise(1, 100_000);
    let (segment, file) = stage(&store, &bytes);
    let folder = dir.path().join(format!("data/{:02x}", segment.0 >> 6 & 0xff));
    std::fs::write(folder.join(format!("{segment}.draft")), b"half a tab").unwrap();
    assert!(store.load_table(segment).unwrap().is_none());
    assert!(store.segments().all(|item| item.unwrap() == (segment, true, false)));
    let chunks = chunk(&store, &file, 100_000);
    store.seal_verbatim(segment, &file, 100_000, &chunks).unwrap();
    assert!(store.load_table(segment).unwrap().is_some());
    std::fs::write(folder.join(format!("{segment}.draft")), b"half a tab").unwrap();
    store.remove(segment).unwrap();
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
}
