//! M10 to M14: bodies, manifests, pages, references, condemned segments.

use std::collections::{BTreeMap, BTreeSet};

use fjall::Slice;
use librorum_format::{DecodeError, Ino, PageId, SegmentId, decode_page};

use super::super::edit::{decode_count, encode_count};
use super::{Checker, Mend, from};
use crate::record::key::Referrer;
use crate::record::{Body, Condemnation, PageEntry, Record, Table, key};
use crate::{Content, FileKind, Inode, Result};

/// What is known of a page of the window.
#[derive(Debug, Default)]
struct PageTally {
    /// The range of file offsets that its extents cover, if its bytes are there and right.
    range: Option<(u64, u64)>,
    /// Whether there are bytes at all.
    has_bytes: bool,
    /// The stored count of manifests.
    count: Option<u64>,
    /// Manifests that list it.
    found: u64,
}

impl Checker<'_> {
    pub(super) fn content(&mut self, staged_count: u64) -> Result<()> {
        self.bodies()?;
        let named_by_page = self.pages()?;
        self.references(named_by_page, staged_count)?;
        self.condemned()
    }

    /// M10: what is beside an inode is what its content says. Both tables are in inode order, so
    /// one pass over each is enough.
    fn bodies(&mut self) -> Result<()> {
        let mut faults = Vec::new();
        let mut missing = Vec::new();
        let mut inodes = self.view.entries(Table::Inodes);
        let mut next_inode =
            move || -> Result<Option<(Slice, Slice)>> { inodes.next().transpose() };
        let mut inode = next_inode()?;
        // An inode that no body came by for.
        let mut lonely = |key: &Slice, value: &Slice| {
            let record = key::parse_inode(key).map(|ino| Record::decode(ino, value));
            if let Some(Ok(record)) = record
                && needs_body(&record.inode)
            {
                missing.push(record.inode.ino);
            }
        };
        self.view.scan_all(Table::Bodies, &mut |key, value| {
            while let Some((above, record)) = &inode
                && above < key
            {
                lonely(above, record);
                inode = next_inode()?;
            }
            let Some(ino) = key::parse_inode(key) else {
                faults.push((key.clone(), "M1", Mend::Possible, "has a key that cannot be"));
                return Ok(true);
            };
            let record = match &inode {
                Some((above, record)) if above == key => Record::decode(ino, record).ok(),
                Some(_) | None => None,
            };
            match (record, Body::decode(value)) {
                (None, _) => {
                    faults.push((key.clone(), "M10", Mend::Possible, "belongs to no inode"));
                }
                (Some(record), Ok(body)) => {
                    if let Some((mend, why)) = mismatch(&record.inode, &body) {
                        faults.push((key.clone(), "M10", mend, why));
                    }
                }
                // The bytes or extents are lost; taking the rest away would make it zeros.
                (Some(_), Err(_)) => {
                    faults.push((key.clone(), "M10", Mend::Impossible, "cannot be read"));
                }
            }
            if inode.as_ref().is_some_and(|(above, _)| above == key) {
                inode = next_inode()?;
            }
            Ok(true)
        })?;
        while let Some((above, record)) = &inode {
            lonely(above, record);
            inode = next_inode()?;
        }
        for (key, rule, mend, why) in faults {
            let what = match key::parse_inode(&key) {
                Some(ino) => format!("the body of {ino} {why}"),
                None => format!("a body {why}"),
            };
            if !self.violation(rule, mend, format_args!("{what}")) {
                continue;
            }
            // Bytes or extents whose inode is lost find a new one, and that a name.
            let ino = key::parse_inode(&key);
            let lost = match ino {
                Some(ino) if self.record(ino)?.is_none() => self.salvage(ino)?,
                Some(_) | None => None,
            };
            match (ino, lost) {
                (Some(ino), Some(record)) => {
                    self.set(Table::Inodes, key::inode(ino), Some(record.encode().into()))?;
                }
                _ => self.set(Table::Bodies, key, None)?,
            }
        }
        for ino in missing {
            self.violation("M10", Mend::Impossible, format_args!("{ino} has lost its content"));
        }
        Ok(())
    }

    /// M11 and M12: pages are what they are named, and are counted. Answers how many names of
    /// segments their extents make, all of which are then there.
    fn pages(&mut self) -> Result<u64> {
        let mut named = 0;
        let mut low = PageId([0; 32]);
        loop {
            let (mut window, high, segments) = self.page_window(low)?;
            named += segments;
            let faults = self.manifests_against(low, high, &mut window)?;
            for (ino, entry, why) in faults {
                let what = format_args!("page {} of {ino} {why}", entry.page);
                self.violation("M11", Mend::Impossible, what);
            }
            for (page, tally) in window {
                self.page_tally(page, &tally)?;
            }
            match next_page(high) {
                Some(next) => low = next,
                None => return Ok(named),
            }
        }
    }

    fn page_window(&mut self, low: PageId) -> Result<(BTreeMap<PageId, PageTally>, PageId, u64)> {
        let mut window: BTreeMap<PageId, PageTally> = BTreeMap::new();
        let mut high = PageId([0xff; 32]);
        let mut damaged: Vec<(Slice, Option<DecodeError>)> = Vec::new();
        let mut unnamed = Vec::new();
        let mut named = 0;
        let limit = self.windows.pages;
        let view = &self.view;
        view.scan(Table::Pages, from(&low.0), &[0xff; 33], &mut |key, value| {
            let Ok(id) = <[u8; 32]>::try_from(&**key) else {
                damaged.push((key.clone(), None));
                return Ok(true);
            };
            let page = PageId(id);
            let tally = window.entry(page).or_default();
            tally.has_bytes = true;
            match decode_page(page, value) {
                Ok(extents) => {
                    tally.range = extents
                        .first()
                        .zip(extents.last())
                        .map(|(first, last)| (first.file_offset_bytes, last.file_end_bytes()));
                    let segments: BTreeSet<SegmentId> =
                        extents.iter().map(|extent| extent.location.segment).collect();
                    for segment in segments {
                        named += 1;
                        let reference = key::reference(segment, Referrer::Page(page));
                        if view.get(Table::References, &reference)?.is_none() {
                            unnamed.push(reference);
                        }
                    }
                }
                Err(error) => damaged.push((key.clone(), Some(error))),
            }
            if window.len() >= limit {
                high = page;
                return Ok(false);
            }
            Ok(true)
        })?;
        let mut miscounted = Vec::new();
        let (start, end) = (key::page_count(low), key::page_count(high));
        view.scan(
            Table::References,
            from(&start),
            &[&end[..], &[0]].concat(),
            &mut |key, value| {
                let page = key::parse_page_count(key);
                match page.map(|page| (page, decode_count(page, value))) {
                    Some((page, Ok(count))) => window.entry(page).or_default().count = Some(count),
                    Some((_, Err(_))) | None => miscounted.push(key.clone()),
                }
                Ok(true)
            },
        )?;
        for (key, error) in damaged {
            match error {
                // Its files cannot be read, and must not be read as zeros.
                Some(error) => {
                    let what = format_args!("page {}: {error}", hex(&key));
                    self.violation("M11", Mend::Impossible, what);
                }
                None => {
                    let what = format_args!("a page has a key that cannot be: {}", hex(&key));
                    if self.violation("M1", Mend::Possible, what) {
                        self.set(Table::Pages, key, None)?;
                    }
                }
            }
        }
        for reference in unnamed {
            let what = format_args!("a page does not name its segment: {}", hex(&reference));
            if self.violation("M13", Mend::Possible, what) {
                self.set(Table::References, reference, Some(Slice::empty()))?;
            }
        }
        for key in miscounted {
            let what = format_args!("a page count cannot be read: {}", hex(&key));
            if self.violation("M1", Mend::Possible, what) {
                self.set(Table::References, key, None)?;
            }
        }
        Ok((window, high, named))
    }

    /// Counts who lists the pages of the window.
    fn manifests_against(
        &self,
        low: PageId,
        high: PageId,
        window: &mut BTreeMap<PageId, PageTally>,
    ) -> Result<Vec<(Ino, PageEntry, &'static str)>> {
        let mut faults = Vec::new();
        self.view.scan_all(Table::Bodies, &mut |key, value| {
            let Some(ino) = key::parse_inode(key) else { return Ok(true) };
            let Ok(Body::Manifest(entries)) = Body::decode(value) else { return Ok(true) };
            for entry in entries {
                if entry.page < low || entry.page > high {
                    continue;
                }
                match window.get_mut(&entry.page) {
                    Some(tally) => {
                        tally.found += 1;
                        let range = (entry.start_bytes, entry.end_bytes);
                        if !tally.has_bytes {
                            faults.push((ino, entry, "is missing"));
                        } else if tally.range.is_some_and(|found| found != range) {
                            faults.push((
                                ino,
                                entry,
                                "covers another range than its manifest says",
                            ));
                        }
                    }
                    None => faults.push((ino, entry, "is missing")),
                }
            }
            Ok(true)
        })?;
        Ok(faults)
    }

    fn page_tally(&mut self, page: PageId, tally: &PageTally) -> Result<()> {
        let expected = (tally.found > 0).then_some(tally.found);
        if tally.count != expected {
            let what =
                format_args!("page {page} is counted {:?} times, not {expected:?}", tally.count);
            if self.violation("M12", Mend::Possible, what) {
                let value = expected.map(|count| Slice::from(encode_count(count)));
                self.set(Table::References, key::page_count(page), value)?;
            }
        }
        if tally.found == 0 && tally.has_bytes {
            let what = format_args!("page {page} is in no manifest");
            if self.violation("M12", Mend::Possible, what) {
                self.set(Table::Pages, page.0, None)?;
            }
        }
        Ok(())
    }

    /// M13, the other way round: whatever a reference says is so.
    fn references(&mut self, named_by_page: u64, staged_count: u64) -> Result<()> {
        let mut by_page = 0_u64;
        let mut by_staged = 0_u64;
        let mut doomed = Vec::new();
        let mut odd = Vec::new();
        let view = &self.view;
        let start = [key::SEGMENT];
        view.scan(Table::References, from(&start), &[0xff; 64], &mut |key, _| {
            match key::parse_reference(key) {
                Some((_, Referrer::Page(_))) => by_page += 1,
                Some((segment, Referrer::Inode(ino))) => {
                    let bytes = view.get(Table::Inodes, &key::inode(ino))?;
                    let record = bytes.and_then(|bytes| Record::decode(ino, &bytes).ok());
                    match record.and_then(|record| record.inode.content.staging()) {
                        Some(staging) if staging == segment => by_staged += 1,
                        Some(_) | None => doomed.push(key.clone()),
                    }
                }
                None => odd.push(key.clone()),
            }
            Ok(true)
        })?;
        if by_page != named_by_page {
            // Only now, because it reads every page again, in an order that is not theirs.
            view.scan(Table::References, from(&start), &[0xff; 64], &mut |key, _| {
                if let Some((segment, Referrer::Page(page))) = key::parse_reference(key) {
                    let bytes = view.get(Table::Pages, &page.0)?;
                    let names_it = match bytes.map(|bytes| decode_page(page, &bytes)) {
                        Some(Ok(extents)) => {
                            extents.iter().any(|extent| extent.location.segment == segment)
                        }
                        // A damaged page may still name it.
                        Some(Err(_)) => true,
                        None => false,
                    };
                    if !names_it {
                        doomed.push(key.clone());
                    }
                }
                Ok(true)
            })?;
        }
        for key in doomed {
            let what = format_args!("a reference says what is not so: {}", hex(&key));
            if self.violation("M13", Mend::Possible, what) {
                self.set(Table::References, key.clone(), None)?;
                if let Some((segment, _)) = key::parse_reference(&key) {
                    self.condemn_later(segment)?;
                }
            }
        }
        for key in odd {
            let what = format_args!("a reference has a key that cannot be: {}", hex(&key));
            if self.violation("M1", Mend::Possible, what) {
                self.set(Table::References, key, None)?;
            }
        }
        if by_staged == staged_count { Ok(()) } else { self.staging_references() }
    }

    /// A segment whose false reference went may have no other; then it is to be swept. Condemned
    /// though named is what the next round puts right, so this need not look.
    fn condemn_later(&mut self, segment: SegmentId) -> Result<()> {
        self.step()?;
        if !self.core.segment_is_named(segment)? {
            self.change.condemned.push(segment);
            let change = std::mem::take(&mut self.change);
            self.core.engine.append(change)?;
        }
        Ok(())
    }

    fn staging_references(&mut self) -> Result<()> {
        let mut missing = Vec::new();
        let view = &self.view;
        view.scan_all(Table::Inodes, &mut |key, value| {
            let Some(ino) = key::parse_inode(key) else { return Ok(true) };
            let Ok(record) = Record::decode(ino, value) else { return Ok(true) };
            if let Some(segment) = record.inode.content.staging() {
                let reference = key::reference(segment, Referrer::Inode(ino));
                if view.get(Table::References, &reference)?.is_none() {
                    missing.push((ino, reference));
                }
            }
            Ok(true)
        })?;
        for (ino, reference) in missing {
            let what = format_args!("{ino} does not name its staging file");
            if self.violation("M13", Mend::Possible, what) {
                self.set(Table::References, reference, Some(Slice::empty()))?;
            }
        }
        Ok(())
    }

    /// M14: nothing that is named is condemned.
    fn condemned(&mut self) -> Result<()> {
        let mut faults = Vec::new();
        let view = &self.view;
        let (start, end) = ([key::CONDEMNED], [key::CONDEMNED + 1]);
        view.scan(Table::Small, from(&start), &end, &mut |key, value| {
            let Some(segment) = key::parse_condemned(key) else {
                faults.push((key.clone(), None, false));
                return Ok(true);
            };
            let Ok(condemnation) = Condemnation::decode(value) else {
                faults.push((key.clone(), None, false));
                return Ok(true);
            };
            let mut is_named = false;
            let (start, end) = (key::reference_start(segment), key::reference_end(segment));
            view.scan(Table::References, from(&start), &end, &mut |_, _| {
                is_named = true;
                Ok(false)
            })?;
            if is_named {
                faults.push((key.clone(), Some(segment), condemnation.claimed));
            }
            Ok(true)
        })?;
        for (key, segment, claimed) in faults {
            let (rule, what) = match (segment, claimed) {
                (None, _) => ("M1", format!("a condemned record cannot be read: {}", hex(&key))),
                (Some(segment), false) => ("M14", format!("{segment} is named and condemned")),
                (Some(segment), true) => {
                    ("M14", format!("{segment} is named, and its bytes may be deleted"))
                }
            };
            if self.violation(rule, Mend::Possible, format_args!("{what}")) {
                self.set(Table::Small, key, None)?;
            }
        }
        Ok(())
    }
}

fn needs_body(inode: &Inode) -> bool {
    match inode.content {
        Content::Inline | Content::Sealed | Content::Overlay { .. } => {
            inode.kind == FileKind::Regular
        }
        Content::Empty | Content::Staged { .. } => inode.kind == FileKind::Symlink,
    }
}

/// Why a body does not go with its inode, and whether it may be taken away.
fn mismatch(inode: &Inode, body: &Body) -> Option<(Mend, &'static str)> {
    match (inode.kind, inode.content, body) {
        (FileKind::Symlink, _, Body::Symlink(target)) => (target.len() as u64 != inode.size_bytes)
            .then_some((Mend::Impossible, "has another length than its inode says")),
        (FileKind::Regular, Content::Inline, Body::Inline(bytes)) => (bytes.len() as u64
            != inode.size_bytes)
            .then_some((Mend::Impossible, "has another length than its inode says")),
        (FileKind::Regular, Content::Sealed, Body::Manifest(entries)) => {
            let end_bytes = entries.last().map_or(0, |last| last.end_bytes);
            (end_bytes > inode.size_bytes)
                .then_some((Mend::Impossible, "ends behind the end of its file"))
        }
        (FileKind::Regular, Content::Overlay { .. }, Body::Manifest(_)) => None,
        (FileKind::Regular, Content::Empty | Content::Staged { .. }, _) => {
            Some((Mend::Possible, "is left over"))
        }
        _ => Some((Mend::Impossible, "is of another kind than its inode")),
    }
}

fn next_page(page: PageId) -> Option<PageId> {
    let mut bytes = page.0;
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(PageId(bytes));
        }
    }
    None
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").expect("strings take everything");
        text
    })
}
