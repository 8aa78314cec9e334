//! Random operations against files in memory, with sealing, sharing, remounts, and many handles
//! open at once. The test plays the kernel: what is served by passthrough it reads and writes
//! itself, and it checks the rules whose breach the kernel answers with EIO.
//!
//! `LIBRORUM_MODEL_SEED` replays one seed, `LIBRORUM_MODEL_ROUNDS` runs more of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a failing test shows the seed that replays it")]

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use librorum_format::{Compression, Ino};
use librorum_fs::{
    CheckOptions, FormatOptions, Fs, FsOptions, OpenFlags, Seek, ServedBy, Volume, Wait,
};
use librorum_meta::{FileKind, NewInode, RenameMode};
use rustix::fs::FallocateFlags;

/// splitmix64: small, seeded, good enough to choose operations.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        // Some of it repeats, so that chunks are shared between files.
        let mut source = Self(if self.below(2) == 0 { self.below(4) } else { self.next() });
        while bytes.len() < len {
            bytes.extend_from_slice(&source.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

struct OpenFile {
    handle: u64,
    file: usize,
    write: bool,
    served_by: ServedBy,
}

struct ModelFile {
    ino: Ino,
    names: Vec<String>,
    content: Vec<u8>,
}

struct World<'a> {
    dir: &'a Path,
    passthrough: bool,
    fs: Arc<Fs>,
    files: Vec<ModelFile>,
    open: Vec<OpenFile>,
    next_name: u32,
    random: Random,
}

const SIZE_MAX: u64 = 400_000;

fn open_volume(dir: &Path, passthrough: bool) -> Arc<Fs> {
    let options = FsOptions { copy_max_bytes: 100_000, quiet_ms: 0, ..FsOptions::default() };
    let fs = Fs::open_volume(dir, options).unwrap();
    fs.allow_passthrough(passthrough);
    fs
}

impl World<'_> {
    /// All open files of an inode are served alike, or the kernel would answer EIO.
    fn check_service(&self, file: usize) {
        let mut segment_file = None;
        let mut cached = false;
        for open in self.open.iter().filter(|open| open.file == file) {
            match &open.served_by {
                ServedBy::Cache { .. } => cached = true,
                ServedBy::Passthrough(backing) => {
                    let this = Arc::as_ptr(backing.file());
                    assert!(
                        segment_file.is_none_or(|other| std::ptr::eq(other, this)),
                        "two backing files serve one inode"
                    );
                    segment_file = Some(this);
                }
            }
        }
        assert!(!(cached && segment_file.is_some()), "cached and passthrough opens are mixed");
    }

    fn pick_file(&mut self) -> Option<usize> {
        let named: Vec<usize> =
            (0..self.files.len()).filter(|&file| !self.files[file].names.is_empty()).collect();
        if named.is_empty() {
            return None;
        }
        let index = self.random.below(named.len() as u64);
        Some(named[usize::try_from(index).unwrap()])
    }

    fn pick_open(&mut self, write: bool) -> Option<usize> {
        let fitting: Vec<usize> =
            (0..self.open.len()).filter(|&open| self.open[open].write || !write).collect();
        if fitting.is_empty() {
            return None;
        }
        let index = self.random.below(fitting.len() as u64);
        Some(fitting[usize::try_from(index).unwrap()])
    }

    fn create(&mut self) {
        self.next_name += 1;
        let name = format!("f{}", self.next_name);
        let new = NewInode {
            kind: FileKind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            symlink_target: b"",
            staging: None,
            now: librorum_sys::clock::now(),
        };
        let write = self.random.below(8) > 0;
        let (found, opened) = self.fs.create(Ino::ROOT, name.as_bytes(), &new, write).unwrap();
        let file = self.files.len();
        self.files.push(ModelFile { ino: found.inode.ino, names: vec![name], content: Vec::new() });
        let handle = opened.handle;
        self.open.push(OpenFile { handle, file, write, served_by: opened.served_by });
    }

    fn open_some(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let write = self.random.below(2) == 0;
        let truncate = self.random.below(8) == 0;
        let flags = OpenFlags { write, truncate };
        let opened = self.fs.open(self.files[file].ino, flags).unwrap();
        if truncate {
            self.files[file].content.clear();
        }
        let handle = opened.handle;
        self.open.push(OpenFile { handle, file, write, served_by: opened.served_by });
        self.check_service(file);
    }

    fn close_some(&mut self) {
        let Some(index) = self.pick_open(false) else { return };
        let open = self.open.swap_remove(index);
        self.fs.release(open.handle);
    }

    fn write(&mut self) {
        let Some(index) = self.pick_open(true) else { return };
        let offset = self.random.below(SIZE_MAX * 3 / 4);
        let len = match self.random.below(4) {
            0 => self.random.below(100),
            1 => self.random.below(5000),
            _ => self.random.below(SIZE_MAX / 4),
        };
        let data = self.random.bytes(usize::try_from(len).unwrap());
        let open = &self.open[index];
        match &open.served_by {
            ServedBy::Passthrough(backing) => backing.file().write_all_at(&data, offset).unwrap(),
            ServedBy::Cache { .. } => self.fs.write(open.handle, offset, &data, false).unwrap(),
        }
        if data.is_empty() {
            return;
        }
        let content = &mut self.files[open.file].content;
        let start = usize::try_from(offset).unwrap();
        let end = start + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(&data);
    }

    fn read_through(&self, open: &OpenFile, offset: u64, len: u32) -> Vec<u8> {
        let mut out = Vec::new();
        match &open.served_by {
            ServedBy::Passthrough(backing) => {
                out.resize(len as usize, 0);
                let read = backing.file().read_at(&mut out, offset).unwrap();
                out.truncate(read);
            }
            ServedBy::Cache { .. } => {
                self.fs.read(open.handle, offset, len, Wait::May, &mut out).unwrap();
            }
        }
        out
    }

    fn read(&mut self) {
        let Some(index) = self.pick_open(false) else { return };
        let offset = self.random.below(SIZE_MAX);
        let len = u32::try_from(self.random.below(SIZE_MAX)).unwrap();
        let open = &self.open[index];
        let content = &self.files[open.file].content;
        let start = usize::try_from(offset).unwrap().min(content.len());
        let end = (start + len as usize).min(content.len());
        assert_eq!(self.read_through(open, offset, len), content[start..end], "handle {index}");
    }

    fn truncate(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let size = self.random.below(SIZE_MAX);
        self.fs.truncate(self.files[file].ino, size).unwrap();
        self.files[file].content.resize(usize::try_from(size).unwrap(), 0);
    }

    fn allocate(&mut self) {
        let Some(index) = self.pick_open(true) else { return };
        let offset = self.random.below(SIZE_MAX);
        let len = 1 + self.random.below(SIZE_MAX / 4);
        let punch = self.random.below(2) == 0;
        let open = &self.open[index];
        let content = &mut self.files[open.file].content;
        let (start, end) =
            (usize::try_from(offset).unwrap(), usize::try_from(offset + len).unwrap());
        if punch {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            self.fs.allocate(open.handle, offset, len, flags).unwrap();
            let end = end.min(content.len());
            if start < end {
                content[start..end].fill(0);
            }
        } else {
            self.fs.allocate(open.handle, offset, len, FallocateFlags::empty()).unwrap();
            if content.len() < end {
                content.resize(end, 0);
            }
        }
    }

    fn copy_range(&mut self) {
        let (Some(from), Some(to)) = (self.pick_open(false), self.pick_open(true)) else { return };
        let (source, target) = (&self.open[from], &self.open[to]);
        if source.file == target.file {
            return;
        }
        let len_bytes = self.files[source.file].content.len() as u64;
        let offset = self.random.below(len_bytes + 1);
        let len = self.random.below(len_bytes + 1);
        let to_offset = if self.random.below(2) == 0 { 0 } else { self.random.below(SIZE_MAX / 2) };
        let copied =
            self.fs.copy_range((source.handle, offset), (target.handle, to_offset), len).unwrap();
        let start = usize::try_from(offset).unwrap();
        let copied = usize::try_from(copied).unwrap();
        let bytes = self.files[source.file].content[start..start + copied].to_vec();
        let content = &mut self.files[target.file].content;
        let start = usize::try_from(to_offset).unwrap();
        if copied == 0 {
            return;
        }
        if content.len() < start + copied {
            content.resize(start + copied, 0);
        }
        content[start..start + copied].copy_from_slice(&bytes);
    }

    /// Writes one file's content into another: what deduplication lives on.
    fn duplicate(&mut self) {
        let (Some(from), Some(to)) = (self.pick_file(), self.pick_open(true)) else { return };
        let content = self.files[from].content.clone();
        let open = &self.open[to];
        self.fs.truncate(self.files[open.file].ino, 0).unwrap();
        match &open.served_by {
            ServedBy::Passthrough(backing) => backing.file().write_all_at(&content, 0).unwrap(),
            ServedBy::Cache { .. } => self.fs.write(open.handle, 0, &content, false).unwrap(),
        }
        self.files[open.file].content = content;
    }

    fn rename_or_link(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let old = self.files[file].names[0].clone();
        self.next_name += 1;
        let new = format!("n{}", self.next_name);
        match self.random.below(3) {
            0 => {
                self.fs.link(self.files[file].ino, Ino::ROOT, new.as_bytes()).unwrap();
                self.fs.forget(self.files[file].ino, 1);
                self.files[file].names.push(new);
            }
            1 => {
                let (from, to) = ((Ino::ROOT, old.as_bytes()), (Ino::ROOT, new.as_bytes()));
                self.fs.rename(from, to, RenameMode::NoReplace).unwrap();
                self.files[file].names[0] = new;
            }
            _ => {
                let Some(other) = self.pick_file() else { return };
                if other == file {
                    return;
                }
                let target = self.files[other].names.remove(0);
                let (from, to) = ((Ino::ROOT, old.as_bytes()), (Ino::ROOT, target.as_bytes()));
                self.fs.rename(from, to, RenameMode::Replace).unwrap();
                self.files[file].names[0] = target;
            }
        }
    }

    fn unlink(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let name = self.files[file].names.remove(0);
        self.fs.unlink(Ino::ROOT, name.as_bytes()).unwrap();
    }

    fn remount(&mut self) {
        for open in self.open.drain(..) {
            self.fs.release(open.handle);
        }
        self.fs.shut_down().unwrap();
        drop(std::mem::replace(&mut self.fs, open_closed(self.dir)));
        self.fs = open_volume(self.dir, self.passthrough);
    }

    /// Every file by name, by content, by length, and by what `SEEK_DATA` says.
    fn check_all(&self) {
        let mut by_name = HashMap::new();
        for file in &self.files {
            for name in &file.names {
                by_name.insert(name.clone(), file);
            }
        }
        let mut seen = 0;
        let mut after = 0;
        loop {
            let page = self.fs.readdir(Ino::ROOT, after, 7).unwrap();
            let Some(last) = page.last() else { break };
            after = last.cookie;
            for dentry in page {
                let name = String::from_utf8(dentry.name).unwrap();
                let file = by_name.get(&name).unwrap_or_else(|| panic!("{name} came back"));
                assert_eq!(dentry.ino, file.ino);
                seen += 1;
            }
        }
        assert_eq!(seen, by_name.len());
        for file in self.files.iter().filter(|file| !file.names.is_empty()) {
            let found = self.fs.attributes(file.ino).unwrap().inode;
            assert_eq!(found.size_bytes, file.content.len() as u64, "{:?}", file.names);
            let opened = self.fs.open(file.ino, OpenFlags::default()).unwrap();
            let open = OpenFile {
                handle: opened.handle,
                file: 0,
                write: false,
                served_by: opened.served_by,
            };
            let all = u32::try_from(file.content.len() + 1).unwrap();
            let read = self.read_through(&open, 0, all);
            let differ = read.iter().zip(&file.content).position(|(a, b)| a != b);
            assert!(read == file.content, "{:?} differs at {differ:?}", file.names);
            self.check_holes(&open, &file.content);
            self.fs.release(open.handle);
        }
    }

    /// A hole that is reported holds zeros.
    fn check_holes(&self, open: &OpenFile, content: &[u8]) {
        let mut at = 0;
        while let Ok(hole) = self.fs.seek(open.handle, at, Seek::Hole) {
            let end = self.fs.seek(open.handle, hole, Seek::Data).unwrap_or(content.len() as u64);
            let range = usize::try_from(hole).unwrap()..usize::try_from(end).unwrap();
            assert!(content[range].iter().all(|byte| *byte == 0), "data in a hole at {hole}");
            if end >= content.len() as u64 {
                break;
            }
            at = end;
        }
    }
}

/// Something to stand in while the volume is closed: a volume of its own.
fn open_closed(dir: &Path) -> Arc<Fs> {
    let other = dir.join("../stand-in");
    if !Volume::exists(&other) {
        Volume::format(&other, &FormatOptions::default()).unwrap();
    }
    let fs =
        Fs::open_volume(&other, FsOptions { read_only: true, ..FsOptions::default() }).unwrap();
    fs.shut_down().unwrap();
    fs
}

fn run(seed: u64, passthrough: bool, steps: u32) {
    println!("LIBRORUM_MODEL_SEED={seed} (passthrough: {passthrough})");
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("volume");
    let format = FormatOptions {
        chunking: "cdc:16K".parse().unwrap(),
        compression: Compression::Zstd,
        ..FormatOptions::default()
    };
    Volume::format(&dir, &format).unwrap();
    let mut world = World {
        dir: &dir,
        passthrough,
        fs: open_volume(&dir, passthrough),
        files: Vec::new(),
        open: Vec::new(),
        next_name: 0,
        random: Random(seed),
    };
    for step in 0..steps {
        match world.random.below(40) {
            0..=2 => world.create(),
            3..=7 => world.open_some(),
            8..=13 => world.close_some(),
            14..=20 => world.write(),
            21..=25 => world.read(),
            26..=27 => world.truncate(),
            28..=29 => world.allocate(),
            30 => world.copy_range(),
            31 => world.duplicate(),
            32 => world.rename_or_link(),
            33 => world.unlink(),
            34..=36 => world.fs.seal_all(),
            37 => {
                for open in std::mem::take(&mut world.open) {
                    world.fs.release(open.handle);
                }
                world.fs.seal_all();
            }
            38 => world.check_all(),
            _ => {
                if step % 5 == 0 {
                    world.remount();
                }
            }
        }
    }
    world.check_all();
    world.remount();
    world.check_all();
    world.fs.seal_all();
    world.check_all();
    world.remount();
    world.fs.shut_down().unwrap();
    drop(std::mem::replace(&mut world.fs, open_closed(&dir)));
    let options = FsOptions { read_only: true, ..FsOptions::default() };
    world.fs = Fs::open_volume(&dir, options).unwrap();
    let mut findings = Vec::new();
    let options = CheckOptions { read_data: true, repair: false };
    world.fs.check(options, &mut |_| {}, &mut |finding| findings.push(finding)).unwrap();
    assert!(findings.is_empty(), "fsck after seed {seed}: {:?}", &findings[..1]);
    world.fs.shut_down().unwrap();
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("LIBRORUM_MODEL_SEED") {
        return vec![seed];
    }
    (1..=number("LIBRORUM_MODEL_ROUNDS").unwrap_or(6)).collect()
}

#[test]
fn random_operations_agree_with_files_in_memory_when_served_by_passthrough() {
    for seed in seeds() {
        run(seed, true, 600);
    }
}

#[test]
fn random_operations_agree_with_files_in_memory_when_served_by_us() {
    for seed in seeds() {
        run(seed, false, 600);
    }
}
