//! Reading: into buffers of Python's, or in place.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use librorum_rpc::client::{self as rpc, Mapped};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::buffers::Buffer;
use crate::client::{Entry, closed};
use crate::errors::raised;

/// A file that is open for reading.
#[pyclass(frozen, module = "librorum")]
pub(crate) struct RemoteFile {
    file: RwLock<Option<Arc<rpc::RemoteFile>>>,
    path: Vec<u8>,
    // Where `readinto` goes on.
    position: Mutex<u64>,
}

impl RemoteFile {
    pub(crate) fn new(file: rpc::RemoteFile, path: Vec<u8>) -> Self {
        Self { file: RwLock::new(Some(Arc::new(file))), path, position: Mutex::new(0) }
    }

    fn get(&self) -> PyResult<Arc<rpc::RemoteFile>> {
        self.file
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(|| closed("file"))
    }
}

#[pymethods]
impl RemoteFile {
    #[getter]
    fn entry(&self) -> PyResult<Entry> {
        Ok(Entry::new(self.get()?.entry().clone()))
    }

    #[getter]
    fn size(&self) -> PyResult<u64> {
        Ok(self.get()?.len())
    }

    #[pyo3(signature = (buffer, offset=0))]
    fn read_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>, offset: u64) -> PyResult<usize> {
        let file = self.get()?;
        let mut buffer = Buffer::writable(buffer)?;
        let bytes = buffer.bytes_mut();
        let read = py.detach(move || file.read_into(offset, bytes));
        read.map_err(|failure| raised(py, &failure, Some(&self.path)))
    }

    fn readinto(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        let file = self.get()?;
        let mut buffer = Buffer::writable(buffer)?;
        let bytes = buffer.bytes_mut();
        // Two threads that read on from the same place would get the same bytes.
        let read = py.detach(move || {
            let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
            let read = file.read_into(*position, bytes)?;
            *position += read as u64;
            Ok(read)
        });
        read.map_err(|failure| raised(py, &failure, Some(&self.path)))
    }

    fn tell(&self, py: Python<'_>) -> u64 {
        py.detach(|| *self.position.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[pyo3(signature = (offset, whence=0))]
    fn seek(&self, py: Python<'_>, offset: i64, whence: i32) -> PyResult<u64> {
        let end = self.get()?.len();
        let moved = py.detach(|| {
            let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
            let from = match whence {
                0 => 0,
                1 => *position,
                2 => end,
                _ => return None,
            };
            *position = from.checked_add_signed(offset)?;
            Some(*position)
        });
        moved.ok_or_else(|| PyValueError::new_err("there is no such place in a file"))
    }

    #[pyo3(signature = (offset=0, length=None))]
    fn map(&self, py: Python<'_>, offset: u64, length: Option<usize>) -> PyResult<Mapping> {
        let file = self.get()?;
        let mapped = py.detach(move || {
            let left = file.len().saturating_sub(offset);
            let length = length.unwrap_or_else(|| usize::try_from(left).unwrap_or(usize::MAX));
            file.map_range(offset, length)
        });
        mapped.map(Mapping).map_err(|failure| raised(py, &failure, Some(&self.path)))
    }

    fn close(&self, py: Python<'_>) {
        let file = self.file.write().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(file));
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }
}

/// Bytes of a file, in place. They are there as long as it, or any view of it, is.
#[pyclass(frozen, module = "librorum")]
pub(crate) struct Mapping(Mapped);

#[pymethods]
impl Mapping {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    #[getter]
    fn in_place(&self) -> bool {
        self.0.is_in_place()
    }

    /// # Safety
    ///
    /// Only Python calls it, with a view to be filled.
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let bytes: &[u8] = &slf.get().0;
        let len = ffi::Py_ssize_t::try_from(bytes.len())?;
        let start = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the view is Python's to fill. It gets a reference to this object, so the bytes, which
        // never move or change, stay until it is released; they are said to be read-only, so a view to
        // be written to is refused there.
        let answer = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, 1, flags) };
        if answer == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
