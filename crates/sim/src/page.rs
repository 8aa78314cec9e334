//! Byte ranges as pages: the unit in which disks keep or lose what was not synced.

/// What a page cache writes back as one.
pub(crate) const PAGE_LEN: usize = 4096;

/// What a disk writes atomically.
pub(crate) const SECTOR_LEN: usize = 512;

const PAGE_BYTES: u64 = PAGE_LEN as u64;

/// The part of a byte range that lies in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The page.
    pub(crate) page: u64,
    /// Where the part starts in the page.
    pub(crate) start: usize,
    /// Where it ends in the page.
    pub(crate) end: usize,
    /// Where it starts in the range.
    pub(crate) skipped: usize,
}

impl Part {
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }
}

/// The parts of `len` bytes at `offset`, in order.
pub(crate) fn parts(offset: u64, len: u64) -> impl Iterator<Item = Part> {
    let range_end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= range_end {
            return None;
        }
        let page = at / PAGE_BYTES;
        let end = range_end.min((page + 1).saturating_mul(PAGE_BYTES));
        let part = Part {
            page,
            start: to_len(at - page * PAGE_BYTES),
            end: to_len(end - page * PAGE_BYTES),
            skipped: to_len(at - offset),
        };
        at = end;
        Some(part)
    })
}

/// The first page that no byte below `size_bytes` is in.
pub(crate) fn page_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(PAGE_BYTES)
}

/// Where a page starts in its file.
pub(crate) fn page_offset(page: u64) -> u64 {
    page * PAGE_BYTES
}

/// A length as memory counts it: the simulation runs on 64-bit machines.
pub(crate) fn to_len(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a 64-bit machine")
}

/// The part of a page behind the end of a file of `size_bytes`, if the file ends inside a page.
pub(crate) fn tail(size_bytes: u64) -> Option<(u64, usize)> {
    let within = to_len(size_bytes % PAGE_BYTES);
    (within > 0).then_some((size_bytes / PAGE_BYTES, within))
}
