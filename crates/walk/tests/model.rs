//! Walks against a sequential walk of the standard library: random trees, and trees that change.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fdu::{
    Descend, Dir, DirId, Entered, Entry, Error, Follow, Kind, Need, Outcome, Stop, Threads,
    Visitor, Walk,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// Writes down everything, and checks the order of events as far as one thread sees it.
#[derive(Default)]
struct Record {
    seen: Vec<(PathBuf, Kind, Option<u64>)>,
    entered: Vec<DirId>,
    left: Vec<(DirId, u64)>,
    errors: Vec<String>,
}

impl Visitor for Record {
    /// The scope is the depth: it is handed down.
    type Scope = u32;
    /// How many names are in and below a directory.
    type Tally = u64;

    fn enter(&mut self, entered: &Entered<'_>, parent: Option<&u32>, _: &mut u64) -> Descend<u32> {
        let dir = entered.dir();
        let depth = parent.map_or(0, |depth| depth + 1);
        assert_eq!(depth, dir.depth());
        assert_eq!(parent.is_none(), dir.parent().is_none());
        self.entered.push(dir.id());
        let len = entered.metadata().map(|metadata| metadata.len_bytes());
        self.seen.push((dir.path(), Kind::Directory, len));
        Descend::Into(depth)
    }

    fn file(&mut self, entry: &Entry<'_>, scope: Option<&u32>, tally: &mut u64) {
        assert_eq!(scope.map_or(0, |depth| depth + 1), entry.depth());
        let len = entry.metadata().map(|metadata| metadata.len_bytes());
        self.seen.push((entry.path(), entry.kind(), len));
        *tally += 1;
    }

    fn exit(&mut self, dir: &Arc<Dir>, scope: &u32, tally: &mut u64) {
        assert_eq!(*scope, dir.depth());
        self.left.push((dir.id(), *tally));
        *tally += 1;
    }

    fn fold(&mut self, into: &mut u64, part: u64) {
        *into += part;
    }

    fn error(&mut self, error: Error, _: &mut u64) {
        self.errors.push(error.to_string());
    }
}

struct Seen {
    by_path: BTreeMap<PathBuf, (Kind, Option<u64>)>,
    errors: Vec<String>,
    /// What was folded into the roots.
    count: u64,
}

/// Everything that a walk told, each path once.
fn gather(outcome: Outcome<Record>) -> Seen {
    let mut seen = Seen { by_path: BTreeMap::new(), errors: Vec::new(), count: 0 };
    let (mut entered, mut left) = (BTreeSet::new(), BTreeSet::new());
    seen.count = outcome.roots.iter().sum();
    for record in outcome.visitors {
        for (path, kind, len) in record.seen {
            let before = seen.by_path.insert(path.clone(), (kind, len));
            assert!(before.is_none(), "{} was told twice", path.display());
        }
        entered.extend(record.entered);
        for (id, _) in record.left {
            assert!(left.insert(id), "a directory was left twice");
        }
        seen.errors.extend(record.errors);
    }
    assert!(outcome.stopped || entered == left, "what is entered is left");
    seen
}

/// The same by the standard library, one directory after the other.
fn reference(root: &Path) -> BTreeMap<PathBuf, (Kind, Option<u64>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink,
            kind if kind.is_file() => Kind::File,
            _ => Kind::Fifo,
        };
        if kind == Kind::Directory {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (kind, Some(metadata.len())));
    }
    found
}

fn walk(root: &Path, threads: usize) -> Walk {
    Walk::new([root]).threads(Threads::Exactly(NonZeroUsize::new(threads).unwrap()))
}

/// A tree: for each path, which exists below what came before, what to make there.
fn build(root: &Path, plan: &[(Vec<u8>, u8)]) {
    for (path, kind) in plan {
        let path = path.iter().fold(root.to_owned(), |path, name| path.join(format!("n{name}")));
        let Some(parent) = path.parent() else { continue };
        if fs::create_dir_all(parent).is_err() || path.symlink_metadata().is_ok() {
            continue;
        }
        match kind % 8 {
            0..3 => fs::create_dir(&path).unwrap(),
            3 => std::os::unix::fs::symlink("n0/n1", &path).unwrap(),
            4 => rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o644.into()).unwrap(),
            _ => fs::write(&path, vec![b'x'; usize::from(*kind) * 30]).unwrap(),
        }
    }
}

fn plans() -> impl Strategy<Value = Vec<(Vec<u8>, u8)>> {
    let path = prop::collection::vec(0_u8..6, 1..7);
    prop::collection::vec((path, any::<u8>()), 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_walk_tells_what_a_sequential_one_finds(plan in plans(), threads in 1_usize..6) {
        let dir = tempfile::tempdir().unwrap();
        build(dir.path(), &plan);
        let expected = reference(dir.path());
        for open_max in [1_000, 0] {
            for need in [Need::Names, Need::Kind, Need::Size, Need::Full] {
                let walk = walk(dir.path(), threads).need(need).open_directories_max(open_max);
                let seen = gather(walk.run(|_worker| Record::default()));
                prop_assert!(seen.errors.is_empty(), "{:?}", seen.errors);
                prop_assert_eq!(seen.count, u64::try_from(expected.len()).unwrap());
                let kinds = |map: &BTreeMap<PathBuf, (Kind, Option<u64>)>| -> Vec<_> {
                    map.iter().map(|(path, (kind, _))| (path.clone(), *kind)).collect()
                };
                prop_assert_eq!(kinds(&seen.by_path), kinds(&expected));
                if need >= Need::Size {
                    prop_assert_eq!(&seen.by_path, &expected);
                }
            }
        }
        // The iterator tells the same, parents first.
        let mut told = BTreeSet::new();
        for entry in walk(dir.path(), threads).entries() {
            let entry = entry.map_err(|error| TestCaseError::fail(error.to_string()))?;
            let path = entry.path();
            prop_assert_eq!(Some(entry.kind()), expected.get(&path).map(|(kind, _)| *kind));
            prop_assert!(told.insert(path));
        }
        prop_assert_eq!(told.len(), expected.len());
    }
}

/// Directories and files that stay are seen once each while others are renamed, made and deleted,
/// whole directories among them.
#[test]
fn what_stays_is_seen_once_while_the_rest_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut stays = BTreeSet::new();
    for outer in 0..12 {
        for inner in 0..12 {
            let path = dir.path().join(format!("stays{outer}/stays{inner}"));
            fs::create_dir_all(path.join("moves0/stays")).unwrap();
            stays.insert(path.clone());
            for file in 0..10 {
                let path = path.join(format!("stays{file}"));
                File::create(&path).unwrap();
                stays.insert(path);
            }
        }
        stays.insert(dir.path().join(format!("stays{outer}")));
    }
    stays.insert(dir.path().to_owned());

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for mover in 0..2_usize {
            let (root, done) = (dir.path(), &done);
            scope.spawn(move || {
                let mut round = mover;
                while !done.load(Ordering::Relaxed) {
                    let at = root.join(format!("stays{}/stays{}", round % 12, round / 12 % 12));
                    let other =
                        root.join(format!("stays{}/stays{}", round / 7 % 12, round / 3 % 12));
                    // Each of these may fail: the other thread was there before.
                    drop(fs::rename(at.join("moves0"), other.join("moves1")));
                    drop(fs::rename(other.join("moves1"), at.join("moves0")));
                    drop(fs::create_dir_all(at.join("gone/deeper/deepest")));
                    drop(File::create(at.join("gone/deeper/file")));
                    drop(fs::remove_dir_all(other.join("gone")));
                    // A directory becomes a file, a link, and a directory again.
                    drop(fs::create_dir(other.join("odd")));
                    drop(fs::remove_dir(other.join("odd")));
                    drop(std::os::unix::fs::symlink("/", other.join("odd")));
                    drop(fs::remove_file(other.join("odd")));
                    round += 1;
                }
            });
        }
        for round in 0..60 {
            let open_max = if round % 3 == 0 { 0 } else { 1_000 };
            let need = if round % 2 == 0 { Need::Size } else { Need::Kind };
            let walk = walk(dir.path(), 1 + round % 5).need(need).open_directories_max(open_max);
            let outcome = walk.run(|_worker| Record::default());
            let mut times: BTreeMap<PathBuf, u32> = BTreeMap::new();
            for record in outcome.visitors {
                for (path, ..) in record.seen {
                    *times.entry(path).or_default() += 1;
                }
            }
            for path in &stays {
                assert_eq!(times.get(path), Some(&1), "{} in round {round}", path.display());
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_walk_ends_early_when_it_is_told_to() {
    struct Stopping<'s>(&'s Stop, u64);
    impl Visitor for Stopping<'_> {
        type Scope = ();
        type Tally = ();
        fn enter(&mut self, _: &Entered<'_>, _: Option<&()>, (): &mut ()) -> Descend<()> {
            Descend::Into(())
        }
        fn file(&mut self, _: &Entry<'_>, _: Option<&()>, (): &mut ()) {
            self.1 += 1;
            self.0.stop();
        }
        fn fold(&mut self, (): &mut (), (): ()) {}
        fn error(&mut self, _: Error, (): &mut ()) {}
    }
    let dir = tempfile::tempdir().unwrap();
    for index in 0..3_000 {
        File::create(dir.path().join(format!("file{index}"))).unwrap();
    }
    for threads in [1, 4] {
        let stop = Stop::default();
        let outcome = walk(dir.path(), threads).stop(&stop).run(|_| Stopping(&stop, 0));
        assert!(outcome.stopped);
        let seen: u64 = outcome.visitors.iter().map(|visitor| visitor.1).sum();
        assert!((1..=4).contains(&seen), "{seen}");
    }
    // Dropping the iterator stops its threads too.
    let mut entries = walk(Path::new("/"), 2).entries();
    assert!(entries.next().is_some());
    drop(entries);
}

#[test]
fn a_panic_of_a_visitor_is_passed_on() {
    struct Panicking;
    impl Visitor for Panicking {
        type Scope = ();
        type Tally = ();
        fn enter(&mut self, dir: &Entered<'_>, _: Option<&()>, (): &mut ()) -> Descend<()> {
            assert!(dir.dir().depth() < 2, "deep enough");
            Descend::Into(())
        }
        fn file(&mut self, _: &Entry<'_>, _: Option<&()>, (): &mut ()) {}
        fn fold(&mut self, (): &mut (), (): ()) {}
        fn error(&mut self, _: Error, (): &mut ()) {}
    }
    let dir = tempfile::tempdir().unwrap();
    for index in 0..200 {
        fs::create_dir_all(dir.path().join(format!("d{index}/below"))).unwrap();
    }
    for threads in [1, 4] {
        let walk = walk(dir.path(), threads);
        let result = std::panic::catch_unwind(|| drop(walk.run(|_worker| Panicking)));
        assert!(result.is_err());
    }
}

#[test]
fn what_is_not_kept_is_not_opened() {
    struct Pruning(Vec<PathBuf>);
    impl Visitor for Pruning {
        type Scope = ();
        type Tally = ();
        fn enter(&mut self, dir: &Entered<'_>, _: Option<&()>, (): &mut ()) -> Descend<()> {
            self.0.push(dir.dir().path());
            match dir.dir().name().as_encoded_bytes() {
                b"closed" => Descend::No(()),
                b"skipped" => Descend::Skip,
                _ => Descend::Into(()),
            }
        }
        fn keep(&mut self, entry: &Entry<'_>, (): &()) -> bool {
            entry.name_bytes() != b"pruned"
        }
        fn file(&mut self, entry: &Entry<'_>, _: Option<&()>, (): &mut ()) {
            self.0.push(entry.path());
        }
        fn exit(&mut self, dir: &Arc<Dir>, (): &(), (): &mut ()) {
            assert_ne!(dir.name(), "skipped");
        }
        fn fold(&mut self, (): &mut (), (): ()) {}
        fn error(&mut self, error: Error, (): &mut ()) {
            panic!("{error}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["pruned", "closed", "skipped", "open"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        File::create(dir.path().join(name).join("file")).unwrap();
    }
    let outcome = walk(dir.path(), 2).run_counted(|_worker| Pruning(Vec::new()));
    let seen: BTreeSet<PathBuf> = outcome.visitors.into_iter().flat_map(|one| one.0).collect();
    let expected = ["", "closed", "skipped", "open", "open/file"].map(|name| match name {
        "" => dir.path().to_owned(),
        name => dir.path().join(name),
    });
    assert_eq!(seen, BTreeSet::from(expected));

    let outcome = walk(dir.path(), 2).max_depth(1).run_counted(|_worker| Record::default());
    let directories: u64 = outcome.statistics.iter().map(|one| one.directories).sum();
    assert_eq!(directories, 5);
    let seen = gather(outcome);
    assert_eq!(seen.by_path.len(), 5);
}

#[test]
fn links_are_followed_until_they_lead_back() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/file"), "text").unwrap();
    std::os::unix::fs::symlink("../..", dir.path().join("a/b/up")).unwrap();
    std::os::unix::fs::symlink("a/b/file", dir.path().join("to-file")).unwrap();
    std::os::unix::fs::symlink("a/b", dir.path().join("to-b")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
    let outcome =
        walk(dir.path(), 3).follow(Follow::Always).run_counted(|_worker| Record::default());
    let seen = gather(outcome);
    let path = |name: &str| dir.path().join(name);
    assert_eq!(seen.by_path[&path("to-file")].0, Kind::File);
    assert_eq!(seen.by_path[&path("to-b/file")].0, Kind::File);
    assert!(!seen.by_path.contains_key(&path("a/b/up")));
    assert!(!seen.by_path.contains_key(&path("to-b/up")));
    // Two loops, and a link to nothing.
    assert_eq!(seen.errors.len(), 3, "{:?}", seen.errors);
}
