//! What is found after a power cut, held to what was acknowledged.

use std::collections::BTreeMap;
use std::path::Path;

use librorum_format::Ino;
use librorum_fs::{CheckOptions, Fs, OpenFlags, Volume, Wait};
use librorum_meta::FileKind;

use crate::{Expected, File, NEVER_MS, Names, Version, close, format_options, options};

pub(crate) fn check(expected: &Expected, point: usize, dir: &Path) {
    let dir = dir.join("volume");
    if !Volume::exists(&dir) {
        assert!(point < expected.formatted, "the volume is gone");
        Volume::format(&dir, &format_options()).unwrap();
    }
    let fs = Fs::open_volume(&dir, options(NEVER_MS)).unwrap_or_else(|error| panic!("{error:?}"));
    let findings = fsck(&fs, CheckOptions { read_data: true, repair: false });
    // What a crash left without a name costs room and nothing else.
    let is_serious = |finding: &&String| !finding.starts_with("F4") && !finding.starts_with("F7");
    let serious: Vec<_> = findings.iter().filter(is_serious).collect();
    assert!(serious.is_empty(), "{serious:?}");

    let found = names(&fs);
    check_names(expected, point, &found);
    let files: BTreeMap<u64, &File> =
        found.values().filter_map(|ino| Some((*ino, expected.files.get(ino)?))).collect();
    let mut contents = BTreeMap::new();
    for (ino, file) in &files {
        let bytes = read(&fs, *ino);
        check_bytes(file, point, *ino, &bytes);
        contents.insert(*ino, bytes);
    }
    // It goes on working: what is sealed now is what was found, a new length shows zeros, and what
    // is mended stays mended.
    fs.seal_all();
    for (ino, bytes) in &contents {
        assert!(read(&fs, *ino) == *bytes, "sealing changed {ino}");
    }
    fsck(&fs, CheckOptions { read_data: false, repair: true });
    close(fs);
    let fs = Fs::open_volume(&dir, options(NEVER_MS)).unwrap();
    let findings = fsck(&fs, CheckOptions { read_data: true, repair: false });
    assert_eq!(findings, Vec::<String>::new());
    for (ino, mut bytes) in contents {
        assert!(read(&fs, ino) == bytes, "closing and mending changed {ino}");
        bytes.resize(bytes.len() + 10_000, 0);
        fs.truncate(Ino(ino), bytes.len() as u64).unwrap();
        assert!(read(&fs, ino) == bytes, "extending {ino} showed old bytes");
    }
    close(fs);
}

fn fsck(fs: &Fs, options: CheckOptions) -> Vec<String> {
    let mut findings = Vec::new();
    fs.check(options, &mut |_| {}, &mut |finding| {
        findings.push(format!("{}: {}", finding.invariant, finding.message));
    })
    .unwrap();
    findings
}

fn names(fs: &Fs) -> Names {
    let mut names = Names::new();
    let mut left = vec![Ino::ROOT];
    while let Some(directory) = left.pop() {
        for entry in fs.readdir(directory, 0, usize::MAX).unwrap() {
            if entry.kind == FileKind::Directory {
                left.push(entry.ino);
            }
            names.insert((directory.0, entry.name), entry.ino.0);
        }
    }
    names
}

fn check_names(expected: &Expected, point: usize, found: &Names) {
    let due = expected.names_acknowledged.iter().filter(|(acknowledged, _)| *acknowledged <= point);
    let due = due.map(|(_, index)| *index).max().unwrap_or(0);
    let possible: Vec<_> =
        expected.names.iter().skip(due).take_while(|(begun, _)| *begun <= point).collect();
    assert!(
        possible.iter().any(|(_, names)| names == found),
        "the namespace is {found:?}; acknowledged was {:?}; newest is {:?}",
        expected.names[due].1,
        possible.last()
    );
}

fn read(fs: &Fs, ino: u64) -> Vec<u8> {
    let handle = fs.open(Ino(ino), OpenFlags::default()).unwrap().handle;
    let mut bytes = Vec::new();
    loop {
        let before = bytes.len();
        fs.read(handle, before as u64, 1 << 20, Wait::May, &mut bytes)
            .unwrap_or_else(|error| panic!("reading {ino} at {before}: {error:?}"));
        if bytes.len() == before {
            break;
        }
    }
    fs.release(handle);
    let size = fs.attributes(Ino(ino)).unwrap().inode.size_bytes;
    assert_eq!(bytes.len() as u64, size, "the length of {ino} and its bytes");
    bytes
}

pub(crate) fn check_bytes(file: &File, point: usize, ino: u64, found: &[u8]) {
    let due = file.acknowledged.iter().filter(|(acknowledged, _)| *acknowledged <= point);
    let due = due.map(|(_, index)| *index).max().unwrap_or(0);
    let possible: Vec<&Vec<u8>> = file
        .versions
        .iter()
        .skip(due)
        .take_while(|version| version.begun <= point)
        .map(|version| version.bytes.as_ref())
        .collect();
    let shortest = possible.iter().map(|bytes| bytes.len()).min().unwrap_or(0);
    let longest = possible.iter().map(|bytes| bytes.len()).max().unwrap_or(0);
    assert!(
        (shortest..=longest).contains(&found.len()),
        "{ino} has {} bytes; acknowledged or newer are {shortest} to {longest}",
        found.len()
    );
    for (at, byte) in found.iter().enumerate() {
        // Most bytes are those of the newest or the acknowledged version: spare them the search.
        let likely = [possible.first(), possible.last()];
        if likely.iter().any(|bytes| bytes.is_some_and(|bytes| bytes.get(at) == Some(byte))) {
            continue;
        }
        let known = possible.iter().any(|bytes| bytes.get(at) == Some(byte));
        let beyond = *byte == 0 && at >= shortest;
        assert!(
            known || beyond,
            "{ino} has {byte:#04x} at {at} of {}; {} versions from the acknowledged one on have {:?}",
            found.len(),
            possible.len(),
            possible.iter().map(|bytes| bytes.get(at)).collect::<Vec<_>>()
        );
    }
}

/// It must refuse what it is there to refuse.
#[test]
fn the_judge_of_bytes_refuses_old_and_foreign_bytes() {
    let version =
        |begun, bytes: &[u8]| Version { begun, bytes: std::sync::Arc::new(bytes.to_vec()) };
    let file = File {
        versions: vec![
            version(0, b""),
            version(10, b"aaaa"),
            version(20, b"bbbb"),
            version(30, b"b"),
        ],
        acknowledged: vec![(15, 1)],
    };
    let accepts = |point, bytes: &[u8]| {
        std::panic::catch_unwind(|| check_bytes(&file, point, 1, bytes)).is_ok()
    };
    assert!(accepts(12, b"") && accepts(12, b"a\0\0\0") && accepts(12, b"aaaa"));
    assert!(accepts(15, b"aaaa") && !accepts(15, b"") && !accepts(15, b"aa\0a"));
    assert!(accepts(25, b"abab") && !accepts(15, b"abab") && !accepts(25, b"abca"));
    assert!(accepts(35, b"b\0aa") && !accepts(35, b"\0aaa") && !accepts(35, b""));
}
