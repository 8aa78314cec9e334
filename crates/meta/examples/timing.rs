//! How long operations of the embedded engine take their callers. Prints; asserts nothing.
//!
//! `cargo run --release -p librorum-meta --example timing -- DIR [FILES]`

#![expect(clippy::print_stdout, reason = "this is what it is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails has nothing to say")]

use std::time::Duration;

use librorum_format::{Ino, SegmentId, Timestamp, TxnId};
use librorum_meta::{
    Embedded, EmbeddedOptions, FileKind, Meta, NewContent, NewInode, RenameMode, SetAttr,
    SetContent,
};
use librorum_sys::clock;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(args.next().expect("a folder for the database"));
    let count: usize = args.next().map_or(200_000, |text| text.parse().unwrap());
    let options = EmbeddedOptions::default();
    let meta = Embedded::open(&dir, &options).unwrap();
    let now = clock::now();
    let new = |kind, staging| NewInode {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
        symlink_target: b"",
        staging,
        now,
    };
    let dir_count = count.div_ceil(1000);
    let dirs: Vec<Ino> = (0..dir_count)
        .map(|index| {
            let name = format!("directory {index}");
            meta.create(Ino::ROOT, name.as_bytes(), &new(FileKind::Directory, None)).unwrap().0.ino
        })
        .collect();
    let name = |index: usize| format!("some file {index:08}.dat").into_bytes();

    let mut inos = Vec::with_capacity(count);
    measure("create, staged", count, |index| {
        let segment = SegmentId(1 + index as u64);
        let parent = dirs[index / 1000];
        let new = new(FileKind::Regular, Some(segment));
        inos.push(meta.create(parent, &name(index), &new).unwrap().0.ino);
    });
    once("sync after it", || assert!(meta.sync().unwrap() > TxnId(0)));
    let recent = count.min(20_000);
    measure("lookup, warm", recent, |index| {
        let index = count - 1 - index;
        meta.lookup(dirs[index / 1000], &name(index)).unwrap();
    });
    measure("inode, warm", recent, |index| {
        meta.inode(inos[count - 1 - index]).unwrap();
    });
    measure("lookup, missing", recent, |index| {
        meta.lookup(dirs[index / 1000], &name(count + index)).unwrap_err();
    });
    measure("set_attr", recent, |index| {
        let set = SetAttr { mtime: Some(now), ..SetAttr::default() };
        meta.set_attr(inos[count - 1 - index], &set).unwrap();
    });
    measure("set_content, inline 1 KiB", recent, |index| {
        let change = SetContent {
            ino: inos[index],
            expected_version: 0,
            content: NewContent::Inline(&[7; 1024]),
            size_bytes: 1024,
            allocated_bytes: 1024,
            mtime: None,
            ctime: None,
        };
        meta.set_content(&change).unwrap();
    });
    measure("rename within a directory", recent, |index| {
        let index = count - 1 - index;
        let parent = dirs[index / 1000];
        let (from, to) = (name(index), name(index + 2 * count));
        meta.rename((parent, &from), (parent, &to), RenameMode::Replace, now).unwrap();
    });
    measure("readdir_plus, per entry of 100", recent / 100, |index| {
        let dir = dirs[(index / 10) % dir_count];
        assert!(!meta.readdir_plus(dir, 16, 100).unwrap().is_empty());
    });
    measure("create, then sync", 500, |index| {
        let name = format!("synced {index}");
        meta.create(Ino::ROOT, name.as_bytes(), &new(FileKind::Regular, None)).unwrap();
        meta.sync().unwrap();
    });
    threads("create + sync, 8 threads", 8, 250, &|thread, index| {
        let name = format!("synced by {thread}: {index}");
        meta.create(dirs[thread % dir_count], name.as_bytes(), &new(FileKind::Regular, None))
            .unwrap();
        meta.sync().unwrap();
    });
    threads("create, 2 threads", 2, 50_000, &|thread, index| {
        let name = format!("from thread {thread}: {index}");
        meta.create(dirs[thread % dir_count], name.as_bytes(), &new(FileKind::Regular, None))
            .unwrap();
    });
    measure("unlink + reap", recent, |index| {
        let parent = dirs[index / 1000];
        meta.unlink(parent, &name(index), Timestamp::new(1, 1)).unwrap();
        meta.reap(inos[index]).unwrap();
    });
    once("close", || drop(meta));
    let mut reopened = None;
    once("open", || reopened = Some(Embedded::open(&dir, &options).unwrap()));
    let meta = reopened.unwrap();
    measure("lookup, cold", 20_000.min(count - recent), |index| {
        let index = recent + (index * 7919) % (count - 2 * recent).max(1);
        drop(meta.lookup(dirs[index / 1000], &name(index)));
    });
    once("check", || meta.check(false, &mut |report| println!("{report}")).unwrap());
    let mut dump = std::io::sink();
    once("dump", || assert!(meta.dump(&mut dump).unwrap() > TxnId(0)));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
    {
        println!("{line}");
    }
}

fn measure(what: &str, count: usize, mut each: impl FnMut(usize)) {
    let mut times = Vec::with_capacity(count);
    let start = clock::monotonic();
    for index in 0..count {
        let start = clock::monotonic();
        each(index);
        times.push(clock::monotonic().saturating_sub(start));
    }
    let total = clock::monotonic().saturating_sub(start);
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 1000];
    let mean = total / u32::try_from(count.max(1)).unwrap();
    println!(
        "{what:32} mean {mean:>10.2?}  p50 {:>10.2?}  p99 {:>10.2?}  p99.9 {:>10.2?}  max {:>10.2?}",
        at(500),
        at(990),
        at(999),
        at(1000)
    );
}

fn threads(what: &str, threads: usize, count: usize, each: &(dyn Fn(usize, usize) + Sync)) {
    let start = clock::monotonic();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || (0..count).for_each(|index| each(thread, index)));
        }
    });
    let total = clock::monotonic().saturating_sub(start);
    let mean = total / u32::try_from(threads * count).unwrap();
    println!("{what:32} mean {mean:>10.2?}  (wall time over all operations)");
}

fn once(what: &str, run: impl FnOnce()) {
    let start = clock::monotonic();
    run();
    let total: Duration = clock::monotonic().saturating_sub(start);
    println!("{what:32} {total:>15.2?}");
}
