//! The fewest system calls that a total takes, and nothing else: `floor [-w] THREADS DIR`.
//!
//! What a walk is compared with. It keeps no names and no tree, ends by a counter, counts every link and
//! cannot tell errors; `-w` only walks (no metadata). Prints how many names it saw and what they occupy.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "there is nobody to go on for")]
#![expect(clippy::print_stdout, reason = "it is a program")]

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};

struct Job {
    parent: Option<Arc<OwnedFd>>,
    name: CString,
}

struct Shared {
    queues: Vec<Mutex<Vec<Job>>>,
    /// Jobs that are queued or running.
    pending: AtomicUsize,
    stats: bool,
}

impl Shared {
    fn take(&self, index: usize) -> Option<Job> {
        if let Some(job) = self.queues[index].lock().unwrap().pop() {
            return Some(job);
        }
        let others = (0..self.queues.len()).filter(|other| *other != index);
        others.map(|other| &self.queues[other]).find_map(|queue| {
            let mut queue = queue.lock().unwrap();
            (!queue.is_empty()).then(|| queue.remove(0))
        })
    }
}

fn work(shared: &Shared, index: usize) -> (u64, u64) {
    let mut buffer: Vec<u8> = Vec::with_capacity(64 << 10);
    let (mut names, mut blocks) = (0, 0);
    while shared.pending.load(SeqCst) > 0 {
        let Some(job) = shared.take(index) else {
            std::thread::yield_now();
            continue;
        };
        let at = job.parent.as_ref().map_or(CWD, |parent| parent.as_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::openat(at, &job.name, flags, Mode::empty()) {
            let fd = Arc::new(fd);
            if shared.stats {
                blocks += u64::try_from(rustix::fs::fstat(&fd).unwrap().st_blocks).unwrap();
            }
            let mut listing = RawDir::new(&fd, buffer.spare_capacity_mut());
            while let Some(record) = listing.next() {
                let record = record.unwrap();
                let name = record.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                names += 1;
                if record.file_type() == FileType::Directory {
                    shared.pending.fetch_add(1, SeqCst);
                    let job = Job { parent: Some(Arc::clone(&fd)), name: name.into() };
                    shared.queues[index].lock().unwrap().push(job);
                } else if shared.stats
                    && let Ok(stat) = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)
                {
                    blocks += u64::try_from(stat.st_blocks).unwrap();
                }
                let at_end = record.next_entry_cookie() == i64::MAX.unsigned_abs();
                if at_end && listing.is_buffer_empty() {
                    break;
                }
            }
        }
        shared.pending.fetch_sub(1, SeqCst);
    }
    (names, blocks)
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let stats = arguments.first().is_none_or(|first| first != "-w");
    if !stats {
        arguments.remove(0);
    }
    let [threads, dir] = &arguments[..] else { panic!("floor [-w] THREADS DIR") };
    let threads: usize = threads.parse().unwrap();
    let shared = Shared {
        queues: (0..threads).map(|_| Mutex::new(Vec::new())).collect(),
        pending: AtomicUsize::new(1),
        stats,
    };
    let name = CString::new(dir.as_str()).unwrap();
    shared.queues[0].lock().unwrap().push(Job { parent: None, name });
    let (names, blocks) = std::thread::scope(|scope| {
        let shared = &shared;
        let others: Vec<_> =
            (1..threads).map(|index| scope.spawn(move || work(shared, index))).collect();
        let own = work(shared, 0);
        others
            .into_iter()
            .map(|other| other.join().unwrap())
            .fold(own, |sum, part| (sum.0 + part.0, sum.1 + part.1))
    });
    println!("{names} names, {} KiB", blocks.div_ceil(2));
}
