//! Writing: all of a file, which appears whole when it is committed.

use std::sync::{Arc, Mutex, PoisonError};

use librorum_rpc::client as rpc;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::buffers::Buffer;
use crate::client::{Entry, closed};
use crate::errors::raised;

/// A file that is being written.
#[pyclass(frozen, module = "librorum")]
pub(crate) struct Upload {
    upload: Mutex<Option<Arc<rpc::Upload>>>,
    path: Vec<u8>,
    // Where `write` goes on.
    position: Mutex<u64>,
}

impl Upload {
    pub(crate) fn new(upload: Arc<rpc::Upload>, path: Vec<u8>) -> Self {
        Self { upload: Mutex::new(Some(upload)), path, position: Mutex::new(0) }
    }

    fn get(&self) -> PyResult<Arc<rpc::Upload>> {
        let upload = self.upload.lock().unwrap_or_else(PoisonError::into_inner);
        upload.clone().ok_or_else(|| closed("upload"))
    }

    /// The upload, if nobody is writing. Nobody can begin to while it is looked at.
    fn take(&self) -> PyResult<rpc::Upload> {
        let mut slot = self.upload.lock().unwrap_or_else(PoisonError::into_inner);
        let upload = slot.take().ok_or_else(|| closed("upload"))?;
        Arc::try_unwrap(upload).map_err(|upload| {
            *slot = Some(upload);
            PyRuntimeError::new_err("another thread is writing to this upload")
        })
    }
}

#[pymethods]
impl Upload {
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let upload = self.get()?;
        let buffer = Buffer::new(data)?;
        let bytes = buffer.bytes();
        let written = py.detach(move || {
            let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
            upload.write_at(*position, bytes)?;
            *position += bytes.len() as u64;
            Ok(())
        });
        written.map_err(|failure| raised(py, &failure, Some(&self.path)))?;
        Ok(bytes.len())
    }

    fn write_at(&self, py: Python<'_>, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let upload = self.get()?;
        let buffer = Buffer::new(data)?;
        let bytes = buffer.bytes();
        let written = py.detach(move || upload.write_at(offset, bytes));
        written.map_err(|failure| raised(py, &failure, Some(&self.path)))
    }

    #[getter]
    fn received(&self) -> PyResult<Vec<(u64, u64)>> {
        let received = self.get()?.received().into_iter();
        Ok(received.map(|range| (range.start, range.end)).collect())
    }

    fn commit(&self, py: Python<'_>) -> PyResult<Entry> {
        let upload = self.take()?;
        let committed = py.detach(move || upload.commit());
        committed.map(Entry::new).map_err(|failure| raised(py, &failure, Some(&self.path)))
    }

    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        let upload = self.take()?;
        py.detach(move || upload.abort());
        Ok(())
    }

    fn close(&self, py: Python<'_>) {
        let upload = self.upload.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(move || drop(upload));
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Commits, unless an exception says that the content is not complete.
    #[pyo3(signature = (exception, *_rest))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exception: Option<&Bound<'_, PyAny>>,
        _rest: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        let is_open = self.upload.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        match (is_open, exception) {
            // It was committed or given up within.
            (false, _) => Ok(()),
            (true, None) => self.commit(py).map(drop),
            // With a key it can be gone on with, so it is not given up here.
            (true, Some(_)) => {
                self.close(py);
                Ok(())
            }
        }
    }
}
