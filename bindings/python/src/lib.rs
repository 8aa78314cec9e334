//! The client for Python: `librorum`, whose documentation is `python/librorum/__init__.pyi`.
//!
//! It decides nothing: `librorum-rpc` is the client. Contents go to and come from buffers of Python by the
//! buffer protocol, and the interpreter is let go of around everything that waits.

mod buffers;
mod client;
mod errors;
mod file;
mod upload;

use pyo3::prelude::*;

/// The compiled half of the package.
#[pymodule]
mod _librorum {
    #[pymodule_export]
    use crate::client::{Client, Entry, Listing};
    #[pymodule_export]
    use crate::errors::Error;
    #[pymodule_export]
    use crate::file::{Mapping, RemoteFile};
    #[pymodule_export]
    use crate::upload::Upload;
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}

/// What a path of Python is in bytes: text, bytes, or an `os.PathLike`.
fn path_bytes(path: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    path.py().import("os")?.call_method1("fsencode", (path,))?.extract()
}
