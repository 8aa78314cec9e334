//! fsck, scrub and sweep: proving that a volume is what `docs/format.md` says, and mending it.
//!
//! The metadata checks itself (M1…), the store knows its own files (S1…); what only this crate can
//! check is that the two agree:
//!
//! * F1: a staging file that an inode names exists.
//! * F2: a segment that an extent names exists, and is long enough for it.
//! * F3: it has a chunk table, which lists the extent's chunk where the extent says it is.
//! * F4: a file on disk is named by something, condemned, or left over from a crash.
//! * F6: a staging file that an inode names has no chunk table.
//! * F7: what lies among the uploads is an upload, and no segment as well.
//! * F5: (reading data) every chunk's bytes hash to its name.

use std::collections::{HashMap, HashSet};

use librorum_format::{Extent, Ino, SegmentId, SegmentTable};
use librorum_meta::{Content, Meta};
use librorum_store::{Chunk, Damage, StoreError};
use serde::Serialize;

use crate::error::Result;
use crate::fs::{Fs, PAGE};
use crate::status::Progress;

/// What a check does.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Re-hash every stored byte.
    pub read_data: bool,
    /// Mend what can be mended.
    pub repair: bool,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The invariant, as `docs/format.md` numbers it.
    pub invariant: String,
    /// What is wrong, where, and what it means for whom.
    pub message: String,
    /// Whether it was mended.
    pub repaired: bool,
    /// Whether anything is lost or wrong. What a crash leaves behind takes space, but is neither,
    /// and the next mount gives it back.
    pub damage: bool,
}

/// Tables are kept for this many segments at a time.
const TABLE_CACHE: usize = 256;

type Tables = HashMap<SegmentId, Option<(u64, Option<SegmentTable>)>>;

impl Fs {
    /// Checks the whole volume, which nobody else may use meanwhile. Hands each finding to
    /// `report`. Memory does not grow with the volume, but for the findings' segments.
    ///
    /// # Errors
    ///
    /// Failures that end the check; findings are not errors.
    pub fn check(
        &self,
        options: CheckOptions,
        progress: &mut dyn FnMut(Progress),
        report: &mut dyn FnMut(Finding),
    ) -> Result<()> {
        self.meta.check(options.repair, &mut |message| report(metadata_finding(&message)))?;
        let without_table = self.check_files(options.repair, progress, report)?;
        if options.repair && !without_table.is_empty() {
            self.rebuild_tables(&without_table, report)?;
        }
        self.check_leftovers(options.repair, report)?;
        self.check_uploads(options.repair, report)?;
        if options.read_data {
            self.scrub(progress, report)?;
        }
        if options.repair {
            let count = self.store.rebuild_index(&mut |done| {
                progress(Progress {
                    phase: "rebuilding the dedup index",
                    done,
                    total: None,
                    unit: "chunks",
                });
            })?;
            tracing::info!(count, "the dedup index was rebuilt");
            self.meta.sync()?;
        }
        Ok(())
    }

    /// F1, F2 and F3. Answers the segments that have bytes but no table.
    fn check_files(
        &self,
        repair: bool,
        progress: &mut dyn FnMut(Progress),
        report: &mut dyn FnMut(Finding),
    ) -> Result<Vec<SegmentId>> {
        let total = Some(self.meta.stats().inode_count);
        let mut without_table = Vec::new();
        let mut tables = Tables::new();
        let mut done = 0;
        let mut after = Ino(0);
        loop {
            let page = self.meta.inodes(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = last.ino;
            for inode in page {
                done += 1;
                if let Some(segment) = inode.content.staging()
                    && self.store.bytes_len(segment).is_err()
                {
                    report(Finding {
                        invariant: "F1".to_owned(),
                        message: format!(
                            "the staging file {segment} of {:?} is missing: its unsealed bytes are lost",
                            inode.ino
                        ),
                        repaired: false,
                        damage: true,
                    });
                }
                if let Some(segment) = inode.content.staging()
                    && self.store.load_table(segment).is_ok_and(|table| table.is_some())
                {
                    // Sealing was interrupted. Recovery removes it, and so does the next sealing.
                    report(Finding {
                        invariant: "F6".to_owned(),
                        message: format!(
                            "the staging file {segment} of {:?} has a chunk table; mounting removes it",
                            inode.ino
                        ),
                        repaired: false,
                        damage: false,
                    });
                }
                if !matches!(inode.content, Content::Sealed | Content::Overlay { .. }) {
                    continue;
                }
                for extent in self.meta.extents(inode.ino, 0, u64::MAX)? {
                    self.check_extent(inode.ino, &extent, &mut tables, &mut without_table, report)?;
                }
            }
            progress(Progress { phase: "checking files", done, total, unit: "files" });
        }
        // With repair, whoever writes them anew says how that went.
        for segment in without_table.iter().filter(|_| !repair) {
            report(Finding {
                invariant: "F3".to_owned(),
                message: format!(
                    "segment {segment} has no readable chunk table; --repair writes it anew"
                ),
                repaired: false,
                damage: true,
            });
        }
        Ok(without_table)
    }

    fn check_extent(
        &self,
        ino: Ino,
        extent: &Extent,
        tables: &mut Tables,
        without_table: &mut Vec<SegmentId>,
        report: &mut dyn FnMut(Finding),
    ) -> Result<()> {
        let location = extent.location;
        let segment = location.segment;
        if !tables.contains_key(&segment) {
            if tables.len() >= TABLE_CACHE {
                tables.clear();
            }
            let known = match self.store.bytes_len(segment) {
                Ok(len) => {
                    let table = match self.store.load_table(segment) {
                        Ok(table) => table,
                        Err(error) => {
                            tracing::warn!(%error, %segment, "chunk table");
                            None
                        }
                    };
                    if table.is_none() && !without_table.contains(&segment) {
                        without_table.push(segment);
                    }
                    Some((len, table))
                }
                Err(_) => None,
            };
            tables.insert(segment, known);
        }
        let at = extent.file_offset_bytes;
        let mut found = |invariant: &str, what: &str| {
            report(Finding {
                invariant: invariant.to_owned(),
                message: format!(
                    "{ino:?} at {at}: {what} (chunk {}, segment {segment} at {})",
                    extent.chunk, location.offset_bytes
                ),
                repaired: false,
                damage: true,
            });
        };
        match &tables[&segment] {
            None => found("F2", "the segment is missing: these bytes are lost"),
            Some((len, _))
                if location.offset_bytes + u64::from(location.stored_len_bytes) > *len =>
            {
                found("F2", "the segment is too short: these bytes are lost");
            }
            Some((_, Some(table))) => {
                let listed = table.entries.iter().any(|entry| {
                    entry.chunk == extent.chunk
                        && entry.offset_bytes == location.offset_bytes
                        && entry.stored_len_bytes == location.stored_len_bytes
                        && entry.encoding == location.encoding
                });
                if !listed {
                    found("F3", "the chunk table does not list the chunk");
                }
            }
            Some((_, None)) => {}
        }
        Ok(())
    }

    /// Writes the chunk tables of verbatim segments anew from the extents that name them. Chunks
    /// that nothing names are not in it, which costs a later duplicate.
    fn rebuild_tables(
        &self,
        segments: &[SegmentId],
        report: &mut dyn FnMut(Finding),
    ) -> Result<()> {
        let mut chunks: HashMap<SegmentId, Vec<Extent>> =
            segments.iter().map(|segment| (*segment, Vec::new())).collect();
        let mut after = Ino(0);
        loop {
            let page = self.meta.inodes(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = last.ino;
            for inode in page {
                if matches!(inode.content, Content::Sealed | Content::Overlay { .. }) {
                    for extent in self.meta.extents(inode.ino, 0, u64::MAX)? {
                        if let Some(known) = chunks.get_mut(&extent.location.segment) {
                            known.push(extent);
                        }
                    }
                }
            }
        }
        for (segment, mut extents) in chunks {
            extents.sort_by_key(|extent| extent.location.offset_bytes);
            extents.dedup_by_key(|extent| extent.location.offset_bytes);
            let verbatim = extents
                .iter()
                .all(|extent| extent.location.encoding == librorum_format::Encoding::Raw);
            let mut sound = verbatim;
            for extent in &extents {
                let read =
                    self.store.verify_stored(extent.chunk, extent.location, extent.chunk_len_bytes);
                sound &= read.is_ok();
            }
            let message = if sound {
                let file = self.store.open_bytes(segment, true)?;
                let len = self.store.bytes_len(segment)?;
                let chunks: Vec<Chunk> = extents
                    .iter()
                    .map(|extent| Chunk {
                        file_offset_bytes: extent.location.offset_bytes,
                        len_bytes: extent.chunk_len_bytes,
                        id: extent.chunk,
                    })
                    .collect();
                self.store.seal_verbatim(segment, &file, len, &chunks)?;
                format!("the chunk table of segment {segment} was written anew")
            } else {
                format!(
                    "the chunk table of segment {segment} cannot be written anew; \
                     its intact chunks stay readable"
                )
            };
            report(Finding { invariant: "F3".to_owned(), message, repaired: sound, damage: true });
        }
        Ok(())
    }

    /// F4.
    fn check_leftovers(&self, repair: bool, report: &mut dyn FnMut(Finding)) -> Result<()> {
        let spares: HashSet<SegmentId> = self.spares().into_iter().collect();
        let mut unnamed = Vec::new();
        for segment in self.store.segments() {
            let (segment, has_bytes, _) = segment?;
            if !self.meta.segment_is_named(segment)? && !spares.contains(&segment) {
                unnamed.push((segment, has_bytes));
            }
        }
        let condemned = self.all_condemned()?;
        let mut leftovers = Vec::new();
        for (segment, has_bytes) in unnamed {
            // It may have been new, and got its name since.
            if condemned.contains(&segment) || self.meta.segment_is_named(segment)? {
                continue;
            }
            let bytes = match self.store.bytes_len(segment) {
                Ok(bytes) => bytes,
                Err(StoreError::Missing { .. }) if !has_bytes => 0,
                // Condemned when it was found, and deleted since.
                Err(StoreError::Missing { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            report(Finding {
                invariant: "F4".to_owned(),
                message: format!("nothing names segment {segment} ({bytes} bytes long)"),
                repaired: repair,
                damage: false,
            });
            leftovers.push(segment);
        }
        if repair && !leftovers.is_empty() {
            self.meta.condemn(&leftovers)?;
            self.meta.sync()?;
            self.reclaim_now()?;
        }
        Ok(())
    }

    /// F7.
    fn check_uploads(&self, repair: bool, report: &mut dyn FnMut(Finding)) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        for (path, key) in self.upload_files()? {
            let name = path.display();
            let Some(_) = key else {
                report(Finding {
                    invariant: "F7".to_owned(),
                    message: format!("{name} is not an upload; nothing will ever remove it"),
                    repaired: false,
                    damage: false,
                });
                continue;
            };
            let has_two_names = std::fs::symlink_metadata(&path).is_ok_and(|stat| stat.nlink() > 1);
            if !has_two_names {
                continue;
            }
            report(Finding {
                invariant: "F7".to_owned(),
                message: format!("{name} was published, and only its name here is left over"),
                repaired: repair,
                damage: false,
            });
            if repair {
                std::fs::remove_file(&path).map_err(|source| crate::error::FsError::Volume {
                    path: path.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Read in one pass: behind each single one there may be thousands of removed keys to skip.
    fn all_condemned(&self) -> Result<HashSet<SegmentId>> {
        let mut all = HashSet::new();
        let mut after = SegmentId(0);
        loop {
            let page = self.meta.condemned(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(all) };
            after = last.segment;
            all.extend(page.iter().map(|condemned| condemned.segment));
        }
    }

    /// F5: reads every sealed byte from the medium and compares it with its name.
    ///
    /// # Errors
    ///
    /// Failures that end the scrub; damage is reported.
    pub fn scrub(
        &self,
        progress: &mut dyn FnMut(Progress),
        report: &mut dyn FnMut(Finding),
    ) -> Result<()> {
        let total = Some(self.store.usage()?.stored_bytes);
        let mut done = 0;
        for segment in self.store.segments() {
            let (segment, has_bytes, has_table) = segment?;
            // What no page names has no reader: a staging file, or a condemned segment. A table
            // beside it is what an interrupted sealing left.
            if (!has_table && has_bytes) || !self.meta.segment_is_sealed(segment)? {
                continue;
            }
            let mut read = 0;
            let damages = self.store.scrub_segment(segment, &mut |bytes| {
                read = bytes;
                progress(Progress {
                    phase: "reading data",
                    done: done + bytes,
                    total,
                    unit: "bytes",
                });
            })?;
            done += read;
            for damage in damages {
                report(Finding {
                    invariant: "F5".to_owned(),
                    message: format!("segment {segment}: {}", describe(&damage)),
                    repaired: false,
                    damage: true,
                });
            }
        }
        Ok(())
    }

    /// What a sweep would delete: condemned segments and leftovers, with their bytes.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn sweepable(&self) -> Result<Vec<(SegmentId, u64)>> {
        let mut found = Vec::new();
        let spares: HashSet<SegmentId> = self.spares().into_iter().collect();
        for segment in self.store.segments() {
            let (segment, has_bytes, _) = segment?;
            if !spares.contains(&segment) && !self.meta.segment_is_named(segment)? {
                let bytes = if has_bytes {
                    let stat = self.store.bytes_stat(segment)?;
                    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
                } else {
                    0
                };
                found.push((segment, bytes));
            }
        }
        Ok(found)
    }

    /// Deletes what [`Fs::sweepable`] lists, in the order that `reclaim.rs` explains.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn sweep(&self) -> Result<()> {
        let segments: Vec<SegmentId> =
            self.sweepable()?.into_iter().map(|(segment, _)| segment).collect();
        self.meta.condemn(&segments)?;
        self.meta.sync()?;
        self.reclaim_now()
    }
}

/// The metadata's messages start with the invariant, as in `M3: …`, and end with what was done.
fn metadata_finding(message: &str) -> Finding {
    let (invariant, rest) = message.split_once(": ").unwrap_or(("M", message));
    let repaired = rest.ends_with("(repaired)");
    Finding { invariant: invariant.to_owned(), message: rest.to_owned(), repaired, damage: true }
}

fn describe(damage: &Damage) -> String {
    match damage {
        Damage::BytesMissing => "its bytes are gone".to_owned(),
        Damage::TableMissing => "it has no chunk table".to_owned(),
        Damage::Table(error) => format!("its chunk table is damaged: {error}"),
        Damage::Short { table_len_bytes, file_len_bytes } => {
            format!("it has {file_len_bytes} bytes, but its table says {table_len_bytes}")
        }
        Damage::Chunk { chunk, offset_bytes, stored_len_bytes, reason } => {
            format!("chunk {chunk} ({stored_len_bytes} bytes at {offset_bytes}): {reason}")
        }
    }
}
