//! A tree copied to the mount is the tree: bytes, modes, owners, times, xattrs, hard links, holes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps, XattrFlags};

use crate::harness::{Mode, Mount, Rng, Run, bytes, in_modes, program, snapshot};

in_modes!(a_copied_tree_is_identical: passthrough, cached, unprivileged);

fn a_copied_tree_is_identical(mode: Mode) {
    let mut mount = Mount::new(mode);
    let source = mount.outside("source");
    build(&source);
    let native = mount.outside("native");
    for target in [&native, &mount.path("copy")] {
        fs::create_dir_all(target).unwrap();
        program("cp").arg("-a").arg(source.join(".")).arg(target).ok();
    }
    let expected = snapshot(&native);
    expected.assert_same(&snapshot(&source), "cp itself");
    let copy = mount.path("copy");
    expected.assert_same(&snapshot(&copy), "right after the copy");
    mount.seal_everything();
    expected.assert_same(&snapshot(&copy), "after sealing");
    mount.remount();
    expected.assert_same(&snapshot(&copy), "after a remount");
    mount.remount();
    expected.assert_same(&snapshot(&copy), "after a remount that only followed a look");
}

in_modes!(a_second_copy_costs_no_bytes: passthrough, cached, unprivileged);

fn a_second_copy_costs_no_bytes(mode: Mode) {
    let mut mount = Mount::new(mode);
    let content = bytes(7, 24 << 20);
    fs::write(mount.path("first"), &content).unwrap();
    let before = mount.seal_everything()["stored_bytes"].as_u64().unwrap();
    fs::write(mount.path("second"), &content).unwrap();
    mount.seal_everything();
    // The duplicate is given back when the metadata that makes it one is durable.
    mount.remount();
    let status = mount.status();
    let after = status["stored_bytes"].as_u64().unwrap();
    assert!(after < before + (content.len() as u64) / 100, "{before} became {after}: {status}");
    assert_eq!(fs::read(mount.path("first")).unwrap(), content);
    assert_eq!(fs::read(mount.path("second")).unwrap(), content);
    // Both are still files of their own.
    File::options().write(true).open(mount.path("second")).unwrap().write_at(b"!", 5000).unwrap();
    assert_eq!(fs::read(mount.path("first")).unwrap(), content);
    assert_eq!(fs::read(mount.path("second")).unwrap()[5000], b'!');
    fs::remove_file(mount.path("first")).unwrap();
    mount.seal_everything();
    mount.remount();
    let mut expected = content;
    expected[5000] = b'!';
    assert_eq!(fs::read(mount.path("second")).unwrap(), expected);
}

fn build(root: &Path) {
    sizes(&root.join("sizes"));
    holes(&root.join("holes"));
    names(&root.join("names"));
    kinds(&root.join("kinds"));
    marks(&root.join("marks"));
}

/// Around every border that the store has: inline, block, packed, chunk.
fn sizes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let around = [4096, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 5 << 20];
    let sizes = around.iter().flat_map(|size| [size - 1, *size, size + 1]).chain([0, 1, 13]);
    for size in sizes {
        fs::write(dir.join(format!("random-{size}")), bytes(size as u64, size)).unwrap();
        fs::write(dir.join(format!("text-{size}")), vec![b'a'; size]).unwrap();
    }
    let mut rng = Rng::new(1);
    for index in 0..200 {
        let len = usize::try_from(rng.below(9000)).unwrap();
        fs::write(dir.join(format!("small-{index}")), bytes(rng.next(), len)).unwrap();
    }
}

fn holes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let sparse = |name: &str, len: u64, writes: &[(u64, usize)]| {
        let file = File::create(dir.join(name)).unwrap();
        file.set_len(len).unwrap();
        for (offset, len) in writes {
            file.write_all_at(&bytes(*offset, *len), *offset).unwrap();
        }
    };
    sparse("only-a-hole", 3 << 20, &[]);
    sparse("data-then-hole", 2 << 20, &[(0, 100_000)]);
    sparse("hole-then-data", (2 << 20) + 5000, &[(2 << 20, 5000)]);
    sparse("islands", 16 << 20, &[(4096, 4096), (1 << 20, 1), (5 << 20, 1 << 20), (9 << 20, 9000)]);
    sparse("huge", 1 << 40, &[(0, 1), (1 << 39, 4096), ((1 << 40) - 1, 1)]);
}

fn names(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for name in [
        &b"not UTF-8 \xff\xfe\x80"[..],
        b"new\nline",
        b"tab\tand \x01 control",
        b"-rf",
        b" ",
        b"...",
        "größe-長さ-🦀".as_bytes(),
        &[b'x'; 255],
        b"back\\slash 'and' \"quotes\" $HOME *",
    ] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mut deep = dir.to_owned();
    for level in 0..60 {
        deep.push(format!("level {level}"));
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("at the bottom"), "found").unwrap();
}

fn kinds(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for (name, mode) in [("none", 0), ("all", 0o777), ("suid", 0o4755), ("sgid", 0o2755)] {
        fs::write(dir.join(name), name).unwrap();
        fs::set_permissions(dir.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::create_dir(dir.join("sticky")).unwrap();
    fs::set_permissions(dir.join("sticky"), PermissionsExt::from_mode(0o1777)).unwrap();
    symlink("../sizes/random-4096", dir.join("link")).unwrap();
    symlink("nowhere at all", dir.join("dangling")).unwrap();
    symlink("t".repeat(4000), dir.join("long link")).unwrap();
    rustix::fs::mknodat(CWD, dir.join("fifo"), FileType::Fifo, 0o640.into(), 0).unwrap();
    fs::write(dir.join("one name"), bytes(3, 70_000)).unwrap();
    fs::hard_link(dir.join("one name"), dir.join("another name")).unwrap();
    fs::create_dir(dir.join("elsewhere")).unwrap();
    fs::hard_link(dir.join("one name"), dir.join("elsewhere/a third")).unwrap();
    chown(dir.join("all"), Some(1000), Some(2000)).unwrap();
    chown(dir.join("elsewhere"), Some(1), Some(60_000)).unwrap();
}

fn marks(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for (index, (secs, nanos)) in [
        (0, 0),
        (1, 1),
        (1_600_000_000, 123_456_789),
        (-1, 500_000_000),
        (4_000_000_000, 999_999_999),
    ]
    .into_iter()
    .enumerate()
    {
        let time = Timespec { tv_sec: secs, tv_nsec: nanos };
        for name in [format!("file-{index}"), format!("dir-{index}")] {
            let path = dir.join(&name);
            if name.starts_with("dir") {
                fs::create_dir(&path).unwrap();
            } else {
                fs::write(&path, &name).unwrap();
            }
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }
    let path = dir.join("with xattrs");
    fs::write(&path, bytes(9, 200_000)).unwrap();
    for (name, value) in [
        ("user.empty", &b""[..]),
        ("user.text", b"a value"),
        ("user.binary", b"\0\xff\0"),
        ("user.long", &[7; 3000]),
        ("trusted.root", b"sees it"),
    ] {
        rustix::fs::setxattr(&path, name, value, XattrFlags::CREATE).unwrap();
    }
    rustix::fs::setxattr(dir, "user.on a directory", b"too", XattrFlags::CREATE).unwrap();
}
