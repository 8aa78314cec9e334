//! The commit thread.

use librorum_format::Ino;

use super::super::engine::{Change, Engine, Limits, open_database, open_tables};
use super::super::mark::Mark;
use super::super::space::Gate;
use super::{Local, open};
use crate::conformance::{Volume, file};
use crate::record::{State, Table};
use crate::{EmbeddedOptions, Meta};
use librorum_format::TxnId;

/// The thread once took the newest position for the committed one when it started, and so never
/// wrote what operations had done in the microseconds before; only the mark noticed.
#[test]
fn operations_before_the_thread_starts_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { cache_bytes: 1 << 20, journal_bytes: 0, open_files: 32 };
    let db = open_database(&dir.path().join("db"), limits).unwrap();
    let tables = open_tables(&db).unwrap();
    let gate = Gate::new(dir.path(), 0);
    let state = State { txn: TxnId(5), ino_bound: 7, ..State::default() };
    let engine = Engine::new(db, tables, state, gate, (1 << 20, 16 << 20));
    let mut change = Change::default();
    change.layer.set(Table::Xattrs, b"key".into(), Some(b"value".into()));
    assert_eq!(engine.append(change).unwrap(), TxnId(6));
    engine.stop();
    let (mark, _) = Mark::open(&dir.path().join("mark")).unwrap();
    engine.run(mark, TxnId(5));
    assert_eq!(engine.durable_txn(), TxnId(6));
    drop(engine);
    let db = open_database(&dir.path().join("db"), limits).unwrap();
    let tables = open_tables(&db).unwrap();
    assert_eq!(tables[Table::Xattrs.index()].get(b"key").unwrap().unwrap(), b"value");
    let state = tables[Table::Small.index()].get(crate::record::key::STATE).unwrap().unwrap();
    assert_eq!(State::decode(&state).unwrap().txn, TxnId(6));
}

#[test]
fn operations_become_durable_without_a_sync() {
    let volume = Local::new();
    let meta = volume.meta();
    file(meta, Ino::ROOT, "file");
    let txn = meta.newest_txn();
    for _ in 0..50 {
        if meta.durable_txn() >= txn {
            return;
        }
        librorum_sys::clock::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{txn:?} is not durable after five seconds");
}

#[test]
fn pending_operations_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        EmbeddedOptions { pending_bytes: 64 << 10, reserve_bytes: 0, ..EmbeddedOptions::default() };
    let meta = crate::Embedded::open(dir.path(), &options).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let meta = &meta;
            scope.spawn(move || {
                for index in 0..500 {
                    file(meta, Ino::ROOT, &format!("{thread} {index}"));
                }
            });
        }
    });
    drop(meta);
    assert_eq!(open(dir.path()).stats().inode_count, 2001);
}
