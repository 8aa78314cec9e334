//! The recording: every change that the kernel asked for, in one order.

use std::sync::Arc;

use librorum_format::Timestamp;
use librorum_fuse::transport::NodeKind;

/// One change of the disk, or a word of the test about it.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Create {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
        node: NewNode,
    },
    Link {
        ino: u64,
        parent: u64,
        name: Vec<u8>,
    },
    /// Of a directory too.
    Unlink {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
    },
    Rename {
        from: (u64, Vec<u8>),
        to: (u64, Vec<u8>),
        moved: u64,
        /// What `to` led to before; it goes to `from` in an exchange.
        replaced: Option<u64>,
        exchange: bool,
    },
    Write {
        ino: u64,
        offset: u64,
        data: Arc<[u8]>,
    },
    Truncate {
        ino: u64,
        size_bytes: u64,
    },
    /// fallocate(2) without data: reserves, and grows the file to `grow_to`.
    Allocate {
        ino: u64,
        offset: u64,
        len: u64,
        grow_to: Option<u64>,
    },
    /// fallocate(2) of holes and zeros.
    Zero {
        ino: u64,
        offset: u64,
        len: u64,
        /// Whole pages are given back.
        punch: bool,
        grow_to: Option<u64>,
    },
    Attributes {
        ino: u64,
        mode: Option<u16>,
        uid: Option<u32>,
        gid: Option<u32>,
        mtime: Option<Timestamp>,
    },
    Xattr {
        ino: u64,
        name: Vec<u8>,
        value: Option<Vec<u8>>,
    },
    SyncStart {
        ino: u64,
        data_only: bool,
    },
    SyncEnd {
        /// The position of its start.
        start: usize,
        ino: u64,
        data_only: bool,
        succeeded: bool,
    },
    Mark(String),
}

impl Change {
    /// The directory whose names it changes; of a rename, the one it takes a name from.
    pub(crate) fn directory(&self) -> Option<u64> {
        match self {
            Self::Create { parent, .. }
            | Self::Link { parent, .. }
            | Self::Unlink { parent, .. } => Some(*parent),
            Self::Rename { from, .. } => Some(from.0),
            Self::Write { .. }
            | Self::Truncate { .. }
            | Self::Allocate { .. }
            | Self::Zero { .. }
            | Self::Attributes { .. }
            | Self::Xattr { .. }
            | Self::SyncStart { .. }
            | Self::SyncEnd { .. }
            | Self::Mark(_) => None,
        }
    }
}

/// What an inode is born with.
#[derive(Clone, Debug)]
pub(crate) struct NewNode {
    pub(crate) kind: NodeKind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) target: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) change: Change,
    pub(crate) time: Timestamp,
}

/// Everything that happened on a disk up to some moment.
///
/// A *point* of it is a number of records: the power is cut when that many have happened.
#[derive(Clone, Debug)]
pub struct Recording {
    pub(crate) records: Arc<Vec<Arc<Record>>>,
}

impl Recording {
    /// How many changes, syncs and marks it has: its last point.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Two points for each sync: just before it is done, when most is at stake, and just after.
    #[must_use]
    pub fn sync_points(&self) -> Vec<usize> {
        let mut points = Vec::new();
        for (position, record) in self.records.iter().enumerate() {
            if matches!(record.change, Change::SyncEnd { .. }) {
                if points.last() != Some(&position) {
                    points.push(position);
                }
                points.push(position + 1);
            }
        }
        points
    }

    /// One point for each sync: just before it is done.
    #[must_use]
    pub fn sync_ends(&self) -> Vec<usize> {
        let is_end = |record: &Record| matches!(record.change, Change::SyncEnd { .. });
        let ends = self.records.iter().enumerate().filter(|(_, record)| is_end(record));
        ends.map(|(position, _)| position).collect()
    }

    /// The marks that were set before `point`, in order.
    pub fn marks_before(&self, point: usize) -> impl Iterator<Item = &str> {
        self.records[..point].iter().filter_map(|record| {
            if let Change::Mark(label) = &record.change { Some(label.as_str()) } else { None }
        })
    }

    /// Every record as a line of text, for reading what led to a failure.
    #[must_use]
    pub fn describe(&self, from: usize, to: usize) -> String {
        let mut text = String::new();
        for position in from..to.min(self.len()) {
            text.push_str(&format!("{position:6} {}\n", describe(&self.records[position].change)));
        }
        text
    }
}

fn describe(change: &Change) -> String {
    let show = |(parent, name): (&u64, &Vec<u8>)| format!("{parent}/{}", name.escape_ascii());
    match change {
        Change::Create { parent, name, ino, node } => {
            format!("create {} = {ino} ({:?})", show((parent, name)), node.kind)
        }
        Change::Link { ino, parent, name } => format!("link {} = {ino}", show((parent, name))),
        Change::Unlink { parent, name, ino } => format!("unlink {} ({ino})", show((parent, name))),
        Change::Rename { from, to, moved, replaced, exchange } => format!(
            "rename {} -> {} ({moved}, replaced {replaced:?}, exchange {exchange})",
            show((&from.0, &from.1)),
            show((&to.0, &to.1))
        ),
        Change::Write { ino, offset, data } => format!("write {ino} {offset}+{}", data.len()),
        Change::Truncate { ino, size_bytes } => format!("truncate {ino} to {size_bytes}"),
        Change::Allocate { ino, offset, len, .. } => format!("allocate {ino} {offset}+{len}"),
        Change::Zero { ino, offset, len, punch, .. } => {
            format!("{} {ino} {offset}+{len}", if *punch { "punch" } else { "zero" })
        }
        Change::Attributes { ino, .. } => format!("attributes {ino}"),
        Change::Xattr { ino, name, .. } => format!("xattr {ino} {}", name.escape_ascii()),
        Change::SyncStart { ino, data_only } => format!("sync {ino} starts, data only {data_only}"),
        Change::SyncEnd { start, ino, succeeded, .. } => {
            format!("sync {ino} of {start} ends, succeeded {succeeded}")
        }
        Change::Mark(label) => format!("mark {label}"),
    }
}
