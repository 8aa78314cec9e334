//! Operations on content: where a file's bytes are, and which segments that keeps.

use std::collections::BTreeSet;

use fjall::Slice;
use librorum_format::{
    Extent, Ino, PAGE_EXTENT_COUNT_MAX, PageId, SegmentId, TxnId, decode_page, encode_page,
};

use super::edit::{Edit, PageUse, corrupt};
use super::space::Growth;
use super::{Core, lock};
use crate::record::key::Referrer;
use crate::record::{Body, Condemnation, PageEntry, Table, key};
use crate::{Content, FileKind, Inode, MetaError, NewContent, Result, SetContent};

/// A manifest ready to be stored: its pages, and the list of them.
pub(super) struct NewManifest {
    entries: Vec<PageEntry>,
    pages: Vec<(PageUse, Slice)>,
    segments: BTreeSet<SegmentId>,
}

impl NewManifest {
    /// Makes it the manifest of `ino`. Segments in `fresh` are new with it.
    pub(super) fn store(self, edit: &mut Edit<'_>, ino: Ino, fresh: &[SegmentId]) {
        let body = Body::Manifest(self.entries).encode();
        edit.set(Table::Bodies, key::inode(ino), Some(body.into()));
        edit.pages_added = self.pages;
        edit.segments_needed = self.segments;
        for segment in fresh {
            edit.segments_needed.remove(segment);
        }
    }
}

fn segments_of(extents: &[Extent]) -> BTreeSet<SegmentId> {
    extents.iter().map(|extent| extent.location.segment).collect()
}

/// Splits extents into pages. They come from the caller, and [`encode_page`] panics on bad ones.
pub(super) fn paginate(ino: Ino, extents: &[Extent], size_bytes: u64) -> Result<NewManifest> {
    let mut end_bytes = 0;
    for extent in extents {
        if !extent.is_valid() || extent.file_offset_bytes < end_bytes {
            return Err(MetaError::BadContent {
                ino,
                what: "an extent is invalid or out of order",
            });
        }
        end_bytes = extent.file_end_bytes();
    }
    if end_bytes > size_bytes {
        return Err(MetaError::BadContent { ino, what: "an extent ends behind the file" });
    }
    let page_count = extents.len().div_ceil(PAGE_EXTENT_COUNT_MAX);
    let mut manifest = NewManifest {
        entries: Vec::with_capacity(page_count),
        pages: Vec::with_capacity(page_count),
        segments: BTreeSet::new(),
    };
    for run in extents.chunks(PAGE_EXTENT_COUNT_MAX) {
        let (page, bytes) = encode_page(run);
        let segments = segments_of(run);
        manifest.segments.extend(&segments);
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            manifest.entries.push(PageEntry {
                start_bytes: first.file_offset_bytes,
                end_bytes: last.file_end_bytes(),
                page,
            });
        }
        manifest.pages.push((PageUse { page, segments }, Slice::from(bytes)));
    }
    Ok(manifest)
}

impl Core {
    pub(super) fn set_content(&self, change: &SetContent<'_>) -> Result<(Inode, TxnId)> {
        let ino = change.ino;
        let growth = match change.content {
            NewContent::Empty => Growth::Frees,
            NewContent::Inline(_)
            | NewContent::Staged { .. }
            | NewContent::Overlay { .. }
            | NewContent::Sealed { .. } => Growth::Settles,
        };
        self.engine.admit(growth)?;
        // Hashing pages needs no lock.
        let manifest = match change.content {
            NewContent::Sealed { extents, .. } => Some(paginate(ino, extents, change.size_bytes)?),
            NewContent::Inline(bytes) if bytes.len() as u64 != change.size_bytes => {
                return Err(MetaError::BadContent { ino, what: "inline bytes of another length" });
            }
            NewContent::Empty
            | NewContent::Inline(_)
            | NewContent::Staged { .. }
            | NewContent::Overlay { .. } => None,
        };

        let _held = self.stripes.lock(&[ino]);
        let mut edit = Edit::new(self);
        let inode = &edit.record(ino)?.inode;
        let old = inode.content;
        if inode.kind != FileKind::Regular {
            return Err(MetaError::NotRegular { ino });
        }
        if inode.content_version != change.expected_version {
            return Err(MetaError::StaleContent {
                ino,
                expected: change.expected_version,
                found: inode.content_version,
            });
        }
        let keeps_extents = matches!(change.content, NewContent::Overlay { .. });
        if !keeps_extents && matches!(old, Content::Sealed | Content::Overlay { .. }) {
            edit.pages_dropped = self.page_uses(ino)?;
        }
        let had_body = old != Content::Empty && !matches!(old, Content::Staged { .. });
        let content = match change.content {
            NewContent::Empty => Content::Empty,
            NewContent::Inline(bytes) => {
                let body = Body::Inline(bytes.to_vec()).encode();
                edit.set(Table::Bodies, key::inode(ino), Some(body.into()));
                Content::Inline
            }
            NewContent::Staged { segment } => Content::Staged { segment },
            NewContent::Overlay { segment, base_len_bytes } => {
                match old {
                    Content::Sealed => {}
                    Content::Overlay { segment: present, base_len_bytes: len }
                        if present == segment && base_len_bytes <= len => {}
                    Content::Empty
                    | Content::Inline
                    | Content::Staged { .. }
                    | Content::Overlay { .. } => {
                        return Err(MetaError::BadContent { ino, what: "nothing to overlay" });
                    }
                }
                Content::Overlay { segment, base_len_bytes }
            }
            NewContent::Sealed { fresh, .. } => {
                if let Some(manifest) = manifest {
                    manifest.store(&mut edit, ino, fresh);
                }
                Content::Sealed
            }
        };
        if had_body && matches!(content, Content::Empty | Content::Staged { .. }) {
            edit.set(Table::Bodies, key::inode(ino), None);
        }
        let inode = &mut edit.record(ino)?.inode;
        inode.content = content;
        inode.content_version += 1;
        inode.size_bytes = change.size_bytes;
        inode.allocated_bytes = change.allocated_bytes;
        inode.mtime = change.mtime.unwrap_or(inode.mtime);
        inode.ctime = change.ctime.unwrap_or(inode.ctime);
        let inode = inode.clone();
        let txn = edit.finish()?;
        Ok((inode, txn))
    }

    /// What is stored beside the inode.
    fn body(&self, ino: Ino) -> Result<Option<Body>> {
        self.engine
            .get(Table::Bodies, &key::inode(ino))?
            .map(|bytes| Body::decode(&bytes).map_err(|source| corrupt("bodies", ino, source)))
            .transpose()
    }

    fn manifest(&self, ino: Ino) -> Result<Vec<PageEntry>> {
        match self.body(ino)? {
            Some(Body::Manifest(entries)) => Ok(entries),
            Some(Body::Inline(_) | Body::Symlink(_)) | None => {
                Err(MetaError::Missing { key: format!("manifest of {ino}") })
            }
        }
    }

    fn page(&self, page: PageId) -> Result<Vec<Extent>> {
        let bytes = self
            .engine
            .get(Table::Pages, &page.0)?
            .ok_or_else(|| MetaError::Missing { key: format!("pages/{page}") })?;
        decode_page(page, &bytes).map_err(|source| corrupt("pages", page, source))
    }

    /// Every page of a file, for a caller that holds its stripe. Costs one read per page.
    fn page_uses(&self, ino: Ino) -> Result<Vec<PageUse>> {
        self.manifest(ino)?
            .into_iter()
            .map(|entry| {
                let segments = segments_of(&self.page(entry.page)?);
                Ok(PageUse { page: entry.page, segments })
            })
            .collect()
    }

    /// Reads what belongs to an inode's content: without its stripe first, and with it if the
    /// content changed underneath, so that a reader never waits for another file's disk reads.
    fn read_content<T>(&self, ino: Ino, read: impl Fn(&Self, &Inode) -> Result<T>) -> Result<T> {
        let before = self.inode(ino)?;
        let result = read(self, &before);
        if result.is_ok() && self.inode(ino)?.content_version == before.content_version {
            return result;
        }
        let _held = self.stripes.lock(&[ino]);
        let record = self.record_locked(ino)?.ok_or(MetaError::NoInode { ino })?;
        read(self, &record.inode)
    }

    pub(super) fn extents(
        &self,
        ino: Ino,
        start_bytes: u64,
        end_bytes: u64,
    ) -> Result<Vec<Extent>> {
        self.read_content(ino, |core, inode| {
            if !matches!(inode.content, Content::Sealed | Content::Overlay { .. }) {
                return Ok(Vec::new());
            }
            let mut met = Vec::new();
            for entry in core.manifest(ino)? {
                if entry.end_bytes > start_bytes && entry.start_bytes < end_bytes {
                    met.extend(core.page(entry.page)?.into_iter().filter(|extent| {
                        extent.file_end_bytes() > start_bytes
                            && extent.file_offset_bytes < end_bytes
                    }));
                }
            }
            Ok(met)
        })
    }

    pub(super) fn inline_bytes(&self, ino: Ino) -> Result<Vec<u8>> {
        self.read_content(ino, |core, inode| {
            if inode.content != Content::Inline {
                return Err(MetaError::StaleContent {
                    ino,
                    expected: inode.content_version,
                    found: inode.content_version,
                });
            }
            match core.body(ino)? {
                Some(Body::Inline(bytes)) => Ok(bytes),
                Some(Body::Symlink(_) | Body::Manifest(_)) | None => {
                    Err(MetaError::Missing { key: format!("inline bytes of {ino}") })
                }
            }
        })
    }

    pub(super) fn symlink_target(&self, ino: Ino) -> Result<Vec<u8>> {
        self.read_content(ino, |core, inode| {
            if inode.kind != FileKind::Symlink {
                return Err(MetaError::NotSymlink { ino });
            }
            match core.body(ino)? {
                Some(Body::Symlink(target)) => Ok(target),
                Some(Body::Inline(_) | Body::Manifest(_)) | None => {
                    Err(MetaError::Missing { key: format!("target of {ino}") })
                }
            }
        })
    }

    pub(super) fn reap(&self, ino: Ino) -> Result<TxnId> {
        self.engine.admit(Growth::Frees)?;
        let _held = self.stripes.lock(&[ino]);
        let mut edit = Edit::new(self);
        let inode = match edit.record(ino) {
            Ok(record) => record.inode.clone(),
            Err(MetaError::NoInode { .. }) => return Ok(self.engine.newest_txn()),
            Err(error) => return Err(error),
        };
        if inode.nlink > 0 {
            return Err(MetaError::NotOrphan { ino });
        }
        if matches!(inode.content, Content::Sealed | Content::Overlay { .. }) {
            edit.pages_dropped = self.page_uses(ino)?;
        }
        let has_body = match inode.content {
            Content::Inline | Content::Sealed | Content::Overlay { .. } => true,
            Content::Empty | Content::Staged { .. } => inode.kind == FileKind::Symlink,
        };
        if has_body {
            edit.set(Table::Bodies, key::inode(ino), None);
        }
        if inode.has_xattrs {
            self.scan_xattrs(ino, &mut |key, _| {
                edit.set(Table::Xattrs, key.clone(), None);
                Ok(true)
            })?;
        }
        edit.remove_record(ino);
        edit.finish()
    }

    pub(super) fn segment_is_named(&self, segment: SegmentId) -> Result<bool> {
        let mut named = false;
        self.scan_references(segment, &mut |_| {
            named = true;
            Ok(false)
        })?;
        Ok(named)
    }

    /// Whether a page names `segment`. One that only an inode names, as its staging file, is not
    /// sealed: nobody else may come to share bytes that are about to change.
    pub(super) fn segment_is_sealed(&self, segment: SegmentId) -> Result<bool> {
        let mut sealed = false;
        self.scan_references(segment, &mut |referrer| {
            sealed = matches!(referrer, Referrer::Page(_));
            Ok(!sealed)
        })?;
        Ok(sealed)
    }

    pub(super) fn segment_is_owned_by(&self, segment: SegmentId, ino: Ino) -> Result<bool> {
        let _held = self.stripes.lock(&[ino]);
        let record = self.record_locked(ino)?.ok_or(MetaError::NoInode { ino })?;
        if !matches!(record.inode.content, Content::Sealed | Content::Overlay { .. }) {
            return Ok(false);
        }
        let pages: BTreeSet<PageId> =
            self.manifest(ino)?.into_iter().map(|entry| entry.page).collect();
        let _references = lock(&self.content);
        let mut named = false;
        let mut foreign = false;
        self.scan_references(segment, &mut |referrer| {
            named = true;
            foreign = match referrer {
                Referrer::Inode(_) => true,
                Referrer::Page(page) => {
                    // A page occurs once in a manifest, because it says where in the file it is.
                    let count = self.engine.get(Table::References, &key::page_count(page))?;
                    let count = count.map_or(Ok(0), |v| super::edit::decode_count(page, &v))?;
                    !pages.contains(&page) || count != 1
                }
            };
            Ok(!foreign)
        })?;
        Ok(named && !foreign)
    }

    fn scan_references(
        &self,
        segment: SegmentId,
        visit: &mut dyn FnMut(Referrer) -> Result<bool>,
    ) -> Result<()> {
        let (start, end) = (key::reference_start(segment), key::reference_end(segment));
        let start = std::ops::Bound::Included(&start[..]);
        self.engine.scan(Table::References, start, &end, &mut |key, _| match key::parse_reference(
            key,
        ) {
            Some((_, referrer)) => visit(referrer),
            None => Err(MetaError::Missing { key: format!("reference {}", key.escape_ascii()) }),
        })
    }

    fn condemnation(&self, segment: SegmentId) -> Result<Option<Condemnation>> {
        self.engine
            .get(Table::Small, &key::condemned(segment))?
            .map(|bytes| {
                Condemnation::decode(&bytes).map_err(|source| corrupt("condemned", segment, source))
            })
            .transpose()
    }

    pub(super) fn claim_condemned(&self, segment: SegmentId) -> Result<bool> {
        self.engine.admit(Growth::Frees)?;
        let _references = lock(&self.content);
        let Some(condemnation) = self.condemnation(segment)? else { return Ok(false) };
        if condemnation.claimed {
            return Ok(true);
        }
        // Trust no count: a segment that anything names is not taken away.
        if self.segment_is_named(segment)? {
            return Ok(false);
        }
        let mut change = super::engine::Change::default();
        let value = Condemnation { claimed: true, ..condemnation }.encode();
        change.layer.set(Table::Small, Slice::from(key::condemned(segment)), Some(value.into()));
        self.engine.append(change)?;
        Ok(true)
    }

    pub(super) fn forget_segments(&self, segments: &[SegmentId]) -> Result<TxnId> {
        self.engine.admit(Growth::Frees)?;
        let _references = lock(&self.content);
        let mut change = super::engine::Change::default();
        for &segment in segments {
            if self.condemnation(segment)?.is_some_and(|condemnation| condemnation.claimed) {
                change.layer.set(Table::Small, Slice::from(key::condemned(segment)), None);
            }
        }
        self.engine.append(change)
    }

    pub(super) fn condemn(&self, segments: &[SegmentId]) -> Result<TxnId> {
        self.engine.admit(Growth::Stays)?;
        let _references = lock(&self.content);
        let mut change = super::engine::Change::default();
        for &segment in segments {
            if self.condemnation(segment)?.is_none() && !self.segment_is_named(segment)? {
                change.condemned.push(segment);
            }
        }
        self.engine.append(change)
    }
}
