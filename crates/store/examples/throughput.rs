//! Prints how fast the store is on this machine and disk:
//! `cargo run --release -p librorum-store --example throughput [FOLDER] [MIB]`.
//!
//! One thread throughout. No number is asserted: compare runs on one quiet machine.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints measurements")]

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use librorum_format::{ChunkId, Chunking, Compression, Encoding, Extent, Location, SegmentId};
use librorum_store::{Chunk, Store, StoreOptions, VerifyPolicy};
use rustix::fs::Advice;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let len = arguments.next().map_or(1024, |mib| mib.parse::<usize>().unwrap()) << 20;
    let dir = tempfile::tempdir_in(folder).unwrap();
    Store::create(dir.path()).unwrap();
    let options = StoreOptions::default();
    let store = Store::open(dir.path(), &options).unwrap();

    let noise = noise(len);
    let (segment, mut file) = store.create_staging(1).unwrap().remove(0);
    let rate = timed(len, || file.write_all(&noise).unwrap());
    println!("pwrite to a staging file              {rate}");

    for chunking in ["cdc:1M", "cdc:64K", "fixed:4M"] {
        let chunking = chunking.parse::<Chunking>().unwrap();
        let other = tempfile::tempdir_in(dir.path()).unwrap();
        Store::create(other.path()).unwrap();
        let options = StoreOptions { chunking, ..options.clone() };
        let other = Store::open(other.path(), &options).unwrap();
        let best = (0..5)
            .map(|_| timed(len, || drop(other.chunk_file(&file, len as u64, &|| false).unwrap())))
            .min()
            .unwrap();
        println!("chunk_file, page cache, {chunking:<13} {best}");
    }
    let mut read_only = vec![0; 256 << 10];
    let best = (0..5)
        .map(|_| {
            timed(len, || {
                for offset in (0..len as u64).step_by(256 << 10) {
                    file.read_exact_at(&mut read_only, offset).unwrap();
                }
            })
        })
        .min()
        .unwrap();
    println!("  of which pread alone                {best}");
    let best = (0..5)
        .map(|_| {
            timed(len, || {
                let mut hasher = blake3::Hasher::new();
                noise.chunks(256 << 10).for_each(|piece| {
                    hasher.update(piece);
                });
            })
        })
        .min()
        .unwrap();
    println!("  of which BLAKE3 alone               {best}");

    let chunks = store.chunk_file(&file, len as u64, &|| false).unwrap().unwrap();
    println!("chunks: {}, mean {} KiB", chunks.len(), (len / chunks.len()) >> 10);
    rustix::fs::fsync(&file).unwrap();
    let rate = timed(len, || store.seal_verbatim(segment, &file, len as u64, &chunks).unwrap());
    println!("seal_verbatim of a synced file        {rate}");
    let rate = timed(len, || store.index_segment(segment).unwrap());
    println!("index_segment                         {rate}");
    let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
    let rate = timed(len, || assert!(store.find(&ids).unwrap().iter().all(Option::is_some)));
    println!("find, all known                       {rate}");

    read_verbatim(&store, segment, &chunks, &file, len, dir.path());
    packed(&store, &noise);
    files(&store, &noise);
    drop(noise);
    index(&store);
}

/// Files of 128 KiB: what the syncs of sealing cost.
fn files(store: &Store, noise: &[u8]) {
    let start = now();
    let staged: Vec<_> = (0..8).flat_map(|_| store.create_staging(64).unwrap()).collect();
    println!("create_staging, batches of 64         {:.0} files/s", per_second(512, start));
    for ((_, file), bytes) in staged.iter().zip(noise.chunks(128 << 10)) {
        file.write_all_at(bytes, 0).unwrap();
    }
    let count = 512.min(noise.len() as u64 >> 17);
    let start = now();
    for (segment, file) in staged.iter().take(usize::try_from(count).unwrap()) {
        let chunks = store.chunk_file(file, 128 << 10, &|| false).unwrap().unwrap();
        store.seal_verbatim(*segment, file, 128 << 10, &chunks).unwrap();
    }
    println!("chunk and seal, 128 KiB each          {:.0} files/s", per_second(count, start));
    let start = now();
    staged.iter().for_each(|(segment, _)| store.remove(*segment).unwrap());
    println!("remove                                {:.0} files/s", per_second(512, start));
}

fn per_second(count: u64, start: Duration) -> f64 {
    count as f64 / (now() - start).as_secs_f64()
}

/// Two million chunks, two terabytes at the default average: what the index costs.
fn index(store: &Store) {
    let count = 2_000_000;
    let chunk = |number: u64| ChunkId::of(&number.to_le_bytes());
    let before = resident_mib();
    let start = now();
    for first in (0..count).step_by(500) {
        let entries: Vec<_> = (first..first + 500)
            .map(|number| {
                let location = Location {
                    segment: SegmentId((1 << 40) + number / 500),
                    offset_bytes: (number % 500) << 20,
                    stored_len_bytes: 1 << 20,
                    encoding: Encoding::Raw,
                };
                (chunk(number), location, 1 << 20)
            })
            .collect();
        store.index_chunks(&entries).unwrap();
    }
    println!(
        "index of {count}: {:.0} inserts/s, {} MiB on disk, {before} MiB resident before, {} after",
        per_second(count, start),
        store.usage().unwrap().index_bytes >> 20,
        resident_mib(),
    );
    let ids: Vec<ChunkId> = (count..count + 50_000).map(chunk).collect();
    let start = now();
    assert!(store.find(&ids).unwrap().iter().all(Option::is_none));
    println!("  find, not known: {:.0}/s", per_second(50_000, start));
    // Known to the index, but their segments do not exist: the look-up and one failed open.
    let ids: Vec<ChunkId> = (0..50_000).map(|number| chunk(number * 40)).collect();
    let start = now();
    assert!(store.find(&ids).unwrap().iter().all(Option::is_none));
    println!(
        "  find, stale:     {:.0}/s, {} MiB resident",
        per_second(50_000, start),
        resident_mib()
    );
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

fn read_verbatim(
    store: &Store,
    segment: SegmentId,
    chunks: &[Chunk],
    file: &std::fs::File,
    len: usize,
    dir: &std::path::Path,
) {
    let extents: Vec<Extent> = chunks.iter().map(|chunk| extent(segment, chunk)).collect();
    let drop_cache = || rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
    drop_cache();
    let rate = timed(len, || {
        let mut buf = vec![0; 1 << 20];
        for offset in (0..len as u64).step_by(buf.len()) {
            file.read_exact_at(&mut buf, offset).unwrap();
        }
    });
    println!("plain pread, cold, 1 MiB              {rate}");
    for request in [128 << 10, 4 << 10] {
        drop_cache();
        let name = request >> 10;
        let rate = timed(len, || read_all(store, &extents, request));
        println!("read_extent, cold, {name:>3} KiB            {rate}");
        let rate = timed(len, || read_all(store, &extents, request));
        println!("read_extent, warm and verified, {name:>3} K {rate}");
    }
    let rate = timed(len, || drop(store.scrub_segment(segment, &mut |_| {}).unwrap()));
    println!("scrub                                 {rate}");
    // A fresh process's view: in the page cache, never verified.
    let copy = tempfile::tempdir_in(dir).unwrap();
    Store::create(copy.path()).unwrap();
    let options = StoreOptions { verify: VerifyPolicy::Always, ..StoreOptions::default() };
    let always = Store::open(copy.path(), &options).unwrap();
    let (id, mut out) = always.create_staging(1).unwrap().remove(0);
    std::io::copy(&mut store.open_bytes(segment, false).unwrap(), &mut out).unwrap();
    let extents: Vec<Extent> = chunks.iter().map(|chunk| extent(id, chunk)).collect();
    let rate = timed(len, || read_all(&always, &extents, 4 << 20));
    println!("read_extent, always verify, whole     {rate}");
}

fn packed(store: &Store, noise: &[u8]) {
    let text = "int main(void) { return librorum_store(17, 42); } /* a line of source */\n";
    let text: Vec<u8> = text.bytes().cycle().take(64 << 20).collect();
    let mut sources = text;
    // A third of noise, so that it compresses as source code does and not as a single line.
    for (index, piece) in sources.chunks_mut(48).enumerate() {
        let from = index * 16 % (noise.len() - 16);
        piece[..16].copy_from_slice(&noise[from..from + 16]);
    }
    for (name, bytes) in [("compressible", &sources[..]), ("noise", &noise[..64 << 20])] {
        let chunks: Vec<&[u8]> = bytes.chunks(16 << 10).collect();
        let mut extents = Vec::new();
        let mut stored_bytes = 0;
        let rate = timed(bytes.len(), || {
            for batch in chunks.chunks(512) {
                let (_, places) = store.write_packed(batch).unwrap();
                for ((chunk, location), bytes) in places.into_iter().zip(batch) {
                    stored_bytes += u64::from(location.stored_len_bytes);
                    let len_bytes = u32::try_from(bytes.len()).unwrap();
                    extents.push(Extent {
                        file_offset_bytes: 0,
                        len_bytes,
                        chunk_offset_bytes: 0,
                        chunk_len_bytes: len_bytes,
                        chunk,
                        location,
                    });
                }
            }
        });
        let compression = Compression::default();
        println!(
            "write_packed, 16 KiB, {name:<12}    {rate} {compression:?}, {stored_bytes} stored"
        );
        let rate = timed(bytes.len(), || read_all(store, &extents, 16 << 10));
        println!("  read, first time                    {rate}");
        let rate = timed(bytes.len(), || read_all(store, &extents, 16 << 10));
        println!("  read, again                         {rate}");
    }
}

fn read_all(store: &Store, extents: &[Extent], request: usize) {
    let mut buf = vec![0; request];
    for extent in extents {
        let mut offset = extent.file_offset_bytes;
        while offset < extent.file_end_bytes() {
            let left = usize::try_from(extent.file_end_bytes() - offset).unwrap();
            let part = &mut buf[..left.min(request)];
            store.read_extent(extent, offset, part).unwrap();
            offset += part.len() as u64;
        }
    }
}

fn extent(segment: SegmentId, chunk: &Chunk) -> Extent {
    Extent {
        file_offset_bytes: chunk.file_offset_bytes,
        len_bytes: chunk.len_bytes,
        chunk_offset_bytes: 0,
        chunk_len_bytes: chunk.len_bytes,
        chunk: chunk.id,
        location: Location {
            segment,
            offset_bytes: chunk.file_offset_bytes,
            stored_len_bytes: chunk.len_bytes,
            encoding: Encoding::Raw,
        },
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rate {
    took: Duration,
    cpu: Duration,
    len: usize,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let per_second = |time: Duration| self.len as f64 / time.as_secs_f64().max(1e-9) / 1e9;
        let (wall, cpu) = (per_second(self.took), per_second(self.cpu));
        write!(f, "{wall:8.2} GB/s wall {cpu:8.2} GB/s of CPU {:9.1?}", self.took)
    }
}

fn timed(len: usize, work: impl FnOnce()) -> Rate {
    let clock = |id| {
        let time = rustix::time::clock_gettime(id);
        Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
    };
    use rustix::time::ClockId::{Monotonic, ThreadCPUTime};
    let start = (clock(Monotonic), clock(ThreadCPUTime));
    work();
    Rate { took: clock(Monotonic) - start.0, cpu: clock(ThreadCPUTime) - start.1, len }
}
