//! Chunks and segments under power cuts: what a call made durable is there after each one and
//! verifies, what it had not finished yet is there whole or not at all, and ids are never reused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use librorum_format::{
    ChunkId, Chunking, Compression, Encoding, Extent, Location, SegmentId, SegmentKind,
};
use librorum_sim::{Failing, Model, Plan, Recording, Rng, SimDisk, explore, rounds, seed};
use librorum_store::{Chunk, DiskOrder, Store, StoreOptions, VerifyPolicy};

/// Where a chunk is said to be, and how long it is.
type Stored = (ChunkId, Location, u32);

/// What a segment is held to at the points from `from` to `until`.
#[derive(Debug)]
struct Claim {
    segment: SegmentId,
    from: usize,
    until: usize,
    /// The chunks of a sealed one; a staging file only has to exist.
    chunks: Option<Vec<Stored>>,
}

/// What is written to recycled files; nothing else is it.
const RECYCLED: u8 = 0xee;

/// What all workers have claimed.
#[derive(Debug, Default)]
struct Ledger {
    claims: Vec<Claim>,
    /// Ids with the first point that has seen them given out.
    ids: Vec<(usize, SegmentId)>,
    /// From this point on a segment's chunk table may be older than its bytes, or without them:
    /// somebody said that nothing names it any more.
    released: HashMap<SegmentId, usize>,
    /// Made from another's emptied file: only ever holds `RECYCLED` and holes.
    recycled: HashSet<SegmentId>,
    created: usize,
}

impl Ledger {
    /// Nothing is claimed about a segment any more, as of the records to come.
    fn release(&mut self, disk: &SimDisk, segment: SegmentId) {
        let now = disk.log_len();
        self.released.entry(segment).or_insert(now);
        for claim in &mut self.claims {
            if claim.segment == segment {
                claim.until = claim.until.min(now);
            }
        }
    }
}

fn options() -> StoreOptions {
    StoreOptions {
        chunking: Chunking::Cdc { average_bytes: 16 << 10 },
        compression: Compression::Zstd,
        index_cache_bytes: 1 << 20,
        verify: VerifyPolicy::Always,
        disk_order: DiskOrder::Ask,
    }
}

/// The store does less on a disk that keeps the order of names and lengths, so each of the two has a
/// run of its own, with what it is told of its disk: the kernel calls both by the same name.
const DISKS: [(DiskOrder, Model); 2] =
    [(DiskOrder::Kept, Model::Ext4), (DiskOrder::Ask, Model::Posix)];

#[test]
fn what_was_sealed_is_there_after_any_power_cut() {
    scenario(1, Duration::ZERO);
}

#[test]
fn what_was_sealed_beside_others_is_there_after_any_power_cut() {
    scenario(3, Duration::from_micros(300));
}

fn scenario(worker_count: u64, sync_latency: Duration) {
    let seed = seed();
    for round in 0..rounds() {
        let seed = seed.wrapping_add(round);
        for (disk_order, model) in DISKS {
            let Some(disk) = SimDisk::for_test() else { return };
            disk.set_sync_latency(sync_latency);
            let (recording, ledger) = run(&disk, disk_order, worker_count, seed);
            let mut plan = Plan { models: vec![model], ..Plan::of(&recording, seed, 20, 1) };
            // Creation has hundreds of records and few syncs; the random points visit it enough.
            plan.points.retain(|point| *point >= ledger.created || point % 4 == 0);
            let count =
                explore(&recording, &plan, |crash, dir| check(&ledger, crash.point, dir)).unwrap();
            let (in_turn, records) = (plan.in_turn.len(), recording.len());
            eprintln!("{model:?}: {count} images, {in_turn} syncs in turn, {records} records");
        }
    }
}

fn run(disk: &SimDisk, disk_order: DiskOrder, worker_count: u64, seed: u64) -> (Recording, Ledger) {
    let dir = disk.path().join("volume");
    std::fs::create_dir(&dir).unwrap();
    Store::create(&dir).unwrap();
    let ledger = Mutex::new(Ledger { created: disk.mark("created"), ..Ledger::default() });
    let store = Store::open(&dir, &StoreOptions { disk_order, ..options() }).unwrap();
    std::thread::scope(|scope| {
        for number in 0..worker_count {
            let (store, ledger) = (&store, &ledger);
            let rng = Rng::part(seed, number);
            scope.spawn(move || {
                let mut worker =
                    Worker { disk, store, ledger, rng, sealed: Vec::new(), staged: Vec::new() };
                for _ in 0..24 / worker_count {
                    worker.operate();
                }
            });
        }
    });
    drop(store);
    disk.mark("closed");
    (disk.recording(), ledger.into_inner().unwrap())
}

struct Worker<'a> {
    disk: &'a SimDisk,
    store: &'a Store,
    ledger: &'a Mutex<Ledger>,
    rng: Rng,
    /// Mine; the verbatim ones with their length.
    sealed: Vec<(SegmentId, Option<u64>, Vec<Stored>)>,
    /// Mine, closed and never sealed.
    staged: Vec<SegmentId>,
}

impl Worker<'_> {
    fn operate(&mut self) {
        match self.rng.below(14) {
            12.. => self.recycle(),
            0..4 => self.stage_and_seal(),
            4..6 => self.pack(),
            6..8 => self.unseal_in_place(),
            8 => self.take_a_seal_back(),
            9 => self.punch(),
            10 => self.index(),
            _ => self.remove(),
        }
    }

    fn claim(&self, segment: SegmentId, chunks: Option<Vec<Stored>>) {
        let from = self.disk.mark(&format!("{segment} claimed, sealed {}", chunks.is_some()));
        let until = usize::MAX;
        let mut ledger = self.ledger.lock().unwrap();
        ledger.ids.push((from, segment));
        ledger.claims.push(Claim { segment, from, until, chunks });
    }

    fn release(&self, segment: SegmentId) {
        self.ledger.lock().unwrap().release(self.disk, segment);
    }

    fn seal(&mut self, segment: SegmentId, file: &File) {
        let len = file.metadata().unwrap().len();
        let chunks = self.store.chunk_file(file, len, &|| false).unwrap().unwrap();
        self.store.seal_verbatim(segment, file, len, &chunks).unwrap();
        let stored: Vec<Stored> = chunks.iter().map(|chunk| raw(segment, chunk)).collect();
        self.claim(segment, Some(stored.clone()));
        self.sealed.push((segment, Some(len), stored));
    }

    fn stage_and_seal(&mut self) {
        let count = 1 + self.rng.index(3);
        for (segment, file) in self.store.create_staging(count).unwrap() {
            self.claim(segment, None);
            let len = 1 + self.rng.below(90 << 10);
            let bytes = self.rng.bytes(usize::try_from(len).unwrap());
            // In pieces out of order, some synced early, with a hole now and then.
            let half = bytes.len() / 2;
            file.write_all_at(&bytes[half..], half as u64).unwrap();
            if self.rng.percent(30) {
                rustix::fs::fdatasync(&file).unwrap();
            }
            if self.rng.percent(80) {
                file.write_all_at(&bytes[..half], 0).unwrap();
            }
            if self.rng.percent(70) {
                self.seal(segment, &file);
            } else {
                self.staged.push(segment);
            }
        }
    }

    /// A dropped staging file becomes another one, without its bytes.
    fn recycle(&mut self) {
        let mut emptied = Vec::new();
        for old in self.staged.split_off(self.staged.len().saturating_sub(2)) {
            self.release(old);
            if self.store.empty(old).unwrap() {
                emptied.push(old);
            } else {
                self.store.remove(old).unwrap();
            }
        }
        for (new, file) in self.store.recycle(&emptied).unwrap() {
            self.ledger.lock().unwrap().recycled.insert(new);
            self.claim(new, None);
            let len = 1 + self.rng.index(20_000);
            file.write_all_at(&vec![RECYCLED; len], self.rng.below(9000)).unwrap();
            if self.rng.percent(50) {
                self.seal(new, &file);
            } else {
                self.staged.push(new);
            }
        }
    }

    fn pack(&mut self) {
        let chunks: Vec<Vec<u8>> = (0..1 + self.rng.index(12))
            .map(|_| {
                let len = 1 + self.rng.index(9000);
                // Some that shrink, some that do not, some twice.
                if self.rng.percent(50) { self.rng.bytes(len) } else { vec![7; len] }
            })
            .collect();
        let bytes: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let (segment, places) = self.store.write_packed(&bytes).unwrap();
        let stored: Vec<Stored> = places
            .iter()
            .zip(&bytes)
            .map(|((chunk, location), bytes)| {
                (*chunk, *location, u32::try_from(bytes.len()).unwrap())
            })
            .collect();
        self.claim(segment, Some(stored.clone()));
        self.sealed.push((segment, None, stored));
    }

    fn take_sealed(&mut self, verbatim: bool) -> Option<(SegmentId, Vec<Stored>)> {
        let index = self.sealed.iter().position(|(_, len, _)| len.is_some() == verbatim)?;
        let (segment, _, stored) = self.sealed.remove(index);
        Some((segment, stored))
    }

    /// A write to a sealed file that nobody shares.
    fn unseal_in_place(&mut self) {
        let Some((old, _)) = self.take_sealed(true) else { return };
        let new = self.store.relink(old).unwrap();
        self.claim(new, None);
        self.release(old);
        let file = self.store.open_bytes(new, true).unwrap();
        let bytes = self.rng.bytes(6000);
        file.write_all_at(&bytes, self.rng.below(40_000)).unwrap();
        if self.rng.percent(50) {
            self.store.remove(old).unwrap();
        }
        if self.rng.percent(70) {
            self.seal(new, &file);
        }
    }

    /// What happens when the transaction that should name the segment fails.
    fn take_a_seal_back(&mut self) {
        let Some((segment, _)) = self.take_sealed(true) else { return };
        self.release(segment);
        self.store.unseal(segment).unwrap();
        let file = self.store.open_bytes(segment, true).unwrap();
        file.write_all_at(&self.rng.bytes(5000), self.rng.below(9000)).unwrap();
        self.seal(segment, &file);
        // The new table may be lost with the rest, but it never stands for the old bytes; an old
        // one that a power cut brings back may.
    }

    /// Seals with one chunk left out, as if it were stored elsewhere, and gives its room back.
    fn punch(&mut self) {
        let (segment, file) = self.store.create_staging(1).unwrap().remove(0);
        let bytes = self.rng.bytes(150_000);
        file.write_all_at(&bytes, 0).unwrap();
        let mut chunks = self.store.chunk_file(&file, 150_000, &|| false).unwrap().unwrap();
        let left_out = chunks.remove(self.rng.index(chunks.len()));
        self.store.seal_verbatim(segment, &file, 150_000, &chunks).unwrap();
        let stored: Vec<Stored> = chunks.iter().map(|chunk| raw(segment, chunk)).collect();
        self.claim(segment, Some(stored));
        let start = left_out.file_offset_bytes;
        let end = start + u64::from(left_out.len_bytes);
        self.store.punch(segment, &[(start, end)]).unwrap();
        self.disk.mark("punched");
    }

    fn index(&mut self) {
        for (segment, _, _) in &self.sealed {
            self.store.index_segment(*segment).unwrap();
        }
        if self.rng.percent(50) {
            self.store.sync_index().unwrap();
        }
    }

    fn remove(&mut self) {
        let verbatim = self.rng.percent(50);
        let Some((segment, _)) = self.take_sealed(verbatim) else { return };
        self.release(segment);
        self.store.remove(segment).unwrap();
    }
}

fn raw(segment: SegmentId, chunk: &Chunk) -> Stored {
    let location = Location {
        segment,
        offset_bytes: chunk.file_offset_bytes,
        stored_len_bytes: chunk.len_bytes,
        encoding: Encoding::Raw,
    };
    (chunk.id, location, chunk.len_bytes)
}

fn check(ledger: &Ledger, point: usize, dir: &Path) {
    let dir = dir.join("volume");
    let store = match Store::open(&dir, &options()) {
        Ok(store) => store,
        Err(error) if point >= ledger.created => panic!("open: {error:?}"),
        // A creation cut short is done again from the start.
        Err(_) => {
            std::fs::create_dir_all(&dir).unwrap();
            Store::create(&dir).unwrap();
            Store::open(&dir, &options()).unwrap()
        }
    };
    for claim in &ledger.claims {
        if (claim.from..=claim.until).contains(&point) {
            check_claim(&store, claim);
        }
    }
    // Whatever else survived is whole, unless it was given up.
    let found: Vec<_> = store.segments().map(Result::unwrap).collect();
    for (segment, has_bytes, has_table) in &found {
        let released = ledger.released.get(segment).is_some_and(|released| *released <= point);
        if *has_bytes && !released && ledger.recycled.contains(segment) {
            let mut bytes = Vec::new();
            store.open_bytes(*segment, false).unwrap().read_to_end(&mut bytes).unwrap();
            let foreign = bytes.iter().position(|byte| *byte != 0 && *byte != RECYCLED);
            assert_eq!(foreign, None, "{segment} shows what another file held");
        }
        if *has_table && !released {
            let damage = store.scrub_segment(*segment, &mut |_| {}).unwrap();
            assert!(damage.is_empty(), "{segment}: {damage:?}");
        }
        if *has_table {
            store.load_table(*segment).unwrap();
        }
    }
    // The index may forget; what it says of segments that are claimed is true.
    for claim in &ledger.claims {
        for (chunk, _, len) in claim.chunks.iter().flatten() {
            let Some((location, found_len)) = store.find(&[*chunk]).unwrap()[0] else { continue };
            assert_eq!(found_len, *len);
            let verified = store.verify_stored(*chunk, location, *len);
            let released =
                ledger.released.get(&location.segment).is_some_and(|released| *released <= point);
            assert!(verified.is_ok() || released, "{chunk} at {location:?}: {verified:?}");
        }
    }
    let (new, _) = store.create_staging(1).unwrap().remove(0);
    for (from, id) in &ledger.ids {
        assert!(*from > point || *id < new, "{id} was given out, and {new} is new");
    }
    if point.is_multiple_of(8) {
        store.rebuild_index(&mut |_| {}).unwrap();
    }
}

fn check_claim(store: &Store, claim: &Claim) {
    let segment = claim.segment;
    let file = store.open_bytes(segment, false).unwrap_or_else(|error| panic!("{error:?}"));
    let Some(chunks) = &claim.chunks else { return };
    let table = store.load_table(segment).unwrap().expect("a sealed segment has its table");
    if table.kind == SegmentKind::Verbatim {
        assert_eq!(file.metadata().unwrap().len(), table.len_bytes, "{segment}");
    }
    for (chunk, location, len) in chunks {
        let extent = Extent {
            file_offset_bytes: 0,
            len_bytes: *len,
            chunk_offset_bytes: 0,
            chunk_len_bytes: *len,
            chunk: *chunk,
            location: *location,
        };
        let mut bytes = vec![0; usize::try_from(*len).unwrap()];
        store
            .read_extent(&extent, 0, &mut bytes)
            .unwrap_or_else(|error| panic!("{chunk} of {segment}: {error:?}"));
        assert_eq!(ChunkId::of(&bytes), *chunk);
        let listed = table.entries.iter().any(|entry| entry.chunk == *chunk);
        assert!(listed, "{chunk} is not in the table of {segment}");
    }
}

/// On a disk without an order a power cut once left the new name of a recycled file and not the
/// truncation before it. Nobody had been told of the name yet, and the file was synced before anybody
/// was; but a sync for each file costs more than recycling saves, so nothing is recycled there now.
/// The last case is a store that is told wrong things of its disk, and shows that this test sees.
#[test]
fn a_recycled_file_shows_nothing_of_what_it_held_after_any_power_cut() {
    let seed = seed();
    for (disk_order, model, shows) in [
        (DiskOrder::Kept, Model::Ext4, false),
        (DiskOrder::Ask, Model::Posix, false),
        (DiskOrder::Kept, Model::Posix, true),
    ] {
        let Some(disk) = SimDisk::for_test() else { return };
        Store::create(disk.path()).unwrap();
        let store = Store::open(disk.path(), &StoreOptions { disk_order, ..options() }).unwrap();
        let mut emptied = Vec::new();
        let mut newest_old = SegmentId(0);
        let before = disk.log_len();
        for (old, file) in store.create_staging(3).unwrap() {
            file.write_all_at(&[1; 30_000], 0).unwrap();
            rustix::fs::fdatasync(&file).unwrap();
            drop(file);
            newest_old = newest_old.max(old);
            if store.empty(old).unwrap() {
                emptied.push(old);
            } else {
                store.remove(old).unwrap();
            }
        }
        assert_eq!(emptied.is_empty(), disk_order == DiskOrder::Ask);
        let synced = disk.counters().file_sync_count;
        for (_, file) in store.recycle(&emptied).unwrap() {
            file.write_all_at(&[RECYCLED; 3000], 9000).unwrap();
        }
        assert_eq!(disk.counters().file_sync_count, synced, "one sync for all, of their folder");
        let recording = disk.recording();
        let points = (before..=recording.len()).collect();
        let plan = Plan { models: vec![model], ..Plan::at(points, seed, 8) };
        let mut shown = false;
        explore(&recording, &plan, |_, dir| {
            let store = Store::open(dir, &options()).unwrap();
            for segment in store.segments().map(|found| found.unwrap().0) {
                if segment > newest_old {
                    let mut bytes = Vec::new();
                    store.open_bytes(segment, false).unwrap().read_to_end(&mut bytes).unwrap();
                    shown |= bytes.contains(&1);
                }
            }
        })
        .unwrap();
        assert_eq!(shown, shows, "{model:?}, {disk_order:?}");
    }
}

#[test]
fn sealing_writes_a_table_and_no_byte_of_the_file() {
    let Some(disk) = SimDisk::for_test() else { return };
    Store::create(disk.path()).unwrap();
    let store = Store::open(disk.path(), &options()).unwrap();
    let (segment, file) = store.create_staging(1).unwrap().remove(0);
    let len = 4 << 20;
    file.write_all_at(&Rng::new(1).bytes(len), 0).unwrap();
    let chunks = store.chunk_file(&file, len as u64, &|| false).unwrap().unwrap();
    let before = disk.counters();
    store.seal_verbatim(segment, &file, len as u64, &chunks).unwrap();
    let after = disk.counters();
    let table_bytes = 128 + 64 * chunks.len() as u64;
    assert!(after.written_bytes - before.written_bytes <= table_bytes, "{before:?} {after:?}");
    assert_eq!(after.read_bytes, before.read_bytes);
    assert_eq!(after.copied_bytes, 0);
    assert_eq!(after.file_sync_count - before.file_sync_count, 2, "the bytes, then the table");
    assert_eq!(after.directory_sync_count - before.directory_sync_count, 1);
    // And a new id for the same bytes is a name, not a copy.
    let before = disk.counters();
    store.relink(segment).unwrap();
    assert_eq!(disk.counters().written_bytes, before.written_bytes);
    assert_eq!(disk.counters().link_count, before.link_count + 1);
}

#[test]
fn a_seal_or_a_packing_that_fails_leaves_nothing_that_looks_sealed() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    let seed = seed();
    for (failing, errno) in
        [(Failing::Writes, ENOSPC), (Failing::Syncs, EIO), (Failing::Names, ENOSPC)]
    {
        for after in 0..4 {
            let Some(disk) = SimDisk::for_test() else { return };
            Store::create(disk.path()).unwrap();
            let store = Store::open(disk.path(), &options()).unwrap();
            let (segment, file) = store.create_staging(1).unwrap().remove(0);
            file.write_all_at(&Rng::new(after).bytes(50_000), 0).unwrap();
            let chunks = store.chunk_file(&file, 50_000, &|| false).unwrap().unwrap();

            disk.fail_after(after, errno, failing);
            let sealed = store.seal_verbatim(segment, &file, 50_000, &chunks);
            disk.heal();
            let table = store.load_table(segment).unwrap();
            assert_eq!(sealed.is_ok(), table.is_some(), "{failing:?} after {after}: {sealed:?}");

            disk.fail_after(after, errno, failing);
            let packed = store.write_packed(&[&[1; 5000], &[2; 5000]]);
            disk.heal();
            let count = store.segments().count();
            assert_eq!(count, 1 + usize::from(packed.is_ok()), "{failing:?} after {after}");
            drop(store);

            // And no power cut makes it look sealed either.
            let recording = disk.recording();
            let plan = Plan::at(vec![recording.len()], seed, 10);
            explore(&recording, &plan, |_, dir| {
                let store = Store::open(dir, &options()).unwrap();
                let found: Vec<_> = store.segments().map(Result::unwrap).collect();
                for (segment, _, has_table) in found {
                    if has_table {
                        let damage = store.scrub_segment(segment, &mut |_| {}).unwrap();
                        assert!(damage.is_empty(), "{failing:?} after {after}: {damage:?}");
                    }
                }
            })
            .unwrap();
        }
    }
}
