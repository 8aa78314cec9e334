//! Reading chunks so that every byte is verified once since it entered the page cache.
//!
//! A chunk's name is the hash of all of it, so the first read of any part reads and hashes the
//! whole, which also brings the whole into the page cache. From then on, as long as the kernel can
//! answer a read without asking the disk (`RWF_NOWAIT`), the bytes are those that were hashed.
//!
//! What this cannot see: a page that was evicted and brought back by somebody else (a passthrough
//! reader, the kernel's read-ahead for the chunk before) between our look at the set and our read.
//! Such a byte is served unverified until scrub meets it; the policy
//! [`VerifyPolicy::Always`](crate::VerifyPolicy::Always) closes this gap at the price of hashing
//! on every read.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use librorum_format::{ChunkId, Encoding, Extent, Location};
use rustix::io::{Errno, ReadWriteFlags};

use crate::encode::{check, decode, is_plausible};
use crate::error::{Corruption, StoreError};
use crate::store::{Place, Store, VerifyPolicy};

/// Without waiting for the disk, chunks up to this length are decoded and hashed on the caller's
/// time: some tens of microseconds, about what handing the request to another thread costs.
const INLINE_LEN_MAX_BYTES: u32 = 64 << 10;

/// A chunk and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) chunk: ChunkId,
    pub(crate) location: Location,
    pub(crate) chunk_len_bytes: u32,
}

impl Store {
    /// Fills `buf` with the file's bytes from `file_offset_bytes` on, all of which `extent` covers.
    ///
    /// Costs one `preadv2` if the chunk is in the page cache and verified; else the whole chunk is
    /// read, decoded and hashed. Concurrent reads of one chunk share that work.
    ///
    /// # Errors
    ///
    /// [`StoreError::Corrupt`] if the bytes are not the chunk, [`StoreError::Missing`] if the
    /// segment is gone, [`StoreError::Segment`] if the device fails. `buf` then means nothing.
    ///
    /// # Panics
    ///
    /// If the extent does not cover the bytes.
    pub fn read_extent(
        &self,
        extent: &Extent,
        file_offset_bytes: u64,
        buf: &mut [u8],
    ) -> Result<(), StoreError> {
        let (stored, within) = locate(extent, file_offset_bytes, buf.len());
        self.read_part(&stored, within, buf)
    }

    /// The same, but only if it can be answered without waiting for the disk. On `false` the bytes
    /// of `buf` mean nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::read_extent`].
    ///
    /// # Panics
    ///
    /// If the extent does not cover the bytes.
    pub fn read_extent_cached(
        &self,
        extent: &Extent,
        file_offset_bytes: u64,
        buf: &mut [u8],
    ) -> Result<bool, StoreError> {
        let (stored, within) = locate(extent, file_offset_bytes, buf.len());
        let policy = self.options().verify;
        if policy == VerifyPolicy::PageCache && self.decoded_part(&stored, within, buf) {
            return Ok(true);
        }
        let Some(file) = self.handle_if_open(stored.location.segment) else { return Ok(false) };
        if policy == VerifyPolicy::PageCache && self.verified_part(&file, &stored, within, buf)? {
            return Ok(true);
        }
        if stored.chunk_len_bytes > INLINE_LEN_MAX_BYTES || !stored.is_plausible() {
            return Ok(false);
        }
        self.buffers.with(stored.stored_len() + stored.chunk_len(), |scratch| {
            let (encoded, chunk) = scratch.split_at_mut(stored.stored_len());
            let offset_bytes = stored.location.offset_bytes;
            if !self.read_nowait(&file, offset_bytes, encoded, &stored)? {
                return Ok(false);
            }
            stored.decode(encoded, chunk)?;
            self.remember(&stored, chunk);
            buf.copy_from_slice(&chunk[within..within + buf.len()]);
            Ok(true)
        })
    }

    /// Makes sure that a chunk is stored where an index or a table says, before a fresh copy of it
    /// is dropped on the strength of that.
    ///
    /// Bytes that were verified and are still in the page cache are not hashed again; anything
    /// else is read and hashed.
    ///
    /// # Errors
    ///
    /// As [`Self::read_extent`].
    pub fn verify_stored(
        &self,
        chunk: ChunkId,
        location: Location,
        chunk_len_bytes: u32,
    ) -> Result<(), StoreError> {
        let stored = Stored { chunk, location, chunk_len_bytes };
        stored.require_plausible()?;
        self.buffers.with(stored.chunk_len(), |buf| match self.options().verify {
            // Only the page cache of a raw chunk proves anything about its file: a decoded chunk
            // in our memory would hide that the file is gone or damaged.
            VerifyPolicy::PageCache if location.encoding == Encoding::Raw => {
                let file = self.handle_for(&stored)?;
                if self.verified_part(&file, &stored, 0, buf)? {
                    return Ok(());
                }
                self.load(&stored, buf)
            }
            VerifyPolicy::PageCache | VerifyPolicy::Always => self.load(&stored, buf),
        })
    }

    fn read_part(&self, stored: &Stored, within: usize, buf: &mut [u8]) -> Result<(), StoreError> {
        stored.require_plausible()?;
        if self.options().verify == VerifyPolicy::Always {
            return self.load_part(stored, within, buf);
        }
        loop {
            if self.remembered_part(stored, within, buf)? {
                return Ok(());
            }
            // Whoever comes second waits and looks again. It may have to lead after all: the first
            // may have failed, or the kernel may have evicted the chunk already.
            if let Some(_flight) = self.in_flight.begin(stored.place()) {
                // Somebody may have finished between our look and our turn.
                if self.remembered_part(stored, within, buf)? {
                    return Ok(());
                }
                return self.load_part(stored, within, buf);
            }
        }
    }

    /// Fills `buf` from what was verified before, if that is still at hand.
    fn remembered_part(
        &self,
        stored: &Stored,
        within: usize,
        buf: &mut [u8],
    ) -> Result<bool, StoreError> {
        if self.decoded_part(stored, within, buf) {
            return Ok(true);
        }
        if stored.location.encoding != Encoding::Raw {
            return Ok(false);
        }
        let file = self.handle_for(stored)?;
        self.verified_part(&file, stored, within, buf)
    }

    fn decoded_part(&self, stored: &Stored, within: usize, buf: &mut [u8]) -> bool {
        if stored.location.encoding == Encoding::Raw && self.nowait_works.load(Ordering::Relaxed) {
            return false;
        }
        match self.decoded.get(&stored.place()) {
            Ok((chunk, bytes)) if chunk == stored.chunk && bytes.len() == stored.chunk_len() => {
                buf.copy_from_slice(&bytes[within..within + buf.len()]);
                true
            }
            _ => false,
        }
    }

    /// Fills `buf` from the page cache, if the chunk is verified and never left it.
    fn verified_part(
        &self,
        file: &File,
        stored: &Stored,
        within: usize,
        buf: &mut [u8],
    ) -> Result<bool, StoreError> {
        let Location { segment, offset_bytes, encoding, .. } = stored.location;
        if encoding != Encoding::Raw || !self.verified.contains(segment, offset_bytes, stored.chunk)
        {
            return Ok(false);
        }
        let filled = self.read_nowait(file, offset_bytes + within as u64, buf, stored)?;
        if !filled {
            // Part of it has left the page cache, so what comes back is to be verified again.
            self.verified.remove(segment, offset_bytes);
        }
        Ok(filled)
    }

    /// Reads the whole chunk and verifies it, and fills `buf` with a part of it.
    fn load_part(&self, stored: &Stored, within: usize, buf: &mut [u8]) -> Result<(), StoreError> {
        if buf.len() == stored.chunk_len() {
            return self.load(stored, buf);
        }
        self.buffers.with(stored.chunk_len(), |chunk| {
            self.load(stored, chunk)?;
            buf.copy_from_slice(&chunk[within..within + buf.len()]);
            Ok(())
        })
    }

    /// Fills `chunk` with the whole chunk, verified, and remembers that it was.
    fn load(&self, stored: &Stored, chunk: &mut [u8]) -> Result<(), StoreError> {
        let file = self.handle_for(stored)?;
        match stored.location.encoding {
            Encoding::Raw => {
                stored.read(&file, chunk)?;
                check(stored.chunk, chunk).map_err(|reason| stored.corrupt(reason))?;
            }
            Encoding::Lz4 | Encoding::Zstd => {
                self.buffers.with(stored.stored_len(), |encoded| {
                    stored.read(&file, encoded)?;
                    stored.decode(encoded, chunk)
                })?;
            }
        }
        self.remember(stored, chunk);
        Ok(())
    }

    /// Remembers a chunk that has just been verified.
    fn remember(&self, stored: &Stored, chunk: &[u8]) {
        if self.options().verify == VerifyPolicy::Always {
            return;
        }
        let raw = stored.location.encoding == Encoding::Raw;
        if raw && self.nowait_works.load(Ordering::Relaxed) {
            let Location { segment, offset_bytes, .. } = stored.location;
            self.verified.insert(segment, offset_bytes, stored.chunk);
        } else if let Err(absence) = self.decoded.get(&stored.place()) {
            let value = (stored.chunk, Arc::from(chunk));
            self.decoded.insert(absence, stored.place(), value, chunk.len() as u64);
        }
    }

    /// Fills `buf` if the kernel has all of it at hand.
    fn read_nowait(
        &self,
        file: &File,
        offset_bytes: u64,
        buf: &mut [u8],
        stored: &Stored,
    ) -> Result<bool, StoreError> {
        if !self.nowait_works.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let wanted = buf.len();
        let mut slices = [IoSliceMut::new(buf)];
        match rustix::io::preadv2(file, &mut slices, offset_bytes, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok(count == wanted),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                tracing::debug!("the file system does not say what is in the page cache");
                self.nowait_works.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(errno) => Err(stored.failed(errno.into())),
        }
    }

    fn handle_for(&self, stored: &Stored) -> Result<Arc<File>, StoreError> {
        self.handle(stored.location.segment).map_err(|mut error| {
            if let StoreError::Missing { chunk, .. } = &mut error {
                *chunk = Some(stored.chunk);
            }
            error
        })
    }
}

impl Stored {
    pub(crate) fn chunk_len(&self) -> usize {
        self.chunk_len_bytes as usize
    }

    pub(crate) fn stored_len(&self) -> usize {
        self.location.stored_len_bytes as usize
    }

    fn place(&self) -> Place {
        (self.location.segment, self.location.offset_bytes)
    }

    fn is_plausible(&self) -> bool {
        let Location { encoding, stored_len_bytes, .. } = self.location;
        is_plausible(encoding, stored_len_bytes, self.chunk_len_bytes)
    }

    fn require_plausible(&self) -> Result<(), StoreError> {
        if self.is_plausible() { Ok(()) } else { Err(self.corrupt(Corruption::Location)) }
    }

    /// Fills `buf` with the stored form, waiting for the disk.
    pub(crate) fn read(&self, file: &File, buf: &mut [u8]) -> Result<(), StoreError> {
        let mut filled = 0;
        while filled < buf.len() {
            let offset_bytes = self.location.offset_bytes + filled as u64;
            match file.read_at(&mut buf[filled..], offset_bytes) {
                Ok(0) => {
                    let missing_bytes = (buf.len() - filled) as u64;
                    return Err(self.corrupt(Corruption::Short { missing_bytes }));
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Decodes a stored form and checks the name.
    pub(crate) fn decode(&self, encoded: &[u8], chunk: &mut [u8]) -> Result<(), StoreError> {
        decode(self.location.encoding, encoded, self.chunk, chunk)
            .map_err(|reason| self.corrupt(reason))
    }

    fn corrupt(&self, reason: Corruption) -> StoreError {
        let Location { segment, offset_bytes, .. } = self.location;
        StoreError::Corrupt { chunk: self.chunk, segment, offset_bytes, reason }
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Segment { action: "read", segment: self.location.segment, source }
    }
}

fn locate(extent: &Extent, file_offset_bytes: u64, len: usize) -> (Stored, usize) {
    let end = file_offset_bytes.checked_add(len as u64);
    let covers = file_offset_bytes >= extent.file_offset_bytes
        && end.is_some_and(|end| end <= extent.file_end_bytes());
    assert!(covers && extent.is_valid(), "{len} bytes at {file_offset_bytes} of {extent:?}");
    let into_run = file_offset_bytes - extent.file_offset_bytes;
    let within = u64::from(extent.chunk_offset_bytes) + into_run;
    let stored = Stored {
        chunk: extent.chunk,
        location: extent.location,
        chunk_len_bytes: extent.chunk_len_bytes,
    };
    (stored, usize::try_from(within).expect("inside a chunk"))
}
