//! The smallest binary codec that can be written down in `docs/format.md`: fixed-width
//! little-endian integers and length-prefixed bytes, appended and taken in order.

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("{what}: {needed} bytes needed at offset {offset}, {left} left")]
    Short { what: &'static str, offset: usize, needed: usize, left: usize },
    /// A field holds a value that it may not hold.
    #[error("{what}: invalid value {value}")]
    Invalid { what: &'static str, value: u64 },
    /// The checksum does not match.
    #[error("{what}: checksum mismatch")]
    Checksum { what: &'static str },
    /// Bytes are left over.
    #[error("{what}: {left} bytes left over")]
    Trailing { what: &'static str, left: usize },
}

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty writer with room for `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends eight bytes in two's complement.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends bytes whose length the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a `u32` length and the bytes. Bytes beyond 4 GiB are a bug of the caller.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u32::try_from(bytes.len()).expect("encoded fields are far below 4 GiB");
        self.u32(len).raw(bytes)
    }

    /// What has been written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The finished buffer.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes fields off the front of a slice.
#[derive(Debug)]
pub struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`; `what` names them in errors.
    #[must_use]
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, offset: 0 }
    }

    /// Takes `len` bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Short`] if fewer are left.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.bytes.len() - self.offset;
        if left < len {
            return Err(DecodeError::Short {
                what: self.what,
                offset: self.offset,
                needed: len,
                left,
            });
        }
        let taken = &self.bytes[self.offset..self.offset + len];
        self.offset += len;
        Ok(taken)
    }

    /// Takes exactly `N` bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Short`] if fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
    }

    /// Takes one byte.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Short`] at the end.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes two bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Short`] at the end.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Takes four bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Short`] at the end.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes eight bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Short`] at the end.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes eight bytes in two's complement.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Short`] at the end.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// Takes a `u32` length and that many bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Short`] if the length runs past the end.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()?;
        self.raw(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// An error for a field that holds `value`, which it may not.
    #[must_use]
    pub fn invalid(&self, value: u64) -> DecodeError {
        DecodeError::Invalid { what: self.what, value }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// Ends the reading: nothing may be left.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Trailing`] if bytes are left.
    pub fn end(self) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            left => Err(DecodeError::Trailing { what: self.what, left }),
        }
    }
}
