//! One operation being put together: what it read, what it will write.
//!
//! Everything that must agree with an inode record is derived here, once, from how the record was
//! and how it will be: the orphan and staged sets, the counters, the reference to a staging file.
//! Likewise everything that must agree with a manifest: page counts, references to segments,
//! condemnations. Operations only say what changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use fjall::Slice;
use librorum_format::{DecodeError, Ino, PageId, SegmentId, TxnId};

use super::engine::Change;
use super::{Core, NamedTarget, lock};
use crate::record::key::Referrer;
use crate::record::{Condemnation, Record, Table, Target, key};
use crate::{FileKind, MetaError, Result};

/// A page and the segments that it names.
#[derive(Clone, Debug)]
pub(super) struct PageUse {
    pub page: PageId,
    pub segments: BTreeSet<SegmentId>,
}

/// The operation. The caller holds the stripes of every inode that it loads.
#[derive(Debug)]
pub(super) struct Edit<'a> {
    core: &'a Core,
    change: Change,
    records: Vec<Loaded>,
    dentries: Vec<Moved>,
    /// Pages that gain a manifest, with the bytes of those that may be new.
    pub(super) pages_added: Vec<(PageUse, Slice)>,
    /// Pages that lose one.
    pub(super) pages_dropped: Vec<PageUse>,
    /// Segments that must be named already, or be condemned and unclaimed.
    pub(super) segments_needed: BTreeSet<SegmentId>,
}

/// A dentry as it will be.
#[derive(Debug)]
struct Moved {
    parent: Ino,
    cookie: u64,
    entry: Option<NamedTarget>,
}

#[derive(Debug)]
struct Loaded {
    ino: Ino,
    before: Option<Record>,
    after: Option<Record>,
}

/// Names a damaged record in an error.
pub(super) fn corrupt(table: &str, id: impl std::fmt::Display, source: DecodeError) -> MetaError {
    MetaError::Corrupt { key: format!("{table}/{id}"), source }
}

impl<'a> Edit<'a> {
    pub(super) fn new(core: &'a Core) -> Self {
        Self {
            core,
            change: Change::default(),
            records: Vec::with_capacity(4),
            dentries: Vec::new(),
            pages_added: Vec::new(),
            pages_dropped: Vec::new(),
            segments_needed: BTreeSet::new(),
        }
    }

    /// The inode, as this operation has changed it so far.
    pub(super) fn record(&mut self, ino: Ino) -> Result<&mut Record> {
        let index = match self.records.iter().position(|loaded| loaded.ino == ino) {
            Some(index) => index,
            None => {
                let record = self.core.record_locked(ino)?;
                self.records.push(Loaded { ino, before: record.clone(), after: record });
                self.records.len() - 1
            }
        };
        self.records[index].after.as_mut().ok_or(MetaError::NoInode { ino })
    }

    /// The inode if it is a directory.
    pub(super) fn directory(&mut self, ino: Ino) -> Result<&mut Record> {
        let record = self.record(ino)?;
        if record.inode.kind != FileKind::Directory {
            return Err(MetaError::NotDirectory { ino });
        }
        Ok(record)
    }

    /// The inode if it is a directory that may take entries.
    pub(super) fn live_directory(&mut self, ino: Ino) -> Result<&mut Record> {
        let record = self.directory(ino)?;
        if record.inode.nlink == 0 {
            return Err(MetaError::NoInode { ino });
        }
        Ok(record)
    }

    /// Adds an inode.
    pub(super) fn add_record(&mut self, record: Record) {
        self.records.push(Loaded { ino: record.inode.ino, before: None, after: Some(record) });
    }

    /// Removes an inode that was loaded.
    pub(super) fn remove_record(&mut self, ino: Ino) {
        for loaded in &mut self.records {
            if loaded.ino == ino {
                loaded.after = None;
            }
        }
    }

    pub(super) fn set(&mut self, table: Table, key: impl Into<Slice>, value: Option<Slice>) {
        self.change.layer.set(table, key.into(), value);
    }

    /// Makes a dentry lead somewhere, or nowhere. Entry counts are the caller's.
    pub(super) fn set_dentry(&mut self, parent: Ino, name: &[u8], target: Option<Target>) {
        let cookie = self.core.cookie(name);
        let value = target.map(|target| Slice::from(target.encode()));
        self.set(Table::Dentries, key::dentry(parent, cookie, name), value);
        let entry = target.map(|target| NamedTarget { name: Arc::from(name), target });
        self.dentries.push(Moved { parent, cookie, entry });
    }

    /// Makes all of it happen.
    pub(super) fn finish(mut self) -> Result<TxnId> {
        let mut references =
            References { core: self.core, change: &mut self.change, orphaned: BTreeSet::new() };
        let moves_staging = self
            .records
            .iter()
            .any(|loaded| staging(loaded.before.as_ref()) != staging(loaded.after.as_ref()));
        let moves_pages = !self.pages_added.is_empty() || !self.pages_dropped.is_empty();
        let guard = (moves_staging || moves_pages).then(|| lock(&self.core.content));
        for &segment in &self.segments_needed {
            if !self.core.segment_is_sealed(segment)? {
                references.resurrect(segment, Requirement::Known)?;
            }
        }
        // Additions first, so that what moves from one name to another is never without one.
        for (usage, bytes) in std::mem::take(&mut self.pages_added) {
            references.add_page(&usage, bytes)?;
        }
        for loaded in &self.records {
            let (before, after) = (staging(loaded.before.as_ref()), staging(loaded.after.as_ref()));
            if before == after {
                continue;
            }
            if let Some(segment) = after {
                references.resurrect(segment, Requirement::Unclaimed)?;
                references.name(segment, Referrer::Inode(loaded.ino));
            }
            if let Some(segment) = before {
                references.unname(segment, Referrer::Inode(loaded.ino));
            }
        }
        for usage in std::mem::take(&mut self.pages_dropped) {
            references.drop_page(&usage)?;
        }
        references.condemn_orphaned()?;
        for loaded in &self.records {
            derive(&mut self.change, loaded);
        }

        let txn = self.core.engine.append(self.change)?;
        drop(guard);
        for loaded in self.records {
            match loaded.after {
                Some(record) if loaded.before.as_ref() != Some(&record) => {
                    self.core.records.insert(loaded.ino, record);
                }
                Some(_) => {}
                None => self.core.records.remove(&loaded.ino),
            }
        }
        for Moved { parent, cookie, entry } in self.dentries {
            match entry {
                Some(entry) => self.core.targets.insert((parent, cookie), entry),
                None => self.core.targets.remove(&(parent, cookie)),
            }
        }
        Ok(txn)
    }
}

fn staging(record: Option<&Record>) -> Option<SegmentId> {
    record.and_then(|record| record.inode.content.staging())
}

/// Writes an inode record and all that follows from it.
fn derive(change: &mut Change, loaded: &Loaded) {
    let (before, after) = (loaded.before.as_ref(), loaded.after.as_ref());
    if before == after {
        return;
    }
    let ino = loaded.ino;
    let value = after.map(|record| Slice::from(record.encode()));
    change.layer.set(Table::Inodes, Slice::from(key::inode(ino)), value);

    let is_orphan = |record: Option<&Record>| record.is_some_and(|r| r.inode.nlink == 0);
    let is_staged = |record: Option<&Record>| staging(record).is_some();
    let mut member = |key: [u8; 9], was: bool, is: bool| {
        if was != is {
            change.layer.set(Table::Small, Slice::from(key), is.then(Slice::empty));
        }
        i64::from(is) - i64::from(was)
    };
    let orphans = member(key::orphan(ino), is_orphan(before), is_orphan(after));
    let staged = member(key::staged(ino), is_staged(before), is_staged(after));

    let directory = |record: Option<&Record>| {
        i64::from(record.is_some_and(|r| r.inode.kind == FileKind::Directory))
    };
    let bytes = |record: Option<&Record>| {
        i128::from(
            record.filter(|r| r.inode.kind == FileKind::Regular).map_or(0, |r| r.inode.size_bytes),
        )
    };
    change.stats.inode_count += i64::from(after.is_some()) - i64::from(before.is_some());
    change.stats.directory_count += directory(after) - directory(before);
    change.stats.logical_bytes += bytes(after) - bytes(before);
    change.stats.staged_count += staged;
    change.stats.orphan_count += orphans;
}

/// What must hold of a segment before something new names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Requirement {
    /// Nothing may have claimed it.
    Unclaimed,
    /// It must be condemned and unclaimed: nothing names it, so otherwise it is gone.
    Known,
}

/// Changes of references, under the content lock.
struct References<'a> {
    core: &'a Core,
    change: &'a mut Change,
    /// Segments that lost a name.
    orphaned: BTreeSet<SegmentId>,
}

impl References<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>> {
        match self.change.layer.get(table, key) {
            Some(value) => Ok(value.clone()),
            None => self.core.engine.get(table, key),
        }
    }

    fn name(&mut self, segment: SegmentId, by: Referrer) {
        self.change.layer.set(Table::References, key::reference(segment, by), Some(Slice::empty()));
    }

    fn unname(&mut self, segment: SegmentId, by: Referrer) {
        self.change.layer.set(Table::References, key::reference(segment, by), None);
        self.orphaned.insert(segment);
    }

    /// Takes a segment off the condemned ones before it is named again.
    fn resurrect(&mut self, segment: SegmentId, requirement: Requirement) -> Result<()> {
        let condemned = key::condemned(segment);
        match self.get(Table::Small, &condemned)? {
            Some(bytes) => {
                let condemnation = Condemnation::decode(&bytes)
                    .map_err(|source| corrupt("condemned", segment, source))?;
                if condemnation.claimed {
                    return Err(MetaError::SegmentGone { segment });
                }
                self.change.layer.set(Table::Small, Slice::from(condemned), None);
                Ok(())
            }
            None if requirement == Requirement::Known => Err(MetaError::SegmentGone { segment }),
            None => Ok(()),
        }
    }

    fn add_page(&mut self, usage: &PageUse, bytes: Slice) -> Result<()> {
        let count_key = key::page_count(usage.page);
        let count = match self.get(Table::References, &count_key)? {
            Some(value) => decode_count(usage.page, &value)?,
            None => 0,
        };
        if count == 0 {
            self.change.layer.set(Table::Pages, Slice::from(usage.page.0), Some(bytes));
            for &segment in &usage.segments {
                // Fresh or needed: either way it may have been condemned in the meantime.
                self.resurrect(segment, Requirement::Unclaimed)?;
                self.name(segment, Referrer::Page(usage.page));
            }
        }
        let value = Slice::from(encode_count(count + 1));
        self.change.layer.set(Table::References, Slice::from(count_key), Some(value));
        Ok(())
    }

    fn drop_page(&mut self, usage: &PageUse) -> Result<()> {
        let count_key = key::page_count(usage.page);
        let value = self
            .get(Table::References, &count_key)?
            .ok_or_else(|| MetaError::Missing { key: format!("page count {}", usage.page) })?;
        let count = decode_count(usage.page, &value)?;
        if count > 1 {
            let value = Slice::from(encode_count(count - 1));
            self.change.layer.set(Table::References, Slice::from(count_key), Some(value));
            return Ok(());
        }
        self.change.layer.set(Table::References, Slice::from(count_key), None);
        self.change.layer.set(Table::Pages, Slice::from(usage.page.0), None);
        for &segment in &usage.segments {
            self.unname(segment, Referrer::Page(usage.page));
        }
        Ok(())
    }

    /// Condemns what lost its last name in this operation.
    fn condemn_orphaned(&mut self) -> Result<()> {
        for segment in std::mem::take(&mut self.orphaned) {
            if !self.is_named(segment)? {
                self.change.condemned.push(segment);
            }
        }
        Ok(())
    }

    fn is_named(&self, segment: SegmentId) -> Result<bool> {
        use std::ops::Bound::{Excluded, Included};
        let (start, end) = (key::reference_start(segment), key::reference_end(segment));
        let mut mine = self.change.layer.range(Table::References, Included(&start), Excluded(&end));
        if mine.any(|(_, value)| value.is_some()) {
            return Ok(true);
        }
        let mut named = false;
        self.core.engine.scan(Table::References, Included(&start), &end, &mut |key, _| {
            named = self.change.layer.get(Table::References, key).is_none();
            Ok(!named)
        })?;
        Ok(named)
    }
}

pub(super) fn encode_count(count: u64) -> [u8; 8] {
    count.to_le_bytes()
}

pub(super) fn decode_count(page: PageId, bytes: &[u8]) -> Result<u64> {
    let mut reader = librorum_format::Reader::new("page count", bytes);
    let count =
        reader.u64().and_then(|count| if count == 0 { Err(reader.invalid(0)) } else { Ok(count) });
    count.map_err(|source| corrupt("page count", page, source))
}
