//! The embedded metadata engine under power cuts: after each one it holds an atomic prefix of the
//! operations, no older than the last sync that returned, and its own check is clean.
//!
//! The expected states are those that the engine itself showed after each operation while it ran
//! (`conformance` is what says that they are right). Several workers run at once, each below a
//! directory of its own, so that batches mix operations of several callers; a worker's part of the
//! state after transaction T is what it saw after its last operation up to T.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use librorum_format::{ChunkId, Encoding, Extent, Ino, Location, SegmentId, Timestamp, TxnId};
use librorum_meta::{
    Content, Embedded, EmbeddedOptions, FileKind, Inode, Meta, NewContent, NewInode, RenameMode,
    SetAttr, SetContent, XattrMode,
};
use librorum_sim::{
    Choice, Model, Plan, Recording, Replay, Rng, SimDisk, Survival, explore, rounds, seed,
};

/// What a worker saw of its part after a transaction.
type Sights = BTreeMap<TxnId, String>;

/// A sync that returned: from this point on, everything up to here must be found.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    point: usize,
    txn: TxnId,
}

/// What a run must be held to.
struct Run {
    recording: Recording,
    acknowledged: Vec<Acknowledged>,
    workers: Vec<Sights>,
    /// The point from which on there is a volume at all.
    created: usize,
}

#[derive(Clone, Copy)]
struct Shape {
    worker_count: u64,
    operation_count: u64,
    /// Percentage of operations that write large attributes, so that memtables are written out.
    heavy: u64,
    sync_latency: Duration,
}

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        cache_bytes: 1 << 20,
        memtable_bytes: 1 << 20,
        reserve_bytes: 0,
        ..EmbeddedOptions::default()
    }
}

#[test]
fn one_writer_finds_an_atomic_prefix_after_any_power_cut() {
    let shape =
        Shape { worker_count: 1, operation_count: 200, heavy: 0, sync_latency: Duration::ZERO };
    scenario(shape, 1);
}

#[test]
fn concurrent_writers_find_an_atomic_prefix_after_any_power_cut() {
    let shape = Shape {
        worker_count: 3,
        operation_count: 70,
        heavy: 0,
        sync_latency: Duration::from_micros(300),
    };
    scenario(shape, 2);
}

#[test]
fn memtables_that_are_written_out_meanwhile_lose_nothing() {
    let shape =
        Shape { worker_count: 2, operation_count: 80, heavy: 25, sync_latency: Duration::ZERO };
    scenario(shape, 3);
}

/// A machine that comes up again may go down again at once, while it is still recovering.
#[test]
fn a_power_cut_during_recovery_loses_nothing_more() {
    let seed = seed();
    let shape =
        Shape { worker_count: 2, operation_count: 40, heavy: 10, sync_latency: Duration::ZERO };
    for round in 0..rounds() {
        let seed = seed.wrapping_add(round);
        let mut rng = Rng::part(seed, 4);
        let Some(disk) = SimDisk::for_test() else { return };
        let run = run(&disk, shape, rng.number());
        for _ in 0..6 {
            let span = run.recording.len() - run.created;
            let point = run.created + rng.index(span + 1);
            let mut replay = Replay::new(&run.recording);
            replay.advance_to(point);
            let model = *rng.pick(&[Model::Ext4, Model::Posix]);
            // Pages in order: this test is about what recovery itself leaves half done.
            let survival = *rng.pick(&[Survival::AllLost, Survival::AllKept]);
            let first = replay.image(&Choice { model, survival, torn: false });
            let Some(again) = SimDisk::for_test() else { return };
            let restored = again.restore(&first).unwrap();
            drop(Embedded::open(&again.path().join("meta"), &options()).unwrap());
            let recording = again.recording();
            let mut plan = Plan::of(&recording, seed, 10, 1);
            plan.retain(|point| point >= restored);
            explore(&recording, &plan, |_, dir| check(&run, point, dir)).unwrap();
        }
    }
}

/// The commit thread starts beside the first operations.
#[test]
fn a_sync_right_after_opening_is_a_sync() {
    let Some(disk) = SimDisk::for_test() else { return };
    let path = disk.path().join("meta");
    let mut acknowledged = Vec::new();
    for number in 0..40 {
        let meta = Embedded::open(&path, &options()).unwrap();
        let name = format!("n{number}");
        let (_, txn) = meta.create(Ino::ROOT, name.as_bytes(), &new(FileKind::Regular)).unwrap();
        meta.sync().unwrap();
        acknowledged.push(Acknowledged { point: disk.mark("synced"), txn });
    }
    let recording = disk.recording();
    let points = acknowledged.iter().map(|sync| sync.point).collect();
    let plan = Plan::at(points, seed(), 0);
    explore(&recording, &plan, |crash, dir| {
        let due = acknowledged.iter().rfind(|sync| sync.point <= crash.point).unwrap().txn;
        let meta = Embedded::open(&dir.join("meta"), &options()).unwrap();
        let found = meta.newest_txn();
        assert!(found >= due, "{found:?} was found, {due:?} was acknowledged");
    })
    .unwrap();
}

/// Besides those of each sync in turn.
const IMAGES_MAX: u64 = 150;

fn scenario(shape: Shape, part: u64) {
    let seed = seed();
    for round in 0..rounds() {
        let seed = seed.wrapping_add(round);
        let Some(disk) = SimDisk::for_test() else { return };
        disk.set_sync_latency(shape.sync_latency);
        let run = run(&disk, shape, Rng::part(seed, part).number());
        let plan = Plan { images_max: IMAGES_MAX, ..Plan::of(&run.recording, seed, 30, 2) };
        let count =
            explore(&run.recording, &plan, |crash, dir| check(&run, crash.point, dir)).unwrap();
        let (in_turn, records) = (plan.in_turn.len(), run.recording.len());
        eprintln!("{count} images, {in_turn} syncs in turn, {records} records");
    }
}

fn run(disk: &SimDisk, shape: Shape, seed: u64) -> Run {
    let meta = Embedded::open(&disk.path().join("meta"), &options()).unwrap();
    let mut acknowledged = Vec::new();
    let created = disk.mark("the volume is created");
    let mut roots = Vec::new();
    for worker in 0..shape.worker_count {
        let name = format!("worker{worker}");
        let (inode, txn) =
            meta.create(Ino::ROOT, name.as_bytes(), &new(FileKind::Directory)).unwrap();
        let sights = Sights::from([(txn, picture(&meta, inode.ino))]);
        roots.push((inode.ino, sights));
    }
    let txn = meta.sync().unwrap();
    acknowledged.push(Acknowledged { point: disk.mark("the roots are synced"), txn });
    let acknowledged = Mutex::new(acknowledged);
    let workers = std::thread::scope(|scope| {
        let threads: Vec<_> = roots
            .into_iter()
            .enumerate()
            .map(|(number, (root, sights))| {
                let (meta, acknowledged) = (&meta, &acknowledged);
                let rng = Rng::part(seed, number as u64);
                scope.spawn(move || {
                    Worker { meta, root, rng, sights, segments: 1 << (20 + number) }.run(
                        disk,
                        shape,
                        acknowledged,
                    )
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Dropping it makes the rest durable; the points of that are cut at too.
    let txn = meta.newest_txn();
    drop(meta);
    let mut acknowledged = acknowledged.into_inner().unwrap();
    acknowledged.push(Acknowledged { point: disk.mark("closed"), txn });
    Run { recording: disk.recording(), acknowledged, workers, created }
}

struct Worker<'a> {
    meta: &'a Embedded,
    root: Ino,
    rng: Rng,
    sights: Sights,
    segments: u64,
}

impl Worker<'_> {
    fn run(
        mut self,
        disk: &SimDisk,
        shape: Shape,
        acknowledged: &Mutex<Vec<Acknowledged>>,
    ) -> Sights {
        for step in 0..shape.operation_count {
            let now = Timestamp::new(1_000 + i64::try_from(step).unwrap(), 0);
            let heavy = self.rng.percent(shape.heavy);
            if let Some(txn) = self.operate(now, heavy) {
                let seen = picture(self.meta, self.root);
                self.sights.insert(txn, seen);
            }
            if self.rng.percent(15) {
                let txn = self.meta.sync().unwrap();
                let point = disk.mark(&format!("synced to {txn:?}"));
                acknowledged.lock().unwrap().push(Acknowledged { point, txn });
            }
        }
        self.sights
    }

    /// Some directory of mine, and some name.
    fn place(&mut self) -> (Ino, Vec<u8>) {
        let mut directories = vec![self.root];
        let mut index = 0;
        while let Some(directory) = directories.get(index).copied() {
            index += 1;
            for entry in self.meta.readdir(directory, 0, usize::MAX).unwrap() {
                if entry.kind == FileKind::Directory {
                    directories.push(entry.ino);
                }
            }
        }
        let directory = *self.rng.pick(&directories);
        (directory, format!("n{}", self.rng.below(7)).into_bytes())
    }

    fn file(&mut self) -> Option<Inode> {
        (0..8).find_map(|_| {
            let (parent, name) = self.place();
            self.meta.lookup(parent, &name).ok().filter(|inode| inode.kind == FileKind::Regular)
        })
    }

    /// Does something, and answers its position if it was possible.
    fn operate(&mut self, now: Timestamp, heavy: bool) -> Option<TxnId> {
        let (parent, name) = self.place();
        if heavy {
            let value = self.rng.bytes(48 << 10);
            let ino = self.file().map_or(self.root, |inode| inode.ino);
            let name = format!("user.{}", self.rng.below(3));
            return self.meta.set_xattr(ino, name.as_bytes(), &value, XattrMode::Set, now).ok();
        }
        match self.rng.below(20) {
            0..4 => {
                let new = NewInode { now, ..new(FileKind::Regular) };
                self.meta.create(parent, &name, &new).ok().map(|done| done.1)
            }
            4..6 => {
                let new = NewInode { now, ..new(FileKind::Directory) };
                self.meta.create(parent, &name, &new).ok().map(|done| done.1)
            }
            6 => {
                let new = NewInode { now, symlink_target: b"over/there", ..new(FileKind::Symlink) };
                self.meta.create(parent, &name, &new).ok().map(|done| done.1)
            }
            7..9 => {
                let (inode, unlinked) = self.meta.unlink(parent, &name, now).ok()?;
                // Sometimes the orphan goes in an operation of its own, sometimes it stays.
                if inode.nlink == 0 && self.rng.percent(60) {
                    let seen = picture(self.meta, self.root);
                    self.sights.insert(unlinked, seen);
                    return self.meta.reap(inode.ino).ok();
                }
                Some(unlinked)
            }
            9 => self.meta.rmdir(parent, &name, now).ok().map(|done| done.1),
            10..13 => {
                let (to, to_name) = self.place();
                let mode = *self.rng.pick(&[
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::Exchange,
                ]);
                self.meta
                    .rename((parent, &name), (to, &to_name), mode, now)
                    .ok()
                    .map(|done| done.txn)
            }
            13 => {
                let inode = self.file()?;
                self.meta.link(inode.ino, parent, &name, now).ok().map(|done| done.1)
            }
            14 => {
                let inode = self.file()?;
                let set = SetAttr { mode: Some(0o600), mtime: Some(now), ..SetAttr::default() };
                self.meta.set_attr(inode.ino, &set).ok().map(|done| done.1)
            }
            15 => {
                let value = self.rng.bytes(20);
                let inode = self.file()?;
                self.meta.set_xattr(inode.ino, b"user.a", &value, XattrMode::Set, now).ok()
            }
            _ => self.move_content(now),
        }
    }

    fn move_content(&mut self, now: Timestamp) -> Option<TxnId> {
        let inode = self.file()?;
        self.segments += 1;
        let segment = SegmentId(self.segments);
        let len = 1 + self.rng.below(3000);
        let bytes = self.rng.bytes(usize::try_from(len).unwrap());
        let extents: Vec<Extent> =
            (0..1 + self.rng.below(3)).map(|at| extent(segment, at)).collect();
        let sealed_bytes = extents.last().unwrap().file_end_bytes();
        let (content, size_bytes) = match (self.rng.below(5), inode.content) {
            (0, _) => (NewContent::Empty, 0),
            (1, _) => (NewContent::Inline(&bytes), len),
            (2, _) => (NewContent::Staged { segment }, len),
            (3, Content::Sealed) => {
                (NewContent::Overlay { segment, base_len_bytes: inode.size_bytes }, len)
            }
            _ => (NewContent::Sealed { extents: &extents, fresh: &[segment] }, sealed_bytes),
        };
        let change = SetContent {
            ino: inode.ino,
            expected_version: inode.content_version,
            content,
            size_bytes,
            allocated_bytes: size_bytes,
            mtime: Some(now),
            ctime: Some(now),
        };
        self.meta.set_content(&change).ok().map(|done| done.1)
    }
}

fn extent(segment: SegmentId, index: u64) -> Extent {
    let location = Location {
        segment,
        offset_bytes: index * 4096,
        stored_len_bytes: 4096,
        encoding: Encoding::Raw,
    };
    Extent {
        file_offset_bytes: index * 4096,
        len_bytes: 4096,
        chunk_offset_bytes: 0,
        chunk_len_bytes: 4096,
        chunk: ChunkId::of(format!("{segment} {index}").as_bytes()),
        location,
    }
}

fn new(kind: FileKind) -> NewInode<'static> {
    NewInode {
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        rdev: 0,
        symlink_target: b"",
        staging: None,
        now: Timestamp::new(1, 0),
    }
}

/// Everything below a directory that a caller can see, as text.
fn picture(meta: &Embedded, root: Ino) -> String {
    let mut text = String::new();
    let mut left = vec![(root, String::new())];
    while let Some((ino, path)) = left.pop() {
        let inode = meta.inode(ino).unwrap();
        writeln!(text, "{path}: {inode:?}").unwrap();
        for name in meta.xattr_names(ino).unwrap() {
            let hash = blake3::hash(&meta.xattr(ino, &name).unwrap());
            writeln!(text, "{path}: {} = {hash}", name.escape_ascii()).unwrap();
        }
        if inode.kind == FileKind::Symlink {
            writeln!(text, "{path}: -> {:?}", meta.symlink_target(ino).unwrap()).unwrap();
        }
        match inode.content {
            Content::Inline => {
                let hash = blake3::hash(&meta.inline_bytes(ino).unwrap());
                writeln!(text, "{path}: inline {hash}").unwrap();
            }
            Content::Sealed | Content::Overlay { .. } => {
                let extents = meta.extents(ino, 0, u64::MAX).unwrap();
                writeln!(text, "{path}: {extents:?}").unwrap();
            }
            Content::Empty | Content::Staged { .. } => {}
        }
        if inode.kind == FileKind::Directory {
            let mut entries = meta.readdir(ino, 0, usize::MAX).unwrap();
            entries.sort_by(|one, other| one.name.cmp(&other.name));
            for entry in entries.into_iter().rev() {
                left.push((entry.ino, format!("{path}/{}", entry.name.escape_ascii())));
            }
        }
    }
    text
}

/// Holds what is found in `dir` to what was acknowledged before `point`.
fn check(run: &Run, point: usize, dir: &Path) {
    let path = dir.join("meta");
    let due = run.acknowledged.iter().filter(|sync| sync.point <= point).map(|sync| sync.txn);
    let due = due.max().unwrap_or(TxnId(0));
    if point >= run.created {
        assert!(path.exists(), "the folder of a created volume is gone");
    }
    let meta = Embedded::open(&path, &options()).unwrap_or_else(|error| panic!("open: {error:?}"));
    let found = meta.newest_txn();
    assert!(found >= due, "{found:?} was found, {due:?} was acknowledged");
    assert_eq!(meta.durable_txn(), found, "what was found counts as durable");

    let mut violations = Vec::new();
    meta.check(false, &mut |violation| violations.push(violation)).unwrap();
    assert_eq!(violations, Vec::<String>::new());

    for (number, sights) in run.workers.iter().enumerate() {
        let name = format!("worker{number}");
        let last = sights.range(..=found).next_back();
        match (last, meta.lookup(Ino::ROOT, name.as_bytes())) {
            (None, Err(_)) => {}
            (None, Ok(_)) => panic!("{name} at {found:?}, before it was created"),
            (Some(_), Err(error)) => panic!("{name} at {found:?}: {error}"),
            (Some((txn, expected)), Ok(root)) => {
                let seen = picture(&meta, root.ino);
                assert_eq!(
                    &seen, expected,
                    "{name} at {found:?}, whose last operation was {txn:?}"
                );
            }
        }
    }
    // It still works.
    let (inode, txn) = meta.create(Ino::ROOT, b"after", &new(FileKind::Regular)).unwrap();
    assert!(txn > found && meta.sync().unwrap() >= txn);
    let known = run.workers.iter().flat_map(|sights| sights.range(..=found).next_back());
    for (_, text) in known {
        assert!(!text.contains(&format!("{:?},", inode.ino)), "{:?} is reused", inode.ino);
    }
}
