//! Memory of Python's, by the buffer protocol.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

/// A buffer that stays where it is until this is dropped.
pub(crate) struct Buffer(PyUntypedBuffer);

impl Buffer {
    /// The contiguous memory of any object that has some.
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        Ok(Self(buffer))
    }

    /// The same, to be written to.
    pub(crate) fn writable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = Self::new(object)?;
        if buffer.0.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        Ok(buffer)
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let len = self.0.len_bytes();
        if len == 0 {
            return &[];
        }
        // SAFETY: Python keeps the memory where it is while the view is held, which `self` does, and it
        // is contiguous. A thread of Python that changes it while it is read breaks its own program's
        // rules, as it does with `file.write` of Python itself.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast(), len) }
    }

    /// Its bytes, to be written to. It has to come from [`Self::writable`].
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.0.len_bytes();
        if len == 0 || self.0.readonly() {
            return &mut [];
        }
        // SAFETY: as for `bytes`, with `file.readinto` of Python itself.
        unsafe { std::slice::from_raw_parts_mut(self.0.buf_ptr().cast(), len) }
    }
}
