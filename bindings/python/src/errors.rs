//! Failures as exceptions.

use librorum_rpc::{Failure, Reason};
use pyo3::exceptions::{PyConnectionError, PyOSError, PyTimeoutError};
use pyo3::prelude::*;

pyo3::create_exception!(
    librorum,
    Error,
    PyOSError,
    "A failure for which Python has no exception of its own."
);

/// The exception for a failure about `path`. With an errno it is the `OSError` that Python has for it,
/// such as `FileNotFoundError`.
pub(crate) fn raised(py: Python<'_>, failure: &Failure, path: Option<&[u8]>) -> PyErr {
    let message = failure.to_message();
    let error = match (failure.errno(), path) {
        (Some(errno), Some(path)) => {
            let path = String::from_utf8_lossy(path).into_owned();
            PyOSError::new_err((errno, message.message, path))
        }
        (Some(errno), None) => PyOSError::new_err((errno, message.message)),
        (None, _) if failure.reason == Reason::Disconnected => {
            PyConnectionError::new_err(message.message)
        }
        (None, _) if failure.reason == Reason::DeadlineExceeded => {
            PyTimeoutError::new_err(message.message)
        }
        (None, _) => Error::new_err(message.message),
    };
    let value = error.value(py);
    let noted = value
        .setattr("kind", message.kind)
        .and_then(|()| value.setattr("code", message.code))
        .and_then(|()| value.setattr("retry_after", f64::from(message.retry_after_ms) / 1000.0));
    // Memory may be short; that is the more urgent news.
    noted.err().unwrap_or(error)
}
