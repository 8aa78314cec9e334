//! Power cuts: whatever the disk kept of what was not synced, the volume opens as a prefix.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use librorum_format::{Ino, TxnId};
use librorum_sys::clock;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{Embedded, cases, open, options};
use crate::conformance::model::{Model, Op, apply, ops};
use crate::conformance::{assert_sound, entries, file};
use crate::{EmbeddedOptions, Meta, MetaError};

/// The folder as a crash right now would leave it, if the page cache survived.
fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    // The mark first: copied last, it could be ahead of the database, which it never is.
    copy_into(&from.join("mark"), &to.path().join("mark"));
    copy_into(&from.join("db"), &to.path().join("db"));
    to
}

fn copy_into(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy_into(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

/// fjall's only journal: these volumes are too small for a second one.
fn journal(dir: &Path) -> PathBuf {
    dir.join("db/0.jnl")
}

fn journal_len(dir: &Path) -> u64 {
    std::fs::metadata(journal(dir)).unwrap().len()
}

/// A disk writes so many bytes or none of them.
const SECTOR_LEN: usize = 512;

/// What a power cut does to the part of the journal that was not synced, in whole sectors but for
/// a length. Smaller damage is not what a power cut does, and fjall 3.1.13 does not notice all of it:
/// its checksums leave out the number that a batch starts with, which decides what is newer.
#[derive(Clone, Debug)]
enum Tail {
    Kept,
    Cut { part: f64 },
    Zeroed { from: f64, to: f64 },
    Garbled { part: f64 },
}

fn tail() -> impl Strategy<Value = Tail> {
    prop_oneof![
        Just(Tail::Kept),
        (0.0..1.0).prop_map(|part| Tail::Cut { part }),
        (0.0..1.0, 0.0..1.0).prop_map(|(from, to)| Tail::Zeroed { from, to }),
        (0.0..1.0).prop_map(|part| Tail::Garbled { part }),
    ]
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a part of a small length"
)]
fn spoil(dir: &Path, synced_len: usize, tail: &Tail) {
    let path = journal(dir);
    let mut bytes = std::fs::read(&path).unwrap();
    let place = |part: f64| {
        let len = bytes.len().saturating_sub(synced_len);
        (synced_len + (len as f64 * part) as usize).min(bytes.len())
    };
    let len = bytes.len();
    // What is synced in the first of them keeps: it is not written again.
    let sectors = |from: usize, to: usize| {
        let from = (from / SECTOR_LEN * SECTOR_LEN).max(synced_len).min(len);
        from..to.next_multiple_of(SECTOR_LEN).clamp(from, len)
    };
    match *tail {
        Tail::Kept => {}
        Tail::Cut { part } => {
            let place = place(part);
            bytes.truncate(place);
        }
        Tail::Zeroed { from, to } => {
            let (from, to) = (place(from.min(to)), place(from.max(to)));
            bytes[sectors(from, to)].fill(0);
        }
        Tail::Garbled { part } => {
            let place = place(part);
            bytes[sectors(place, place + 1)].iter_mut().for_each(|byte| *byte ^= 0x11);
        }
    }
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn crash_leaves_a_prefix_no_older_than_the_last_sync() {
    let config =
        ProptestConfig { cases: cases(24), failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(
        ops in ops(1..80),
        wait_ms in 0..8_u64,
        tails in proptest::collection::vec(tail(), 1..4),
    )| {
        let dir = tempfile::tempdir().unwrap();
        // Opened twice, so that fjall has cut the journal to its used length.
        drop(open(dir.path()));
        let meta = open(dir.path());
        let mut model = Model::of(&meta);
        let mut states = BTreeMap::from([(meta.newest_txn(), model.clone())]);
        let mut synced = (meta.durable_txn(), journal_len(dir.path()));
        for op in &ops {
            apply(&mut model, &meta, op);
            states.insert(meta.newest_txn(), model.clone());
            if matches!(op, Op::Sync) {
                // Shorter than what was synced would be wrong, longer only less severe.
                synced = (meta.durable_txn(), journal_len(dir.path()));
            }
        }
        clock::sleep(Duration::from_millis(wait_ms));
        let crashed = copy(dir.path());
        for tail in &tails {
            let crashed = copy(crashed.path());
            spoil(crashed.path(), usize::try_from(synced.1).unwrap(), tail);
            // Whatever became of the unsynced part, the volume opens.
            let found = Embedded::open(crashed.path(), &options());
            prop_assert!(found.is_ok(), "{tail:?}: {found:?}");
            let found = found.unwrap();
            let txn = found.newest_txn();
            prop_assert!(txn >= synced.0, "{txn:?} is older than the synced {:?}", synced.0);
            let Some(expected) = states.get(&txn) else {
                return Err(TestCaseError::fail(format!("{txn:?} is between operations")));
            };
            expected.assert_matches(&found);
            assert_sound(&found);
        }
    });
}

/// fjall issue 311: a damaged place in the journal silently ends it. What was acknowledged before
/// must be missed, whatever the damage.
#[test]
fn lost_durable_writes_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let meta = open(dir.path());
    for index in 0..40 {
        file(&meta, Ino::ROOT, &format!("file {index}"));
        if index % 4 == 0 {
            meta.sync().unwrap();
        }
    }
    let newest = meta.sync().unwrap();
    drop(meta);
    let len = usize::try_from(journal_len(dir.path())).unwrap();
    let (mut refused, mut lost) = (0, 0);
    for step in 1..40 {
        for tail in [Tail::Cut { part: 0.0 }, Tail::Garbled { part: 0.0 }] {
            let damaged = copy(dir.path());
            spoil(damaged.path(), len * step / 40, &tail);
            match Embedded::open(damaged.path(), &options()) {
                Ok(meta) => {
                    // Not every byte matters to fjall.
                    assert_eq!(meta.newest_txn(), newest);
                    assert_eq!(entries(&meta, Ino::ROOT).len(), 40);
                }
                Err(MetaError::LostWrites { found, acknowledged }) => {
                    assert!(found < acknowledged && acknowledged == newest);
                    lost += 1;
                    let accept = EmbeddedOptions { accept_lost_writes: true, ..options() };
                    drop(Embedded::open(damaged.path(), &accept).unwrap());
                    // Accepted once is accepted.
                    assert_sound(&open(damaged.path()));
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(lost >= 39, "{lost} lost, {refused} refused");
}

#[test]
fn torn_mark_leaves_the_other_slot() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    file(&meta, Ino::ROOT, "file");
    drop(meta);
    drop(open(dir.path()));
    let meta = open(dir.path());
    file(&meta, Ino::ROOT, "another");
    drop(meta);
    let path = dir.path().join("mark");
    let intact = std::fs::read(&path).unwrap();
    assert!(intact.len() > 4096, "both slots were written");
    for slot in [0, 4096] {
        let mut torn = intact.clone();
        torn[slot + 10] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(entries(&open(dir.path()), Ino::ROOT).len(), 2);
        std::fs::write(&path, &intact).unwrap();
    }
    let mut damaged = intact;
    damaged[10] ^= 1;
    damaged[4096 + 10] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let opened = Embedded::open(dir.path(), &options());
    assert!(matches!(opened, Err(MetaError::Corrupt { .. })));
    let accept = EmbeddedOptions { accept_lost_writes: true, ..options() };
    drop(Embedded::open(dir.path(), &accept).unwrap());
    drop(open(dir.path()));
}

#[test]
fn crash_during_creation_leaves_no_volume() {
    let dir = tempfile::tempdir().unwrap();
    // What a crash in the middle leaves: a folder that is not a database yet.
    std::fs::create_dir_all(dir.path().join("db.new/keyspaces")).unwrap();
    std::fs::write(dir.path().join("db.new/0.jnl"), b"half").unwrap();
    let meta = open(dir.path());
    assert_eq!(meta.newest_txn(), TxnId(1));
    assert_sound(&meta);
}

#[test]
fn another_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    let header = crate::record::Header { schema: 99, cookie_key: [0; 16] }.encode();
    super::damage::write(&meta, crate::record::Table::Small, &[0], Some(&header));
    drop(meta);
    let opened = Embedded::open(dir.path(), &options());
    assert!(matches!(opened, Err(MetaError::Schema { found: 99, supported: 1 })));
}

#[test]
fn open_volume_is_not_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let meta = open(dir.path());
    let again = Embedded::open(dir.path(), &options());
    assert_eq!(again.unwrap_err().kind(), librorum_format::ErrorKind::Busy);
    file(&meta, Ino::ROOT, "file");
    drop(meta);
    assert_eq!(entries(&open(dir.path()), Ino::ROOT).len(), 1);
}

#[test]
fn only_the_newest_journal_may_be_torn() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let meta = open(dir.path());
    for index in 0..20 {
        file(&meta, Ino::ROOT, &format!("{index}"));
        meta.sync().unwrap();
    }
    drop(meta);
    let mut intact = std::fs::read(journal(dir.path())).unwrap();
    let len = intact.len();
    // Room for more is no damage.
    intact.extend_from_slice(&[0; 5000]);
    let mut torn = intact.clone();
    torn[len / 2] ^= 1;
    let db = tempfile::tempdir().unwrap();
    let settle = |older: &[u8], newest: &[u8]| {
        std::fs::write(db.path().join("lock"), b"").unwrap();
        std::fs::write(db.path().join("9.jnl"), older).unwrap();
        std::fs::write(db.path().join("10.jnl"), newest).unwrap();
        super::super::journal::settle(db.path())
    };
    settle(&intact, &intact).unwrap();
    assert_eq!(std::fs::read(db.path().join("10.jnl")).unwrap(), intact);
    settle(&intact, &torn).unwrap();
    let cut = std::fs::read(db.path().join("10.jnl")).unwrap();
    assert!(cut.len() <= len / 2 && intact.starts_with(&cut));
    assert_eq!(std::fs::read(db.path().join("10.torn")).unwrap(), torn);
    assert!(matches!(settle(&torn, &intact), Err(MetaError::Corrupt { .. })));
    assert_eq!(std::fs::read(db.path().join("9.jnl")).unwrap(), torn, "evidence is kept");
}
