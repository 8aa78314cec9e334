//! How often the daemon is asked: the counts that decide how fast the mount is, whatever the
//! machine does meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::harness::{Mode, Mount, Opcode, Requests, bytes};

/// What is asked a fixed number of times whatever the load: opens, closes, a few attributes.
const FEW: u64 = 20;

fn count(mount: &Mount, work: impl FnOnce()) -> impl Fn(Opcode) -> u64 {
    let requests = Requests::count(mount.pid(), &mount.outside("trace"));
    work();
    let counts = requests.stop();
    println!("{counts:?}");
    move |opcode| counts.get(&opcode).copied().unwrap_or(0)
}

/// The kernel answers EIO to a second registration of an inode that is open, and each costs a call.
#[test]
fn a_file_is_registered_once_however_it_is_opened() {
    let mount = Mount::new(Mode::Passthrough);
    let path = mount.path("file");
    let registered = || {
        let status = mount.status();
        status["background"]["passthrough_registration_count"].as_u64().unwrap()
    };
    let open_again_and_again = || {
        let open = |write: bool| File::options().read(true).write(write).open(&path).unwrap();
        let held: Vec<File> = (0..50).map(|turn| open(turn % 5 == 0)).collect();
        for _ in 0..50 {
            drop((open(false), open(true)));
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|turn| drop(open(turn % 2 == 0))));
            }
        });
        drop(held);
    };
    fs::write(&path, bytes(1, 3 << 20)).unwrap();
    assert_eq!(registered(), 1, "the staging file");
    open_again_and_again();
    assert_eq!(registered(), 1);
    mount.seal_everything();
    // Sealed in place it is the same file, which may be registered anew.
    for _ in 0..100 {
        drop(File::open(&path).unwrap());
    }
    let sealed = registered();
    assert!(sealed <= 2, "{sealed}");
    // The first writer unseals it, in place; from then on it has another name.
    open_again_and_again();
    assert!(registered() <= sealed + 1, "{sealed} became {}", registered());
}

/// Without `HANDLE_KILLPRIV_V2` every write asks for `security.capability` first.
#[test]
fn passthrough_writes_and_reads_reach_the_daemon_never() {
    let mount = Mount::new(Mode::Passthrough);
    let path = mount.path("file");
    let block = bytes(1, 4096);
    let asked = count(&mount, || {
        let file = File::create(&path).unwrap();
        for index in 0..5000 {
            file.write_all_at(&block, index * 4096).unwrap();
        }
        for _ in 0..5000 {
            file.write_all_at(&block, 0).unwrap();
        }
    });
    assert!(asked(Opcode::GETXATTR) <= FEW, "GETXATTR: {}", asked(Opcode::GETXATTR));
    assert_eq!(asked(Opcode::WRITE), 0);
    for state in ["staged", "sealed"] {
        let asked = count(&mount, || {
            let file = File::open(&path).unwrap();
            let mut seen = vec![0; 4096];
            for index in 0..5000 {
                file.read_exact_at(&mut seen, index * 4096).unwrap();
            }
            assert_eq!(seen, block);
        });
        assert_eq!(asked(Opcode::READ), 0, "{state}");
        mount.seal_everything();
    }
    // Unsealed in place: still the kernel's own business.
    let asked = count(&mount, || {
        let file = File::options().write(true).open(&path).unwrap();
        for index in 0..5000 {
            file.write_all_at(&block, index * 4096).unwrap();
        }
    });
    assert_eq!(asked(Opcode::WRITE), 0);
    assert!(asked(Opcode::GETXATTR) <= FEW, "GETXATTR: {}", asked(Opcode::GETXATTR));
}

#[test]
fn cached_writes_are_gathered_and_need_no_xattrs() {
    let mount = Mount::new(Mode::Cached);
    let path = mount.path("file");
    let block = bytes(1, 4096);
    let asked = count(&mount, || {
        let file = File::create(&path).unwrap();
        for index in 0..5120 {
            file.write_all_at(&block, index * 4096).unwrap();
        }
        rustix::fs::fsync(&file).unwrap();
    });
    assert!(asked(Opcode::GETXATTR) <= FEW, "GETXATTR: {}", asked(Opcode::GETXATTR));
    // 20 MiB in requests of up to 1 MiB; writeback may begin in the middle.
    assert!(asked(Opcode::WRITE) < 640, "WRITE: {}", asked(Opcode::WRITE));
}

#[test]
fn the_page_cache_survives_closing_and_sealing() {
    let mount = Mount::new(Mode::Cached);
    let path = mount.path("file");
    let content = bytes(1, 4 << 20);
    fs::write(&path, &content).unwrap();
    assert!(fs::read(&path).unwrap() == content);
    for state in ["closed", "sealed"] {
        let asked = count(&mount, || {
            for _ in 0..5 {
                assert!(fs::read(&path).unwrap() == content);
            }
        });
        assert_eq!(asked(Opcode::READ), 0, "{state}");
        mount.seal_everything();
    }
}

#[test]
fn looking_again_costs_nothing() {
    for mode in [Mode::Passthrough, Mode::Cached] {
        let mount = Mount::new(mode);
        let paths: Vec<_> = (0..50).map(|index| mount.path(&format!("file-{index}"))).collect();
        for path in &paths {
            fs::write(path, "x").unwrap();
        }
        mount.seal_everything();
        let look = || {
            for path in &paths {
                fs::metadata(path).unwrap();
                assert!(!mount.path("missing").exists());
            }
        };
        look();
        let asked = count(&mount, || {
            for _ in 0..50 {
                look();
            }
        });
        assert!(asked(Opcode::LOOKUP) <= FEW, "{mode:?}: {} LOOKUP", asked(Opcode::LOOKUP));
        assert!(asked(Opcode::GETATTR) <= FEW, "{mode:?}: {} GETATTR", asked(Opcode::GETATTR));
    }
}
