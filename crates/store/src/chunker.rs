//! Cuts bytes into chunks and names them, in one pass over a buffer that stays in the CPU's cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use librorum_format::ChunkId;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::cut::Cutter;
use crate::error::StoreError;
use crate::store::Store;

/// A run of file bytes that is one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it starts in the file.
    pub file_offset_bytes: u64,
    /// How long it is; never zero.
    pub len_bytes: u32,
    /// Its name.
    pub id: ChunkId,
}

/// Read, searched for cut points and hashed while it is in the second-level cache. Larger is slower
/// (measured, see `examples/throughput.rs`), smaller makes BLAKE3 hash narrower.
const READ_LEN_BYTES: usize = 256 << 10;

impl Store {
    /// Cuts a file's data into chunks and hashes them, in file order. Holes are gaps, and a hole
    /// ends a chunk. `None` if `cancelled` said so; it is asked every 256 KiB.
    ///
    /// Uses 256 KiB of memory and one pass. Moves the file's cursor (`SEEK_DATA` has no other way),
    /// so nobody else may rely on that; the bytes are read by position.
    ///
    /// The chunks of a contiguous run of data depend on its bytes alone (and, with fixed chunking,
    /// on its offset).
    ///
    /// # Errors
    ///
    /// [`StoreError::Source`] if the file cannot be read.
    pub fn chunk_file(
        &self,
        file: &File,
        len_bytes: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Chunk>>, StoreError> {
        let mut pass = Pass::new(self, cancelled);
        let mut read_at = |buf: &mut [u8], offset| file.read_at(buf, offset);
        let mut at_bytes = 0;
        while let Some((start, end)) = next_data(file, at_bytes, len_bytes)? {
            if !pass.run(&mut read_at, start, end)? {
                return Ok(None);
            }
            at_bytes = end;
        }
        Ok(Some(pass.chunks))
    }

    /// The same over bytes `start_bytes..end_bytes` of a file that only the caller can read, such
    /// as an overlay. All of it is one run, which ends early where `read_at` returns zero.
    ///
    /// # Errors
    ///
    /// [`StoreError::Source`] with what `read_at` returned.
    pub fn chunk_reader(
        &self,
        read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
        start_bytes: u64,
        end_bytes: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Chunk>>, StoreError> {
        let mut pass = Pass::new(self, cancelled);
        Ok(pass.run(read_at, start_bytes, end_bytes)?.then_some(pass.chunks))
    }
}

/// One pass over some runs of one file.
struct Pass<'a> {
    cancelled: &'a dyn Fn() -> bool,
    cutter: Cutter,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    chunks: Vec<Chunk>,
}

impl<'a> Pass<'a> {
    fn new(store: &Store, cancelled: &'a dyn Fn() -> bool) -> Self {
        Self {
            cancelled,
            cutter: Cutter::new(store.options().chunking),
            hasher: blake3::Hasher::new(),
            buffer: vec![0; READ_LEN_BYTES],
            chunks: Vec::new(),
        }
    }

    /// Chunks one run; false if cancelled.
    fn run(
        &mut self,
        read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
        start_bytes: u64,
        end_bytes: u64,
    ) -> Result<bool, StoreError> {
        self.cutter.start(start_bytes);
        let mut chunk_start = start_bytes;
        // Bytes `filled` of the buffer lie in the file just before `at`.
        let (mut at, mut filled) = (start_bytes, 0);
        loop {
            if (self.cancelled)() {
                return Ok(false);
            }
            let want = usize::try_from(end_bytes - at).unwrap_or(usize::MAX);
            let room = want.min(READ_LEN_BYTES - filled);
            let got = read_some(read_at, &mut self.buffer[filled..filled + room], at)?;
            at += got as u64;
            filled += got;
            let mut used = 0;
            loop {
                let step = self.cutter.step(&self.buffer[used..filled]);
                self.hasher.update(&self.buffer[used..used + step.taken]);
                used += step.taken;
                if !step.ends {
                    break;
                }
                let end = at - (filled - used) as u64;
                self.push(chunk_start, end);
                chunk_start = end;
            }
            let left = filled - used;
            if got == 0 {
                self.hasher.update(&self.buffer[used..filled]);
                if at > chunk_start {
                    self.push(chunk_start, at);
                }
                return Ok(true);
            }
            self.buffer.copy_within(used..filled, 0);
            filled = left;
        }
    }

    fn push(&mut self, start: u64, end: u64) {
        let len_bytes = u32::try_from(end - start).expect("chunks are bounded");
        let id = ChunkId(*self.hasher.finalize().as_bytes());
        self.hasher.reset();
        self.chunks.push(Chunk { file_offset_bytes: start, len_bytes, id });
    }
}

/// Fills as much of `buf` as there is; less only at the end of the bytes. Full pieces keep the
/// hash wide.
fn read_some(
    read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
    buf: &mut [u8],
    offset_bytes: u64,
) -> Result<usize, StoreError> {
    let mut filled = 0;
    while filled < buf.len() {
        let offset_bytes = offset_bytes + filled as u64;
        match read_at(&mut buf[filled..], offset_bytes) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(StoreError::Source { action: "read", offset_bytes, source });
            }
        }
    }
    Ok(filled)
}

/// The next run of data in `from..len` of the file.
fn next_data(
    file: &File,
    from_bytes: u64,
    len_bytes: u64,
) -> Result<Option<(u64, u64)>, StoreError> {
    let failed = |errno: Errno| StoreError::Source {
        action: "find data in",
        offset_bytes: from_bytes,
        source: errno.into(),
    };
    if from_bytes >= len_bytes {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from_bytes)) {
        Ok(start) if start < len_bytes => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // The file system does not know about holes: everything is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from_bytes, len_bytes))),
        Err(errno) => return Err(failed(errno)),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(failed)?.min(len_bytes);
    // A file that shrinks meanwhile can make these cross; what is gone is a hole.
    Ok((start < end).then_some((start, end)))
}
