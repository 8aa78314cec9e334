//! Attributes: who knows the truth about a file's length and times.
//!
//! While a file has a writer, the kernel may write its staging file without telling us, so that
//! file's own stat counts. When the last writer closes, its stat is recorded in the metadata, which
//! counts from then on. One rule tells a staging file's modification time from the time at which
//! the pool made it: a time before the inode's birth was never a write.

use librorum_format::{Ino, Timestamp};
use librorum_meta::{Inode, Meta, SetAttr};

use crate::error::{Result, disk};
use crate::fs::Fs;
use crate::node::{Data, Node, NodeState, Service, lock};

/// An inode's attributes as of now.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The inode, its length and times brought up to date.
    pub inode: Inode,
    /// Whether the kernel may be changing the file right now.
    pub being_written: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum TimeChange {
    /// The time of the call.
    Now,
    /// This one.
    At(Timestamp),
}

impl TimeChange {
    fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Now => now,
            Self::At(time) => time,
        }
    }
}

/// What a staging file says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StagingStat {
    pub(crate) size_bytes: u64,
    pub(crate) allocated_bytes: u64,
    mtime: Timestamp,
}

impl StagingStat {
    pub(crate) fn new(stat: &rustix::fs::Stat) -> Self {
        Self {
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            allocated_bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
            mtime: Timestamp::new(stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        }
    }

    /// The staging file's modification time, if it is one of the inode's that the metadata does
    /// not have.
    pub(crate) fn mtime_if_written(&self, inode: &Inode) -> Option<Timestamp> {
        (self.mtime >= inode.btime && self.mtime != inode.mtime).then_some(self.mtime)
    }
}

impl Fs {
    /// The attributes of an inode.
    ///
    /// # Errors
    ///
    /// `NoInode`, or the disk's.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes> {
        let inode = self.meta.inode(ino)?;
        self.refresh(inode)
    }

    /// Whether the kernel may have bytes of a file in its page cache that it has not written yet.
    pub(crate) fn is_written_through_cache(&self, ino: Ino) -> bool {
        let Some(node) = self.table.existing(ino) else { return false };
        let state = lock(&node.state);
        state.service == Service::Cached && state.writers > 0
    }

    /// Brings an inode from the metadata up to date.
    pub(crate) fn refresh(&self, inode: Inode) -> Result<Attributes> {
        if inode.content.staging().is_none() {
            return Ok(Attributes { inode, being_written: false });
        }
        let Some(node) = self.table.existing(inode.ino) else {
            return Ok(Attributes { inode, being_written: false });
        };
        let mut state = lock(&node.state);
        if state.unrecorded {
            self.load(&node, &mut state)?;
        } else if state.writers == 0 {
            // Recorded when the last writer closed; read again, it may have been just now.
            let inode = self.meta.inode(inode.ino)?;
            return Ok(Attributes { inode, being_written: false });
        }
        let mut inode = inode;
        if let Some(found) = staging_stat(&state, inode.ino)? {
            inode.size_bytes = found.size_bytes;
            inode.allocated_bytes = self.overlaid_allocation(&state, &inode, found);
            if let Some(mtime) = found.mtime_if_written(&inode) {
                inode.ctime = inode.ctime.max(mtime);
                inode.mtime = mtime;
            }
        }
        Ok(Attributes { inode, being_written: true })
    }

    /// An overlay's bytes are its own and what the base still shows; the latter is not worth a
    /// walk over the extents for each stat.
    fn overlaid_allocation(&self, state: &NodeState, inode: &Inode, found: StagingStat) -> u64 {
        match &state.data {
            Some(Data::Overlay(_)) => {
                found.allocated_bytes.max(inode.allocated_bytes.min(found.size_bytes))
            }
            _ => found.allocated_bytes,
        }
    }

    /// Records what the staging file says about itself, after its last writer has closed it.
    /// Answers its length, or nothing if the content is not staged.
    pub(crate) fn record_staged(&self, node: &Node, state: &mut NodeState) -> Result<Option<u64>> {
        let Some(found) = staging_stat(state, node.ino)? else { return Ok(None) };
        let inode = self.meta.inode(node.ino)?;
        let allocated_bytes = self.overlaid_allocation(state, &inode, found);
        let written = found.mtime_if_written(&inode);
        if inode.size_bytes != found.size_bytes
            || inode.allocated_bytes != allocated_bytes
            || written.is_some()
        {
            state.unrecorded = true;
            self.meta.set_attr(
                node.ino,
                &SetAttr {
                    size_bytes: Some(found.size_bytes),
                    allocated_bytes: Some(allocated_bytes),
                    mtime: written,
                    ctime: written.map(|mtime| inode.ctime.max(mtime)),
                    ..SetAttr::default()
                },
            )?;
        }
        state.unrecorded = false;
        Ok(Some(found.size_bytes))
    }

    /// Changes mode, owner or times. Lengths are changed by [`Fs::truncate`].
    ///
    /// # Errors
    ///
    /// `NoInode`, `ReadOnly`, or the disk's.
    pub fn set_attributes(
        &self,
        ino: Ino,
        set: &SetAttr,
        atime: Option<TimeChange>,
        mtime: Option<TimeChange>,
    ) -> Result<Attributes> {
        self.writable()?;
        let now = librorum_sys::clock::now();
        let mut set = *set;
        set.atime = atime.map(|time| time.resolve(now));
        set.mtime = mtime.map(|time| time.resolve(now));
        set.ctime = Some(now);
        let Some(new_mtime) = set.mtime else {
            let (inode, _) = self.meta.set_attr(ino, &set)?;
            return self.refresh(inode);
        };
        // The staging file's time counts while it is written and after a crash, so it must not
        // bring the old one back.
        let inode = self.meta.inode(ino)?;
        if inode.content.staging().is_some() {
            let node = self.table.node(ino);
            let mut state = lock(&node.state);
            self.load(&node, &mut state)?;
            if let Some(backing) = state.data.as_ref().and_then(Data::staging) {
                let times = rustix::fs::Timestamps {
                    last_access: rustix::fs::Timespec {
                        tv_sec: 0,
                        tv_nsec: rustix::fs::UTIME_OMIT,
                    },
                    last_modification: rustix::fs::Timespec {
                        tv_sec: new_mtime.secs,
                        tv_nsec: i64::from(new_mtime.nanos),
                    },
                };
                rustix::fs::futimens(backing.file(), &times)
                    .map_err(disk("cannot set the times", ino))?;
            }
            let (inode, _) = self.meta.set_attr(ino, &set)?;
            drop(state);
            return self.refresh(inode);
        }
        let (inode, _) = self.meta.set_attr(ino, &set)?;
        self.refresh(inode)
    }
}

fn staging_stat(state: &NodeState, ino: Ino) -> Result<Option<StagingStat>> {
    let Some(backing) = state.data.as_ref().and_then(Data::staging) else { return Ok(None) };
    let stat =
        rustix::fs::fstat(backing.file()).map_err(disk("cannot stat the staging file", ino))?;
    Ok(Some(StagingStat::new(&stat)))
}

impl Data {
    /// The staging file, if there is one.
    pub(crate) fn staging(&self) -> Option<&std::sync::Arc<crate::node::Backing>> {
        match self {
            Self::Staged(backing) => Some(backing),
            Self::Overlay(overlay) => Some(&overlay.backing),
            Self::Empty | Self::Inline(_) | Self::Whole(_) | Self::Sealed(_) => None,
        }
    }
}
