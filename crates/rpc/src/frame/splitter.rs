//! A byte stream with descriptors, cut into frames.
//!
//! The kernel glues what was sent apart and parts what was sent together, but it never goes on past
//! bytes that descriptors came with. So descriptors that come with a chunk of the stream belong to a
//! frame that begins in this chunk, and every frame's are claimed when its header is read.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use bytes::Bytes;

use super::{Frame, FrameError, HEADER_LEN, Header, Limits};
use crate::buffer::{BufferPool, Pooled};

/// What is received at once while frames are small: dozens of them.
const STREAM_LEN: usize = 64 << 10;

/// Bodies up to here are copied out of the stream; longer ones are received into a buffer of their
/// own, so that contents are not copied again.
const COPIED_LEN_MAX: usize = 16 << 10;

/// Cuts a byte stream with descriptors into frames.
///
/// ```
/// # use librorum_rpc::frame::{Header, Kind, Limits, Opcode, Splitter};
/// let mut splitter = Splitter::new(Limits::BEFORE_HELLO);
/// let bytes = Header::new(Kind::Ping, Opcode::NONE, 7).encode();
/// for byte in bytes {
///     assert!(splitter.next()?.is_none());
///     splitter.space()[0] = byte;
///     splitter.filled(1, Vec::new())?;
/// }
/// assert_eq!(splitter.next()?.map(|frame| frame.header.request_id), Some(7));
/// # Ok::<(), librorum_rpc::frame::FrameError>(())
/// ```
#[derive(Debug)]
pub struct Splitter {
    limits: Limits,
    stream: Vec<u8>,
    // What is in `stream` and not yet cut.
    start: usize,
    end: usize,
    // Where in the connection `stream[start]` lies.
    position: u64,
    // Where in the connection the next byte received will lie.
    received: u64,
    // A frame whose header is read and whose body is not there yet.
    current: Option<Current>,
    unclaimed: VecDeque<Batch>,
    pool: BufferPool,
}

/// Descriptors, and which bytes of the connection they came with.
#[derive(Debug)]
struct Batch {
    from: u64,
    to: u64,
    descriptors: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Current {
    header: Header,
    descriptors: Vec<OwnedFd>,
    // Only of a long one: its buffer, and how much of it is there.
    body: Option<(Pooled, usize)>,
}

impl Splitter {
    /// One for a fresh connection.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            stream: vec![0; STREAM_LEN],
            start: 0,
            end: 0,
            position: 0,
            received: 0,
            current: None,
            unclaimed: VecDeque::new(),
            // One being filled, and some that are being written to a disk.
            pool: BufferPool::new(8),
        }
    }

    /// Sets what frames may have whose headers are not read yet.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Where to receive bytes to. Never empty. How many of them were received has to be said by
    /// [`Self::filled`] before anything else is asked.
    pub fn space(&mut self) -> &mut [u8] {
        if let Some(Current { body: Some((body, have)), .. }) = &mut self.current
            && *have < body.len()
        {
            return &mut body[*have..];
        }
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        if self.stream.len() - self.end < HEADER_LEN + COPIED_LEN_MAX && self.start > 0 {
            self.stream.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.stream.len() {
            // Only if frames are not taken out by `next`.
            self.stream.resize(self.end * 2, 0);
        }
        &mut self.stream[self.end..]
    }

    /// Says that `n` bytes were received to the start of [`Self::space`], and what came with them.
    ///
    /// # Errors
    ///
    /// [`FrameError::Stray`] for descriptors in the middle of a frame.
    ///
    /// # Panics
    ///
    /// If `n` is larger than the space was.
    pub fn filled(&mut self, n: usize, fds: Vec<OwnedFd>) -> Result<(), FrameError> {
        // Widening: no machine has more than 64 bits of address.
        let to = self.received + n as u64;
        if !fds.is_empty() {
            self.unclaimed.push_back(Batch { from: self.received, to, descriptors: fds });
        }
        self.received = to;
        if let Some(Current { body: Some((body, have)), .. }) = &mut self.current
            && *have < body.len()
        {
            assert!(n <= body.len() - *have, "more was received than there was space for");
            *have += n;
            // It goes past the stream's own buffer, which is empty.
            self.position = to;
            return self.check_unclaimed();
        }
        assert!(n <= self.stream.len() - self.end, "more was received than there was space for");
        self.end += n;
        Ok(())
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    ///
    /// What makes the stream unusable from here on. Frames before it have been answered.
    #[expect(clippy::should_implement_trait, reason = "it is asked again after more came")]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.next_header()?.is_none() {
            return Ok(None);
        }
        let Some(Current { header, descriptors, mut body }) = self.current.take() else {
            return Ok(None);
        };
        let len = header.body_len();
        if body.is_none() && len > COPIED_LEN_MAX {
            let mut buffer = self.pool.take(len);
            let have = self.move_to(&mut buffer);
            body = Some((buffer, have));
        }
        let bytes = match body {
            Some((body, have)) if have < body.len() => {
                self.current = Some(Current { header, descriptors, body: Some((body, have)) });
                self.check_unclaimed()?;
                return Ok(None);
            }
            Some((body, _)) => Bytes::from_owner(body),
            None => {
                let Some(bytes) = self.stream[self.start..self.end].get(..len) else {
                    self.current = Some(Current { header, descriptors, body: None });
                    self.check_unclaimed()?;
                    return Ok(None);
                };
                let bytes = Bytes::copy_from_slice(bytes);
                self.advance(len);
                bytes
            }
        };
        let mut meta = bytes;
        let payload = meta.split_off(usize::from(header.meta_len));
        Ok(Some(Frame { header, meta, payload, descriptors }))
    }

    /// The header of the frame that [`Self::next`] will answer, as soon as it is there.
    ///
    /// # Errors
    ///
    /// As [`Self::next`].
    pub fn next_header(&mut self) -> Result<Option<Header>, FrameError> {
        if self.current.is_none() {
            self.current = self.begin()?;
        }
        if self.current.is_none() {
            self.check_unclaimed()?;
        }
        Ok(self.current.as_ref().map(|current| current.header))
    }

    /// Takes the frame of which [`Self::next_header`] was just answered out of the stream, if it is
    /// nothing but payload, as long as `payload`. What is there of it is moved to `payload`, and its
    /// number of bytes answered; the rest is for the caller to receive before anything else.
    pub fn divert(&mut self, payload: &mut [u8]) -> Option<usize> {
        let current = self.current.as_ref()?;
        let header = &current.header;
        let plain = header.meta_len == 0 && header.fd_count == 0 && current.body.is_none();
        if !plain || header.body_len() != payload.len() {
            return None;
        }
        self.current = None;
        let have = self.move_to(payload);
        let rest = (payload.len() - have) as u64;
        self.position += rest;
        self.received += rest;
        Some(have)
    }

    /// Whether the stream is between two frames: an end here is no loss.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.current.is_none() && self.start == self.end
    }

    /// Reads the next header, if it is there, and claims what comes with it.
    fn begin(&mut self) -> Result<Option<Current>, FrameError> {
        let Some(bytes) = self.stream[self.start..self.end].first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = Header::decode(bytes)?;
        self.limits.check(&header)?;
        let descriptors = self.claim(header.fd_count)?;
        self.advance(HEADER_LEN);
        Ok(Some(Current { header, descriptors, body: None }))
    }

    /// Moves what the stream has of a body to where the body is collected.
    fn move_to(&mut self, body: &mut [u8]) -> usize {
        let have = body.len().min(self.end - self.start);
        body[..have].copy_from_slice(&self.stream[self.start..self.start + have]);
        self.advance(have);
        have
    }

    /// Takes the descriptors of the frame that begins at `position`.
    fn claim(&mut self, expected: u8) -> Result<Vec<OwnedFd>, FrameError> {
        if expected == 0 {
            return Ok(Vec::new());
        }
        let descriptors = match self.unclaimed.front() {
            Some(batch) if batch.from <= self.position && self.position < batch.to => {
                self.unclaimed.pop_front().map(|batch| batch.descriptors).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        if descriptors.len() == usize::from(expected) {
            Ok(descriptors)
        } else {
            Err(FrameError::Claim { expected, found: descriptors.len() })
        }
    }

    /// Refuses descriptors that no frame can claim any more. With nothing left to cut, those are all
    /// but the ones that came with the first byte of a header of which the rest is awaited.
    fn check_unclaimed(&mut self) -> Result<(), FrameError> {
        let awaited = self.current.is_none() && self.start < self.end;
        let claimable = self.unclaimed.len() == 1
            && awaited
            && self
                .unclaimed
                .front()
                .is_some_and(|batch| batch.from <= self.position && self.position < batch.to);
        if self.unclaimed.is_empty() || claimable {
            return Ok(());
        }
        let count = self.unclaimed.iter().map(|batch| batch.descriptors.len()).sum();
        self.unclaimed.clear();
        Err(FrameError::Stray { count })
    }

    fn advance(&mut self, len: usize) {
        self.start += len;
        self.position += len as u64;
    }
}
