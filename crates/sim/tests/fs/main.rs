//! The whole file system under power cuts (`docs/design.md` §5): the namespace is an atomic prefix
//! of what was done, no older than the last fsync; a file's bytes are those of its last fsync or
//! newer ones, never another file's, and never zeros in place of bytes that were acknowledged.
//!
//! Pages that were written since may each be old or new, so content is held to a rule for each
//! byte: it is that of some version from the last acknowledged one on, or zero where such a version
//! does not reach.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod judge;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use librorum_format::{Chunking, Ino, SegmentId};
use librorum_fs::{
    DiskOrder, FormatOptions, Fs, FsOptions, OpenFlags, Outside, PublishOptions, Volume,
};
use librorum_meta::{FileKind, NewInode, RenameMode};
use librorum_sim::{Model, Plan, Recording, Rng, SimDisk, explore, is_exhaustive, rounds, seed};

/// Names: the directory and the name, and the inode they lead to.
type Names = BTreeMap<(u64, Vec<u8>), u64>;

/// A state that a file has had, or that an operation was about to give it.
struct Version {
    begun: usize,
    bytes: Arc<Vec<u8>>,
}

#[derive(Default)]
struct File {
    versions: Vec<Version>,
    /// Points from which on a version, by its index, or a newer one must be found.
    acknowledged: Vec<(usize, usize)>,
}

/// What the volume is held to.
#[derive(Default)]
struct Expected {
    /// With the points at which each began to become true.
    names: Vec<(usize, Names)>,
    names_acknowledged: Vec<(usize, usize)>,
    files: HashMap<u64, File>,
    formatted: usize,
}

impl Expected {
    fn newest_names(&self) -> &Names {
        &self.names.last().unwrap().1
    }

    fn newest_bytes(&self, ino: u64) -> Arc<Vec<u8>> {
        let versions = &self.files[&ino].versions;
        versions.last().map_or_else(Arc::default, |version| Arc::clone(&version.bytes))
    }

    fn acknowledge_names(&mut self, point: usize) {
        self.names_acknowledged.push((point, self.names.len() - 1));
    }

    fn acknowledge_file(&mut self, point: usize, ino: u64) {
        let file = self.files.get_mut(&ino).unwrap();
        file.acknowledged.push((point, file.versions.len() - 1));
    }
}

fn options(quiet_ms: u64) -> FsOptions {
    FsOptions { quiet_ms, ..FsOptions::default() }
}

const NEVER_MS: u64 = 1 << 40;

fn format_options() -> FormatOptions {
    FormatOptions {
        chunking: Chunking::Cdc { average_bytes: 16 << 10 },
        ..FormatOptions::default()
    }
}

#[test]
fn fsynced_files_and_a_prefix_of_names_survive_any_power_cut() {
    scenario(Reopen::Never);
}

/// Writing to a sealed file moves its bytes, which must cost nothing that was acknowledged.
#[test]
fn files_that_are_written_again_survive_any_power_cut() {
    scenario(Reopen::Often);
}

/// Whether files are opened for writing after they were closed, and so perhaps sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reopen {
    Never,
    Often,
}

fn scenario(reopen: Reopen) {
    let seed = seed();
    for round in 0..rounds() {
        let seed = seed.wrapping_add(round);
        for kind in KINDS {
            let Some(disk) = SimDisk::for_test() else { return };
            let (recording, expected) = run(&disk, kind, seed, 45, reopen);
            let mut plan = Plan::of(&recording, seed, 10, 1);
            plan.retain(|point| point >= expected.formatted);
            examine(&recording, plan, kind, IMAGES_MAX, &expected);
        }
    }
}

/// What a file was staged in holds another one's bytes later, and at no moment both.
#[test]
fn files_in_recycled_staging_files_survive_any_power_cut() {
    let seed = seed();
    for round in 0..rounds() {
        let seed = seed.wrapping_add(round);
        for kind in KINDS {
            let Some(disk) = SimDisk::for_test() else { return };
            let (recording, expected, from) = run_recycling(&disk, kind, seed);
            let mut plan = Plan::of(&recording, seed, 10, 1);
            plan.retain(|point| point >= from);
            examine(&recording, plan, kind, LARGE_IMAGES_MAX, &expected);
        }
    }
}

// A large file that shares its bytes with another is written through an overlay.

#[test]
fn overlays_written_in_whole_blocks_survive_any_power_cut() {
    overlay_scenario(4096, false);
}

#[test]
fn overlays_written_in_parts_of_blocks_survive_any_power_cut() {
    overlay_scenario(1, false);
}

#[test]
fn overlays_that_are_being_sealed_survive_any_power_cut() {
    overlay_scenario(4096, true);
}

fn overlay_scenario(unit: usize, sealed: bool) {
    let seed = seed();
    for round in 0..rounds() {
        let seed = seed.wrapping_add(round);
        for kind in KINDS {
            let Some(disk) = SimDisk::for_test() else { return };
            let (recording, expected, from) = run_overlay(&disk, kind, seed, unit, sealed);
            let mut plan = Plan::of(&recording, seed, 25, 2);
            plan.retain(|point| point >= from);
            examine(&recording, plan, kind, LARGE_IMAGES_MAX, &expected);
        }
    }
}

/// Whatever an interrupted format leaves behind, there is a whole volume or it can be done again.
#[test]
fn an_interrupted_format_can_be_done_again() {
    let seed = seed();
    for kind in KINDS {
        let Some(disk) = SimDisk::for_test() else { return };
        let (recording, expected) = start(&disk, kind, seed, NEVER_MS).finish();
        let mut plan = Plan::of(&recording, seed, 20, 1);
        plan.retain(|point| point <= expected.formatted);
        examine(&recording, plan, kind, IMAGES_MAX, &expected);
    }
}

/// A disk, and what the volume on it is told.
#[derive(Clone, Copy)]
struct Kind {
    model: Model,
    /// The volume does less where the order of names and lengths is kept, so each disk has a run of
    /// its own.
    disk_order: DiskOrder,
    torn: bool,
}

/// The staging file of an overlay tells its blocks from the base's by their allocation, which no
/// disk does by halves (`docs/format.md`, the assumptions about the medium): pages tear only where
/// they were allocated before, as on ext4.
const KINDS: [Kind; 2] = [
    Kind { model: Model::Ext4, disk_order: DiskOrder::Kept, torn: true },
    Kind { model: Model::Posix, disk_order: DiskOrder::Ask, torn: false },
];

/// Of each model. An image costs two openings of a volume and three checks: some 300 ms.
const IMAGES_MAX: u64 = 45;

/// The same where files are of several mebibytes, or names are many.
const LARGE_IMAGES_MAX: u64 = 20;

fn examine(
    recording: &Recording,
    plan: Plan,
    Kind { model, torn, .. }: Kind,
    images_max: u64,
    expected: &Expected,
) {
    // An image is dear here, so each sync in turn is for the long run
    // (`docs/design/0002-simulated-disk.md`, the arithmetic).
    let in_turn = if is_exhaustive() { plan.in_turn } else { Vec::new() };
    let plan = Plan { models: vec![model], in_turn, torn, images_max, ..plan };
    let count = explore(recording, &plan, |crash, dir| judge::check(expected, crash.point, dir));
    let (count, in_turn, records) = (count.unwrap(), plan.in_turn.len(), recording.len());
    eprintln!("{model:?}: {count} images, {in_turn} syncs in turn, {records} records");
}

fn new(kind: FileKind) -> NewInode<'static> {
    NewInode {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
        symlink_target: b"",
        staging: None,
        now: librorum_sys::clock::now(),
    }
}

struct Driver<'a> {
    disk: &'a SimDisk,
    fs: Arc<Fs>,
    expected: Expected,
    rng: Rng,
}

fn start(disk: &SimDisk, kind: Kind, seed: u64, quiet_ms: u64) -> Driver<'_> {
    let dir = disk.path().join("volume");
    Volume::format(&dir, &format_options()).unwrap();
    let formatted = disk.mark("formatted");
    let mut expected = Expected { formatted, ..Expected::default() };
    expected.names.push((0, Names::new()));
    let options = FsOptions { disk_order: kind.disk_order, ..options(quiet_ms) };
    let fs = Fs::open_volume(&dir, options).unwrap();
    Driver { disk, fs, expected, rng: Rng::new(seed) }
}

impl Driver<'_> {
    fn finish(self) -> (Recording, Expected) {
        close(self.fs);
        self.disk.mark("closed");
        (self.disk.recording(), self.expected)
    }

    fn change_names(&mut self, change: impl FnOnce(&mut Names)) {
        let mut names = self.expected.newest_names().clone();
        change(&mut names);
        self.expected.names.push((self.disk.log_len(), names));
    }

    fn change_bytes(&mut self, ino: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.expected.newest_bytes(ino).to_vec();
        change(&mut bytes);
        let version = Version { begun: self.disk.log_len(), bytes: Arc::new(bytes) };
        self.expected.files.get_mut(&ino).unwrap().versions.push(version);
    }

    /// A synced name is a file's, a directory's or nobody's.
    fn kind(&self, ino: u64) -> FileKind {
        if self.expected.files.contains_key(&ino) { FileKind::Regular } else { FileKind::Directory }
    }

    fn directory(&mut self) -> u64 {
        let mut all = vec![Ino::ROOT.0];
        let names = self.expected.newest_names();
        all.extend(names.values().filter(|ino| self.kind(**ino) == FileKind::Directory));
        *self.rng.pick(&all)
    }

    fn some_name(&mut self) -> (u64, Vec<u8>) {
        (self.directory(), format!("n{}", self.rng.below(6)).into_bytes())
    }

    fn existing(&mut self, kind: FileKind) -> Option<((u64, Vec<u8>), u64)> {
        let names = self.expected.newest_names();
        let all: Vec<_> = names
            .iter()
            .filter(|(_, ino)| self.kind(**ino) == kind)
            .map(|(name, ino)| (name.clone(), *ino))
            .collect();
        if all.is_empty() { None } else { Some(self.rng.pick(&all).clone()) }
    }

    /// Answers a handle for writing.
    fn create(&mut self, (parent, name): (u64, Vec<u8>)) -> (u64, u64) {
        let begun = self.disk.log_len();
        let new = new(FileKind::Regular);
        let (created, opened) = self.fs.create(Ino(parent), &name, &new, true).unwrap();
        let ino = created.inode.ino.0;
        // There is no kernel to forget it later, and what is remembered is not freed when it loses
        // its last name.
        self.fs.forget(created.inode.ino, 1);
        self.expected.files.insert(
            ino,
            File {
                versions: vec![Version { begun, bytes: Arc::default() }],
                acknowledged: Vec::new(),
            },
        );
        self.change_names(|names| {
            names.insert((parent, name), ino);
        });
        self.expected.names.last_mut().unwrap().0 = begun;
        (ino, opened.handle)
    }

    fn write(&mut self, ino: u64, handle: u64, offset: usize, data: &[u8]) {
        self.change_bytes(ino, |bytes| {
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        });
        self.disk.mark(&format!("writing {ino} {offset}+{}", data.len()));
        self.fs.write(handle, offset as u64, data, false).unwrap();
    }

    fn fsync(&mut self, ino: u64, handle: u64) {
        let data_only = self.rng.percent(30);
        self.fs.fsync(handle, data_only).unwrap();
        let point = self.disk.mark(&format!("fsynced {ino}"));
        self.expected.acknowledge_file(point, ino);
        self.expected.acknowledge_names(point);
    }

    fn sync_names(&mut self) {
        self.fs.fsync_dir().unwrap();
        let point = self.disk.mark("names synced");
        self.expected.acknowledge_names(point);
    }

    fn seal(&mut self) {
        self.disk.mark("sealing");
        self.fs.seal_all();
        self.disk.mark("sealed");
    }

    /// Waits for work in the background.
    fn wait_until(&self, is_done: impl Fn(&Self) -> bool) {
        for _ in 0..500 {
            if is_done(self) {
                return;
            }
            librorum_sys::clock::sleep(Duration::from_millis(20));
        }
        panic!("nothing came of it for ten seconds");
    }

    fn open(&self, ino: u64, truncate: bool) -> u64 {
        self.disk.mark(&format!("opening {ino} for writing, truncate {truncate}"));
        self.fs.open(Ino(ino), OpenFlags { write: true, truncate }).unwrap().handle
    }

    /// Bytes of a length for each way in which a file is sealed; some that are stored already.
    fn fresh_bytes(&mut self) -> Vec<u8> {
        let len = match self.rng.below(4) {
            0 => self.rng.below(3000),
            1 => 5000 + self.rng.below(40_000),
            _ => 66_000 + self.rng.below(80_000),
        };
        let mut source =
            if self.rng.percent(35) { Rng::new(self.rng.below(2)) } else { self.rng.clone() };
        self.rng.number();
        // No zeros: they would pass for holes.
        let bytes = source.bytes(usize::try_from(len).unwrap());
        bytes.into_iter().map(|byte| byte | 1).collect()
    }

    fn operate(&mut self, reopen: Reopen) {
        match self.rng.below(19) {
            0..4 => self.create_and_fill(),
            4..8 if reopen == Reopen::Never => self.create_and_fill(),
            4..7 => self.overwrite(),
            7 => self.open_and_close(),
            8 => self.truncate(),
            9 => self.rename(),
            10 => self.unlink(),
            11 => self.make_directory(),
            12 => self.seal(),
            13 => self.sync_names(),
            14..17 => self.publish(),
            _ => self.fsync_something(),
        }
    }

    /// A file that takes its name with all of its bytes, from whatever has it.
    fn publish(&mut self) {
        let (parent, name) = self.some_name();
        let place = (parent, name.clone());
        let replaced = self.expected.newest_names().get(&place).copied();
        if replaced.is_some_and(|ino| self.kind(ino) == FileKind::Directory) {
            return;
        }
        let outside = Outside::new(Arc::clone(&self.fs));
        let bytes = self.fresh_bytes();
        let options = PublishOptions {
            length: bytes.len() as u64,
            replace: true,
            durable: self.rng.percent(30),
            ..PublishOptions::default()
        };
        let interrupted = AtomicBool::new(false);
        let upload = match self.rng.below(3) {
            0 => None,
            1 => Some(outside.begin_upload(options.length, &interrupted).unwrap()),
            _ => Some(outside.begin_named_upload("0a", &interrupted).unwrap()),
        };
        if let Some(upload) = &upload {
            upload.file().unwrap().write_all_at(&bytes, 0).unwrap();
        }
        self.disk.mark("publishing");
        let begun = self.disk.log_len();
        let target = (Ino(parent), &name[..]);
        let new = new(FileKind::Regular);
        let found = match upload {
            Some(mut upload) => outside.publish(&mut upload, target, &new, &options).unwrap(),
            None => outside.publish_bytes(target, &new, &bytes, &options).unwrap(),
        };
        let ino = found.inode.ino.0;
        let is_synced = replaced.is_some() || options.durable || bytes.len() <= 4096;
        let whole = Version { begun, bytes: Arc::new(bytes) };
        // In a free place it is a file that was written and not synced.
        let none = Version { begun, bytes: Arc::default() };
        let versions = if is_synced { vec![whole] } else { vec![none, whole] };
        self.expected.files.insert(ino, File { versions, acknowledged: Vec::new() });
        self.change_names(|names| {
            names.insert(place, ino);
        });
        self.expected.names.last_mut().unwrap().0 = begun;
        if options.durable {
            let point = self.disk.mark(&format!("published {ino}"));
            self.expected.acknowledge_file(point, ino);
            self.expected.acknowledge_names(point);
        }
    }

    fn create_and_fill(&mut self) {
        let name = self.some_name();
        if self.expected.newest_names().contains_key(&name) {
            return;
        }
        let (ino, handle) = self.create(name);
        let bytes = self.fresh_bytes();
        let half = bytes.len() / 2;
        self.write(ino, handle, 0, &bytes[..half]);
        if self.rng.percent(30) {
            self.fsync(ino, handle);
        }
        self.write(ino, handle, half, &bytes[half..]);
        if self.rng.percent(50) {
            self.fsync(ino, handle);
        }
        self.fs.release(handle);
    }

    fn overwrite(&mut self) {
        let Some((_, ino)) = self.existing(FileKind::Regular) else { return };
        let truncate = self.rng.percent(15);
        if truncate {
            self.change_bytes(ino, Vec::clear);
        }
        let handle = self.open(ino, truncate);
        for _ in 0..1 + self.rng.below(3) {
            let len = self.expected.newest_bytes(ino).len();
            let offset = self.rng.index(len + 3000);
            let mut bytes = self.fresh_bytes();
            bytes.truncate(1 + self.rng.index(9000));
            self.write(ino, handle, offset, &bytes);
            if self.rng.percent(30) {
                self.fsync(ino, handle);
            }
        }
        self.fs.release(handle);
    }

    /// Opening for writing promises nothing and must cost nothing.
    fn open_and_close(&mut self) {
        let Some((_, ino)) = self.existing(FileKind::Regular) else { return };
        let handle = self.open(ino, false);
        if self.rng.percent(70) {
            self.sync_names();
        }
        self.fs.release(handle);
    }

    fn truncate(&mut self) {
        let Some((_, ino)) = self.existing(FileKind::Regular) else { return };
        let len = self.expected.newest_bytes(ino).len();
        let size = self.rng.index(len + len / 3 + 1);
        self.change_bytes(ino, |bytes| bytes.resize(size, 0));
        self.disk.mark(&format!("truncating {ino} to {size}"));
        self.fs.truncate(Ino(ino), size as u64).unwrap();
    }

    fn rename(&mut self) {
        let kind = if self.rng.percent(80) { FileKind::Regular } else { FileKind::Directory };
        let Some((from, ino)) = self.existing(kind) else { return };
        let to = self.some_name();
        let target = self.expected.newest_names().get(&to).copied();
        if target.is_some_and(|target| target == ino || self.kind(target) != kind) {
            return;
        }
        let (source, goal) = ((Ino(from.0), from.1.as_slice()), (Ino(to.0), to.1.as_slice()));
        let begun = self.disk.log_len();
        // A directory may be full, or would move below itself: then it stays.
        if self.fs.rename(source, goal, RenameMode::Replace).is_ok() {
            self.disk.mark(&format!("renamed {ino} over {target:?}"));
            self.change_names(|names| {
                names.remove(&from);
                names.insert(to, ino);
            });
            self.expected.names.last_mut().unwrap().0 = begun;
        }
    }

    fn unlink(&mut self) {
        let Some((name, _)) = self.existing(FileKind::Regular) else { return };
        self.disk.mark(&format!("unlinking {:?}", self.expected.newest_names()[&name]));
        self.change_names(|names| {
            names.remove(&name);
        });
        self.fs.unlink(Ino(name.0), &name.1).unwrap();
    }

    fn make_directory(&mut self) {
        let (parent, name) = self.some_name();
        let key = (parent, name.clone());
        if self.expected.newest_names().contains_key(&key) {
            return;
        }
        let begun = self.disk.log_len();
        let made = self.fs.make(Ino(parent), &name, &new(FileKind::Directory)).unwrap();
        self.change_names(|names| {
            names.insert(key, made.inode.ino.0);
        });
        self.expected.names.last_mut().unwrap().0 = begun;
    }

    fn fsync_something(&mut self) {
        let Some((_, ino)) = self.existing(FileKind::Regular) else { return };
        let handle = self.fs.open(Ino(ino), OpenFlags::default()).unwrap().handle;
        self.fsync(ino, handle);
        self.fs.release(handle);
    }
}

fn run(
    disk: &SimDisk,
    kind: Kind,
    seed: u64,
    operation_count: u64,
    reopen: Reopen,
) -> (Recording, Expected) {
    let mut driver = start(disk, kind, seed, 3);
    for _ in 0..operation_count {
        driver.operate(reopen);
    }
    driver.finish()
}

/// Drops what files were staged in, has the pool make a batch of that, and goes on. Answers the first
/// point of interest too.
fn run_recycling(disk: &SimDisk, kind: Kind, seed: u64) -> (Recording, Expected, usize) {
    const FILE_COUNT: u64 = 16;
    let mut driver = start(disk, kind, seed, 3);
    for number in 0..FILE_COUNT {
        let (ino, handle) = driver.create((Ino::ROOT.0, format!("old{number}").into_bytes()));
        let len = 1 + driver.rng.index(40_000);
        let bytes: Vec<u8> = driver.rng.bytes(len).into_iter().map(|byte| byte | 1).collect();
        driver.write(ino, handle, 0, &bytes);
        // Where the truncation is lost these bytes are back.
        driver.fsync(ino, handle);
        driver.fs.release(handle);
        if number == FILE_COUNT / 2 {
            driver.seal();
        }
    }
    while driver.existing(FileKind::Regular).is_some() {
        driver.unlink();
    }
    driver.wait_until(|driver| {
        // What is freed is dropped only when that is durable.
        driver.fs.fsync_dir().unwrap();
        let meta = driver.fs.meta();
        meta.stats().orphan_count == 0 && meta.condemned(SegmentId(0), 1).unwrap().is_empty()
    });
    driver.sync_names();
    let from = disk.log_len();
    // The pool makes its next batch, of what was dropped, when half of the first one is gone, and
    // hands the newest out first. Files that stay open are not dropped meanwhile.
    let renames = disk.counters().rename_count;
    let mut open = Vec::new();
    while open.len() < 300 && disk.counters().rename_count == renames {
        let (_, handle) = driver.create((Ino::ROOT.0, b"taker".to_vec()));
        driver.unlink();
        open.push(handle);
    }
    if kind.disk_order == DiskOrder::Kept {
        driver.wait_until(|driver| driver.disk.counters().rename_count >= renames + FILE_COUNT);
    }
    for _ in 0..25 {
        driver.operate(Reopen::Often);
    }
    open.into_iter().for_each(|handle| driver.fs.release(handle));
    let (recording, expected) = driver.finish();
    (recording, expected, from)
}

/// Writes an overlay in multiples of `unit`, and seals it if asked to. Answers the first point of
/// interest too: from where there is an overlay.
fn run_overlay(
    disk: &SimDisk,
    kind: Kind,
    seed: u64,
    unit: usize,
    sealed: bool,
) -> (Recording, Expected, usize) {
    const LEN: usize = 4_300_000;
    let mut driver = start(disk, kind, seed, NEVER_MS);
    let bytes: Vec<u8> = driver.rng.bytes(LEN).into_iter().map(|byte| byte | 1).collect();
    let mut files = Vec::new();
    for name in ["one", "other"] {
        let (ino, handle) = driver.create((Ino::ROOT.0, name.as_bytes().to_vec()));
        driver.write(ino, handle, 0, &bytes);
        driver.fsync(ino, handle);
        driver.fs.release(handle);
        driver.seal();
        files.push(ino);
    }
    driver.sync_names();
    let from = disk.log_len();
    let ino = files[1];
    let handle = driver.open(ino, false);
    for _ in 0..10 {
        match driver.rng.below(6) {
            0 => driver.sync_names(),
            1 => driver.fsync(ino, handle),
            2 => {
                let len = driver.expected.newest_bytes(ino).len();
                let size = (len - driver.rng.index(20_000)) / unit * unit;
                driver.change_bytes(ino, |bytes| bytes.resize(size, 0));
                disk.mark(&format!("truncating {ino} to {size}"));
                driver.fs.truncate(Ino(ino), size as u64).unwrap();
            }
            _ => {
                let len = driver.expected.newest_bytes(ino).len();
                let offset = if driver.rng.percent(30) {
                    len + driver.rng.index(9000)
                } else {
                    driver.rng.index(len)
                };
                let count = (1 + driver.rng.index(9000)).next_multiple_of(unit);
                let data = vec![*driver.rng.pick(b"xyz"); count];
                driver.write(ino, handle, offset / unit * unit, &data);
            }
        }
    }
    driver.fs.release(handle);
    if sealed {
        driver.seal();
        driver.sync_names();
    }
    let (recording, expected) = driver.finish();
    (recording, expected, from)
}

/// Its threads hold it too, until it is shut down.
fn close(fs: Arc<Fs>) {
    fs.shut_down().unwrap();
    drop(fs);
}
