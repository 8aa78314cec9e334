//! What happened to one inode, and what of it may be left: its bytes, its length, its attributes.
//!
//! Always holds: `base` and the other durable fields are what a sync made sure of; the edits behind
//! them are in the order of the recording, and only a prefix of each page's edits, of the growth
//! and of the attribute changes is ever taken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use librorum_format::Timestamp;

use crate::dice::Dice;
use crate::image::{Attributes, FileImage};
use crate::log::NewNode;
use crate::page::{PAGE_LEN, SECTOR_LEN, page_count, page_offset, parts, tail, to_len};
use crate::replay::Model;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) new: NewNode,
    /// The directory and the record that gave it its first name.
    pub(crate) born: Option<(u64, usize)>,
    /// Its own journal is durable up to here ([`Model::Posix`]).
    pub(crate) durable: usize,
    /// Records that a sync of it must commit; those that matter to data only are true.
    pub(crate) journaled: Vec<(usize, bool)>,
    attributes: Attributes,
    pub(crate) attribute_changes: VecDeque<(usize, AttributeChange)>,
    /// Durable, then what happened to it since.
    size_bytes: u64,
    size_changes: VecDeque<SizeChange>,
    pages: BTreeMap<u64, Page>,
    /// Pages with edits that are not durable.
    dirty: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
pub(crate) enum AttributeChange {
    Modified(Timestamp),
    Set { mode: Option<u16>, uid: Option<u32>, gid: Option<u32>, mtime: Option<Timestamp> },
    Xattr { name: Vec<u8>, value: Option<Vec<u8>> },
}

#[derive(Debug)]
struct SizeChange {
    position: usize,
    size_bytes: u64,
    /// A truncation or reservation survives with the journal; growth by a write when its pages do.
    journaled: bool,
}

/// One page of a file: its durable bytes, then the edits that nothing has made durable yet.
#[derive(Debug, Default)]
struct Page {
    /// `None` is a hole or zeros.
    base: Option<Arc<[u8]>>,
    base_allocated: bool,
    edits: VecDeque<Edit>,
    /// A sync failed here: the kernel took the edits before it for clean, so no later sync writes
    /// them, unless a later edit makes the page dirty again.
    failed: usize,
}

#[derive(Debug)]
struct Edit {
    position: usize,
    what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Write { start: usize, end: usize, data: Arc<[u8]>, data_start: usize },
    Zero { start: usize, end: usize },
    Free,
    Reserve,
}

impl What {
    /// Survives with the journal, not with the page.
    fn is_journaled(&self) -> bool {
        match self {
            Self::Write { .. } => false,
            Self::Zero { .. } | Self::Free | Self::Reserve => true,
        }
    }
}

impl Node {
    pub(crate) fn new(new: NewNode, born: Option<(u64, usize)>, time: Timestamp) -> Self {
        let attributes = Attributes {
            mode: new.mode,
            uid: new.uid,
            gid: new.gid,
            mtime: time,
            xattrs: BTreeMap::new(),
        };
        Self {
            new,
            born,
            durable: 0,
            journaled: Vec::new(),
            attributes,
            attribute_changes: VecDeque::new(),
            size_bytes: 0,
            size_changes: VecDeque::new(),
            pages: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    fn newest_size(&self) -> u64 {
        self.size_changes.back().map_or(self.size_bytes, |change| change.size_bytes)
    }

    pub(crate) fn edit(&mut self, position: usize, page: u64, what: What) {
        self.pages.entry(page).or_default().edits.push_back(Edit { position, what });
        self.dirty.insert(page);
    }

    pub(crate) fn modified(&mut self, position: usize, time: Timestamp) {
        self.attribute_changes.push_back((position, AttributeChange::Modified(time)));
    }

    pub(crate) fn write(
        &mut self,
        position: usize,
        offset: u64,
        data: &Arc<[u8]>,
        time: Timestamp,
    ) {
        let len = data.len() as u64;
        let mut places = false;
        for part in parts(offset, len) {
            places |= !self.pages.get(&part.page).is_some_and(Page::is_allocated);
            let data = Arc::clone(data);
            let (start, end, data_start) = (part.start, part.end, part.skipped);
            self.edit(position, part.page, What::Write { start, end, data, data_start });
        }
        if offset + len > self.newest_size() {
            let size_bytes = offset + len;
            self.size_changes.push_back(SizeChange { position, size_bytes, journaled: false });
            places = true;
        }
        // An overwrite in place changes no metadata but a time that syncs need not wait for.
        if places {
            self.journaled.push((position, true));
        }
        self.modified(position, time);
    }

    pub(crate) fn truncate(&mut self, position: usize, size_bytes: u64) {
        let beyond: Vec<u64> =
            self.pages.range(page_count(size_bytes)..).map(|(page, _)| *page).collect();
        for page in beyond {
            self.edit(position, page, What::Free);
        }
        if let Some((page, start)) = tail(size_bytes)
            && self.pages.contains_key(&page)
        {
            self.edit(position, page, What::Zero { start, end: PAGE_LEN });
        }
        self.size_changes.push_back(SizeChange { position, size_bytes, journaled: true });
        self.journaled.push((position, true));
    }

    pub(crate) fn zero(&mut self, position: usize, offset: u64, len: u64, punch: bool) {
        let last = page_count(offset.saturating_add(len));
        let first = offset / PAGE_LEN as u64;
        let present: Vec<u64> = self.pages.range(first..last).map(|(page, _)| *page).collect();
        for page in present {
            let start = to_len(offset.max(page_offset(page)) - page_offset(page));
            let end = to_len((offset + len).min(page_offset(page + 1)) - page_offset(page));
            let whole = end - start == PAGE_LEN;
            self.edit(
                position,
                page,
                if whole && punch { What::Free } else { What::Zero { start, end } },
            );
        }
        self.journaled.push((position, true));
    }

    pub(crate) fn grow(&mut self, position: usize, grow_to: Option<u64>) {
        if let Some(size_bytes) = grow_to {
            self.size_changes.push_back(SizeChange { position, size_bytes, journaled: true });
        }
        self.journaled.push((position, true));
    }

    /// A sync that began at `start` has ended.
    pub(crate) fn settle(&mut self, start: usize, data_only: bool) {
        while let Some(change) = self.size_changes.pop_front_if(|change| change.position < start) {
            self.size_bytes = change.size_bytes;
        }
        let pages = &mut self.pages;
        self.dirty.retain(|page| {
            let page = pages.get_mut(page).expect("a dirty page exists");
            page.settle(start);
            !page.edits.is_empty()
        });
        while !data_only
            && let Some((_, change)) =
                self.attribute_changes.pop_front_if(|(position, _)| *position < start)
        {
            change.apply_to(&mut self.attributes);
        }
    }

    pub(crate) fn fail(&mut self, start: usize) {
        for page in &self.dirty {
            self.pages.get_mut(page).expect("a dirty page exists").failed = start;
        }
    }

    pub(crate) fn surviving_attributes(&self, cut: usize) -> Attributes {
        let mut attributes = self.attributes.clone();
        for (_, change) in self.attribute_changes.iter().take_while(|(at, _)| *at < cut) {
            change.apply_to(&mut attributes);
        }
        attributes
    }

    pub(crate) fn surviving_content(&self, cut: usize, model: Model, dice: &mut Dice) -> FileImage {
        let mood = dice.mood();
        let size_bytes = self.surviving_size(cut, dice);
        let mut pages = Vec::new();
        for (page, state) in self.pages.range(..page_count(size_bytes)) {
            let bytes = if state.edits.is_empty() {
                state.base.clone()
            } else {
                state.surviving(cut, model, mood, dice)
            };
            pages.extend(bytes.map(|bytes| (*page, bytes)));
        }
        FileImage { size_bytes, pages }
    }

    fn surviving_size(&self, cut: usize, dice: &mut Dice) -> u64 {
        let high = self.size_changes.partition_point(|change| change.position < cut);
        let certain = self.size_changes.iter().take(high).rposition(|change| change.journaled);
        let low = certain.map_or(0, |index| index + 1);
        match dice.cut(low, high) {
            0 => self.size_bytes,
            count => self.size_changes[count - 1].size_bytes,
        }
    }
}

impl AttributeChange {
    fn apply_to(&self, attributes: &mut Attributes) {
        match self {
            Self::Modified(time) => attributes.mtime = *time,
            Self::Set { mode, uid, gid, mtime } => {
                attributes.mode = mode.unwrap_or(attributes.mode);
                attributes.uid = uid.unwrap_or(attributes.uid);
                attributes.gid = gid.unwrap_or(attributes.gid);
                attributes.mtime = mtime.unwrap_or(attributes.mtime);
            }
            Self::Xattr { name, value: Some(value) } => {
                attributes.xattrs.insert(name.clone(), value.clone());
            }
            Self::Xattr { name, value: None } => {
                attributes.xattrs.remove(name);
            }
        }
    }
}

impl Page {
    fn is_allocated(&self) -> bool {
        self.edits.back().map_or(self.base_allocated, |edit| edit.allocates(self.base_allocated))
    }

    fn settle(&mut self, start: usize) {
        let count = self.edits.partition_point(|edit| edit.position < start);
        let Some(last) = count.checked_sub(1).map(|last| &self.edits[last]) else { return };
        if last.position < self.failed && !last.what.is_journaled() {
            return;
        }
        self.base = self.bytes_after(count);
        for _ in 0..count {
            let edit = self.edits.pop_front().expect("counted above");
            self.base_allocated = edit.allocates(self.base_allocated);
        }
    }

    fn surviving(&self, cut: usize, model: Model, mood: u64, dice: &mut Dice) -> Option<Arc<[u8]>> {
        let certain =
            self.edits.iter().rposition(|edit| edit.what.is_journaled() && edit.position < cut);
        let low = certain.map_or(0, |index| index + 1);
        let mut allocated = self.allocated_after(low);
        let possible = self.edits.iter().skip(low).take_while(|edit| {
            let journaled = edit.position < cut;
            let may = if edit.what.is_journaled() { journaled } else { allocated || journaled };
            allocated = edit.allocates(allocated);
            may
        });
        let high = low + possible.count();
        let kept = dice.page(mood, low, high);
        let bytes = self.bytes_after(kept);
        // In ordered mode a new block is written as a whole before anything points at it.
        let may_tear = kept > low && (model == Model::Posix || self.allocated_after(kept - 1));
        if !may_tear || !dice.tears() {
            return bytes;
        }
        let older = self.bytes_after(kept - 1);
        let mut mixed = bytes?.to_vec();
        for (index, sector) in mixed.chunks_mut(SECTOR_LEN).enumerate() {
            if dice.rng.percent(50) {
                match &older {
                    Some(older) => {
                        sector.copy_from_slice(&older[index * SECTOR_LEN..][..SECTOR_LEN]);
                    }
                    None => sector.fill(0),
                }
            }
        }
        Some(mixed.into())
    }

    fn allocated_after(&self, count: usize) -> bool {
        let edits = self.edits.iter().take(count);
        edits.fold(self.base_allocated, |allocated, edit| edit.allocates(allocated))
    }

    fn bytes_after(&self, count: usize) -> Option<Arc<[u8]>> {
        let mut bytes: Option<Vec<u8>> = None;
        let mut hole = self.base.is_none();
        let base = || match &self.base {
            Some(base) => base.to_vec(),
            None => vec![0; PAGE_LEN],
        };
        for edit in self.edits.iter().take(count) {
            match &edit.what {
                What::Write { start, end, data, data_start } => {
                    let bytes = bytes.get_or_insert_with(base);
                    bytes[*start..*end].copy_from_slice(&data[*data_start..][..end - start]);
                    hole = false;
                }
                What::Zero { start: 0, end: PAGE_LEN } | What::Free => {
                    bytes = Some(vec![0; PAGE_LEN]);
                    hole = true;
                }
                What::Zero { start, end } => bytes.get_or_insert_with(base)[*start..*end].fill(0),
                What::Reserve => {}
            }
        }
        if hole {
            return None;
        }
        bytes.map(Arc::from).or_else(|| self.base.clone())
    }
}

impl Edit {
    fn allocates(&self, before: bool) -> bool {
        match self.what {
            What::Write { .. } | What::Reserve => true,
            What::Free => false,
            What::Zero { .. } => before,
        }
    }
}
