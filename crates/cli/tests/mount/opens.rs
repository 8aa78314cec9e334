//! One file, opened by many at once in every way, while it is sealed, shared and written again.
//!
//! The kernel answers EIO to an open that does not fit those before it, so no error may come up
//! here at all; and everybody reads what was written.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Mode, Mount, Python, Rng, Run, bytes, in_modes};

/// Each writer owns every n-th block of this many bytes.
const BLOCK: usize = 8192;
const WRITER_COUNT: usize = 3;
const ROUNDS: usize = 150;

in_modes!(mixed_opens_of_a_small_file_never_fail: passthrough, cached, unprivileged);
in_modes!(mixed_opens_of_a_big_file_never_fail: passthrough, cached, unprivileged);

fn mixed_opens_of_a_small_file_never_fail(mode: Mode) {
    mixed_opens(mode, 48 << 10);
}

/// Too big to be copied when it is opened for writing: it becomes an overlay.
fn mixed_opens_of_a_big_file_never_fail(mode: Mode) {
    mixed_opens(mode, 6 << 20);
}

fn mixed_opens(mode: Mode, len: usize) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    for shared in [false, true] {
        let path = mount.path(&format!("file-{shared}"));
        let content = bytes(len as u64, len);
        fs::write(&path, &content).unwrap();
        let twin = mount.path("twin");
        if shared {
            fs::write(&twin, &content).unwrap();
            mount.seal();
        }
        let mut expected = content.clone();
        hammer(&path, &mut expected);
        assert_same(&path, &expected, "after the storm");
        mount.seal();
        assert_same(&path, &expected, "sealed");
        mount.remount();
        assert_same(&path, &expected, "remounted");
        if shared {
            assert_same(&twin, &content, "the twin, which nobody wrote");
        }
    }
}

fn assert_same(path: &Path, expected: &[u8], when: &str) {
    let seen = fs::read(path).unwrap();
    assert_eq!(seen.len(), expected.len(), "{when}");
    let differs = seen.iter().zip(expected).position(|(seen, expected)| seen != expected);
    assert_eq!(differs, None, "{when}: the first wrong byte");
}

fn hammer(path: &Path, expected: &mut [u8]) {
    let len = expected.len();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut mapped = Python::script(MAPPING_WRITER);
        let mapped = mapped.arg(path).arg(len.to_string()).arg(BLOCK.to_string()).start();
        let writers: Vec<_> = (0..WRITER_COUNT)
            .map(|writer| scope.spawn(move || write_own_blocks(path, len, writer)))
            .collect();
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let file = File::open(path).unwrap();
                    let mut seen = vec![0; BLOCK];
                    file.read_exact_at(&mut seen, (len / 2) as u64).unwrap();
                    assert!(file.metadata().unwrap().size() >= len as u64);
                    drop(file);
                    assert!(fs::read(path).unwrap().len() >= len);
                }
            });
        }
        let truncating = scope.spawn(|| {
            // Only beyond what the others use.
            let mut rng = Rng::new(99);
            for _ in 0..ROUNDS {
                let file = File::options().write(true).open(path).unwrap();
                file.set_len(len as u64 + rng.below(100_000)).unwrap();
                if rng.below(4) == 0 {
                    rustix::fs::fsync(&file).unwrap();
                }
            }
            File::options().write(true).open(path).unwrap().set_len(len as u64).unwrap();
        });
        for (writer, written) in writers.into_iter().enumerate() {
            let last = written.join().unwrap();
            for (index, block) in last {
                assert_eq!(index % (WRITER_COUNT + 1), writer);
                expected[index * BLOCK..][..BLOCK].copy_from_slice(&block);
            }
        }
        truncating.join().unwrap();
        mapped.ok();
        ended.store(true, Ordering::Relaxed);
    });
    for index in (WRITER_COUNT..len / BLOCK).step_by(WRITER_COUNT + 1).take(20) {
        expected[index * BLOCK..][..BLOCK].fill(b'9');
    }
}

/// Writes blocks that nobody else writes, and reads each back by the same open and by a new one.
fn write_own_blocks(path: &Path, len: usize, writer: usize) -> Vec<(usize, Vec<u8>)> {
    let mut rng = Rng::new(writer as u64);
    let own: Vec<usize> = (writer..len / BLOCK).step_by(WRITER_COUNT + 1).collect();
    let mut last = Vec::new();
    for round in 0..ROUNDS {
        let index = own[usize::try_from(rng.below(own.len() as u64)).unwrap()];
        let offset = (index * BLOCK) as u64;
        let block = bytes(rng.next(), BLOCK);
        let file = File::options().read(true).write(true).open(path).unwrap();
        file.write_all_at(&block, offset).unwrap();
        let mut seen = vec![0; BLOCK];
        file.read_exact_at(&mut seen, offset).unwrap();
        assert!(seen == block, "writer {writer}, round {round}, same open");
        if round % 7 == 0 {
            rustix::fs::fsync(&file).unwrap();
        }
        drop(file);
        let file = File::open(path).unwrap();
        seen.fill(0);
        file.read_exact_at(&mut seen, offset).unwrap();
        assert!(seen == block, "writer {writer}, round {round}, new open");
        last.retain(|(known, _)| *known != index);
        last.push((index, block));
    }
    last
}

/// The same through mmap, in another process, on the blocks that are left.
const MAPPING_WRITER: &str = r#"
path, size, block = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
own = list(range(3, size // block, 4))[:20]
for round in range(10):
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, size) as memory:
        for index in own:
            memory[index * block:(index + 1) * block] = str(round).encode() * block
            assert os.pread(fd, block, index * block) == str(round).encode() * block, (round, index)
    os.close(fd)
    fd = os.open(path, os.O_RDONLY)
    for index in own:
        assert os.pread(fd, block, index * block) == str(round).encode() * block, (round, index)
    os.close(fd)
"#;

in_modes!(opens_race_with_unlink_and_rename: passthrough, cached, unprivileged);

fn opens_race_with_unlink_and_rename(mode: Mode) {
    let mount = Mount::with(mode, &["seal_after=1"]);
    let path = mount.path("name");
    let ended = AtomicBool::new(false);
    // The length says which content it is.
    let contents: Vec<Vec<u8>> = (1..=5).map(|index| bytes(index as u64, 40_000 * index)).collect();
    fs::write(&path, &contents[0]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let seen = match fs::read(&path) {
                        Ok(seen) => seen,
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                        Err(error) => panic!("{error}"),
                    };
                    assert!(seen == contents[seen.len() / 40_000 - 1]);
                }
            });
        }
        for round in 0..300 {
            let new = mount.path("new");
            fs::write(&new, &contents[round % contents.len()]).unwrap();
            if round % 4 == 0 {
                fs::remove_file(&path).unwrap();
            }
            fs::rename(&new, &path).unwrap();
        }
        ended.store(true, Ordering::Relaxed);
    });
}
