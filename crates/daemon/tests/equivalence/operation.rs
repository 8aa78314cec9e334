//! Operations, and random ones.

/// What may be done to a volume, in whatever way.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Stat(String),
    List(String),
    MakeDirectory(String, u32),
    MakeParents(String),
    Put {
        path: String,
        content: Content,
        mode: u32,
        replace: bool,
        mtime: Option<i64>,
    },
    /// In pieces that are written in any order.
    Upload {
        path: String,
        content: Content,
        replace: bool,
        order: u64,
    },
    Read {
        path: String,
        offset: u64,
        len: usize,
    },
    Symlink(String, String),
    Link(String, String),
    Rename(String, String, Move),
    Copy {
        from: String,
        to: String,
        replace: bool,
    },
    Unlink(String),
    RemoveDirectory(String),
    RemoveAll(String),
    Chmod(String, u32),
    Chown(String, u32, u32),
    Touch(String, i64),
    /// Of all volumes at once: afterwards their files are in other places.
    Seal,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Move {
    Replace,
    NoReplace,
    Exchange,
}

/// Bytes by their seed: equal seeds make equal beginnings, which deduplicate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub(crate) len: usize,
    pub(crate) seed: u64,
}

impl Content {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        blake3::Hasher::new().update(&self.seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }
}

/// Times of modification that are set lie before this, the others after it.
pub(crate) const SET_TIMES_END: i64 = 1_000_000_000;

/// A small generator of numbers, printed by its seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// By `LIBRORUM_SEED`, or by chance.
    pub(crate) fn new() -> Self {
        let seed = u64::from_le_bytes(librorum_sys::entropy::random::<8>()) | 1;
        let seed = std::env::var("LIBRORUM_SEED").map_or(seed, |seed| seed.parse().unwrap());
        eprintln!("LIBRORUM_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub(crate) fn is(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub(crate) fn path(&mut self) -> String {
        const NAMES: [&str; 4] = ["a", "b", "c", "d"];
        let depth = 1 + self.below(3);
        (0..depth).map(|_| *self.pick(&NAMES)).collect::<Vec<_>>().join("/")
    }

    /// Of operations with one path, for which no order of what is looked at first matters.
    fn any_path(&mut self) -> String {
        if self.is(30) { "n".repeat(300) } else { self.path() }
    }

    fn small(&mut self) -> Content {
        const LENS: [usize; 8] = [0, 1, 100, 4095, 4096, 5000, 65_535, 65_536];
        Content { len: *self.pick(&LENS), seed: self.below(4) as u64 }
    }

    fn large(&mut self) -> Content {
        const LENS: [usize; 11] = [
            65_537,
            (128 << 10) - 1,
            256 << 10,
            (256 << 10) + 1,
            512 << 10,
            1 << 20,
            (1 << 20) + 17,
            (2 << 20) - 1,
            2 << 20,
            3 << 20,
            (3 << 20) + 4097,
        ];
        Content { len: *self.pick(&LENS), seed: self.below(4) as u64 }
    }

    fn mode(&mut self) -> u32 {
        *self.pick(&[0o755, 0o700, 0o644, 0o600, 0o1777, 0o2775, 0o4755])
    }

    fn mtime(&mut self) -> i64 {
        1_000_000 + i64::try_from(self.below(1_000_000)).unwrap()
    }

    pub(crate) fn operation(&mut self) -> Operation {
        match self.below(48) {
            0..=2 => Operation::Stat(self.any_path()),
            3 | 4 => Operation::List(if self.is(2) { String::new() } else { self.path() }),
            5..=8 => Operation::MakeDirectory(self.any_path(), self.mode()),
            9 => Operation::MakeParents(self.path()),
            10..=15 => Operation::Put {
                path: self.any_path(),
                content: self.small(),
                mode: self.mode(),
                replace: !self.is(4),
                mtime: self.is(3).then(|| self.mtime()),
            },
            16..=21 => Operation::Upload {
                path: self.any_path(),
                content: if self.is(6) { self.small() } else { self.large() },
                replace: !self.is(4),
                order: 1 + self.below(1 << 40) as u64,
            },
            22..=28 => {
                const OFFSETS: [u64; 9] =
                    [0, 1, 4095, 65_535, 65_536, 262_143, 1 << 20, 3 << 20, 1 << 40];
                const LENS: [usize; 6] = [0, 1, 4096, 65_537, 1 << 20, 4 << 20];
                let (offset, len) = (*self.pick(&OFFSETS), *self.pick(&LENS));
                Operation::Read { path: self.path(), offset, len }
            }
            29 => Operation::Symlink(format!("target-{}", self.below(9)), self.path()),
            30 | 31 => Operation::Link(self.path(), self.path()),
            32..=34 => {
                let how = *self.pick(&[Move::Replace, Move::NoReplace, Move::Exchange]);
                Operation::Rename(self.path(), self.path(), how)
            }
            35 | 36 => Operation::Copy { from: self.path(), to: self.path(), replace: !self.is(3) },
            37 | 38 => Operation::Unlink(self.any_path()),
            39 => Operation::RemoveDirectory(self.path()),
            40 => Operation::RemoveAll(self.path()),
            41 | 42 => Operation::Chmod(self.path(), self.mode()),
            43 => {
                let (uid, gid) = (self.below(3) as u32 + 4000, self.below(3) as u32 + 5000);
                Operation::Chown(self.path(), uid, gid)
            }
            44 | 45 => Operation::Touch(self.path(), self.mtime()),
            _ => Operation::Seal,
        }
    }
}

impl Operation {
    /// The paths that it names, and whether it is about what the last link leads to.
    pub(crate) fn paths(&self) -> (Vec<&str>, bool) {
        match self {
            Self::Chmod(path, _) | Self::List(path) | Self::Read { path, .. } => (vec![path], true),
            Self::Link(from, to) | Self::Rename(from, to, _) | Self::Copy { from, to, .. } => {
                (vec![from, to], false)
            }
            Self::Symlink(_, path)
            | Self::Stat(path)
            | Self::MakeDirectory(path, _)
            | Self::Put { path, .. }
            | Self::Upload { path, .. }
            | Self::Unlink(path)
            | Self::RemoveDirectory(path)
            | Self::RemoveAll(path)
            | Self::Chown(path, ..)
            | Self::Touch(path, _) => (vec![path], false),
            // Its way is its last name, too.
            Self::MakeParents(path) => (vec![path], true),
            Self::Seal => (Vec::new(), false),
        }
    }
}
