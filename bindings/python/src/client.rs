//! Connections, and the small operations.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use librorum_rpc::client::{self as rpc, CallOptions, ClientOptions, Target, Transport};
use librorum_rpc::{Failure, proto::v1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::raised;
use crate::file::RemoteFile;
use crate::path_bytes;
use crate::upload::Upload;

/// A connection to a daemon.
#[pyclass(frozen, module = "librorum")]
pub(crate) struct Client(RwLock<Option<rpc::Client>>);

/// What a name stands for.
#[pyclass(frozen, module = "librorum")]
pub(crate) struct Entry(v1::Entry);

/// The entries of a directory.
#[pyclass(frozen, module = "librorum")]
pub(crate) struct Listing(Mutex<Told>);

/// Operation, path, way, bytes, and why not in a faster way.
type Use = (&'static str, Vec<u8>, String, u64, Option<String>);

struct Told {
    listing: rpc::Listing,
    errors: usize,
}

pub(crate) fn closed(what: &str) -> PyErr {
    PyValueError::new_err(format!("the {what} is closed"))
}

/// Seconds of Python.
fn duration(seconds: f64, what: &str) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| PyValueError::new_err(format!("{what}: {error}")))
}

fn replace(name: &str, may_exchange: bool) -> PyResult<v1::Replace> {
    match name {
        "yes" => Ok(v1::Replace::Yes),
        "no" => Ok(v1::Replace::No),
        "exchange" if may_exchange => Ok(v1::Replace::Exchange),
        _ => Err(PyValueError::new_err(format!("replace cannot be {name:?}"))),
    }
}

impl Client {
    fn get(&self) -> PyResult<rpc::Client> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(|| closed("client"))
    }

    /// Calls without holding the interpreter.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        path: &[u8],
        call: impl FnOnce(&rpc::Client) -> Result<T, Failure> + Send,
    ) -> PyResult<T> {
        let client = self.get()?;
        // Also the last reference is dropped there: it may wait for a thread.
        py.detach(move || call(&client)).map_err(|failure| raised(py, &failure, Some(path)))
    }
}

fn entry(entry: Option<v1::Entry>) -> Entry {
    Entry(entry.unwrap_or_default())
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (target, *, token=Vec::new(), name=None, expected_uid=None, forbid=Vec::new(),
                        connect_timeout=10.0, retry_for=10.0, deadline=None))]
    #[expect(clippy::too_many_arguments, reason = "they have names in Python")]
    #[expect(clippy::needless_pass_by_value, reason = "what Python gives is taken so")]
    fn new(
        py: Python<'_>,
        target: &Bound<'_, PyAny>,
        token: Vec<u8>,
        name: Option<String>,
        expected_uid: Option<u32>,
        forbid: Vec<String>,
        connect_timeout: f64,
        retry_for: f64,
        deadline: Option<f64>,
    ) -> PyResult<Self> {
        use std::os::unix::ffi::OsStringExt;
        let path = path_bytes(target)?;
        let target = match String::from_utf8(path.clone()) {
            Ok(text) if ["http://", "https://", "unix:"].iter().any(|at| text.starts_with(at)) => {
                Target::Grpc(text)
            }
            _ => Target::Socket(std::ffi::OsString::from_vec(path.clone()).into()),
        };
        let mut options = ClientOptions {
            token: token.into(),
            expected_uid,
            connect_timeout: duration(connect_timeout, "connect_timeout")?,
            retry_for: duration(retry_for, "retry_for")?,
            call: CallOptions {
                deadline: deadline.map(|deadline| duration(deadline, "deadline")).transpose()?,
                ..CallOptions::default()
            },
            ..ClientOptions::default()
        };
        options.name =
            name.unwrap_or_else(|| concat!("librorum-python ", env!("CARGO_PKG_VERSION")).into());
        for way in &forbid {
            options.forbid.push(match way.as_str() {
                "fd" => Transport::Descriptor,
                "arena" => Transport::Arena,
                "inline" => Transport::Inline,
                _ => return Err(PyValueError::new_err(format!("forbid cannot have {way:?}"))),
            });
        }
        let client = py
            .detach(|| rpc::Client::connect(target, options))
            .map_err(|failure| raised(py, &failure, Some(&path)))?;
        Ok(Self(RwLock::new(Some(client))))
    }

    #[pyo3(signature = (path, *, volume=""))]
    fn stat(&self, py: Python<'_>, path: &Bound<'_, PyAny>, volume: &str) -> PyResult<Entry> {
        let path = path_bytes(path)?;
        let request = v1::StatRequest {
            volume: volume.to_owned(),
            path: Bytes::copy_from_slice(&path),
            ..Default::default()
        };
        self.call(py, &path, |client| client.stat(&request)).map(|answer| entry(answer.entry))
    }

    #[pyo3(signature = (path=None, *, recursive=false, volume=""))]
    fn list(
        &self,
        path: Option<&Bound<'_, PyAny>>,
        recursive: bool,
        volume: &str,
    ) -> PyResult<Listing> {
        let path = path.map(path_bytes).transpose()?.unwrap_or_default().into();
        let volume = volume.to_owned();
        let request = v1::ListRequest { volume, path, recursive, ..Default::default() };
        let listing = self.get()?.entries(request);
        Ok(Listing(Mutex::new(Told { listing, errors: 0 })))
    }

    #[pyo3(signature = (path, mode=0o777, *, parents=false, volume=""))]
    fn mkdir(
        &self,
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        mode: u32,
        parents: bool,
        volume: &str,
    ) -> PyResult<Entry> {
        let path = path_bytes(path)?;
        let request = v1::MakeDirectoryRequest {
            volume: volume.to_owned(),
            path: Bytes::copy_from_slice(&path),
            mode,
            parents,
        };
        self.call(py, &path, |client| client.make_directory(&request))
            .map(|answer| entry(answer.entry))
    }

    #[pyo3(signature = (path, *, recursive=false, missing_ok=false, directory=false, volume=""))]
    fn remove(
        &self,
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        recursive: bool,
        missing_ok: bool,
        directory: bool,
        volume: &str,
    ) -> PyResult<u64> {
        let path = path_bytes(path)?;
        let request = v1::RemoveRequest {
            volume: volume.to_owned(),
            path: Bytes::copy_from_slice(&path),
            recursive,
            missing_ok,
            directory,
        };
        let answer = self.call(py, &path, |client| client.remove(&request))?;
        match answer.errors.first() {
            Some(left) => Err(in_part(py, left)),
            None => Ok(answer.removed_count),
        }
    }

    #[pyo3(signature = (source, target, *, replace="yes", volume=""))]
    fn rename(
        &self,
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        replace: &str,
        volume: &str,
    ) -> PyResult<Entry> {
        let path = path_bytes(source)?;
        let request = v1::RenameRequest {
            volume: volume.to_owned(),
            from: Bytes::copy_from_slice(&path),
            to: path_bytes(target)?.into(),
            replace: self::replace(replace, true)?.into(),
        };
        self.call(py, &path, |client| client.rename(&request)).map(|answer| entry(answer.entry))
    }

    #[pyo3(signature = (source, target, *, replace="yes", volume=""))]
    fn copy(
        &self,
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        replace: &str,
        volume: &str,
    ) -> PyResult<Entry> {
        let path = path_bytes(source)?;
        let request = v1::CopyRequest {
            volume: volume.to_owned(),
            from: Bytes::copy_from_slice(&path),
            to: path_bytes(target)?.into(),
            replace: self::replace(replace, false)?.into(),
        };
        self.call(py, &path, |client| client.copy(&request)).map(|answer| entry(answer.entry))
    }

    #[pyo3(signature = (path, target, *, volume=""))]
    fn symlink(
        &self,
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        volume: &str,
    ) -> PyResult<Entry> {
        let path = path_bytes(path)?;
        let request = v1::MakeSymlinkRequest {
            volume: volume.to_owned(),
            path: Bytes::copy_from_slice(&path),
            target: path_bytes(target)?.into(),
        };
        self.call(py, &path, |client| client.make_symlink(&request))
            .map(|answer| entry(answer.entry))
    }

    #[pyo3(signature = (*, seal=false, volume=""))]
    fn sync(&self, py: Python<'_>, seal: bool, volume: &str) -> PyResult<()> {
        let request = v1::SyncRequest { volume: volume.to_owned(), seal };
        self.call(py, b"", |client| client.sync(&request)).map(drop)
    }

    #[pyo3(signature = (path, *, volume=""))]
    fn open(&self, py: Python<'_>, path: &Bound<'_, PyAny>, volume: &str) -> PyResult<RemoteFile> {
        let path = path_bytes(path)?;
        let file = self.call(py, &path, |client| client.open(volume, &path))?;
        Ok(RemoteFile::new(file, path))
    }

    #[pyo3(signature = (path, *, size_hint=0, mode=0o644, replace="yes", durable=false,
                        mtime_ns=None, key=None, blake3=None, volume=""))]
    #[expect(clippy::too_many_arguments, reason = "they have names in Python")]
    fn create(
        &self,
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        size_hint: u64,
        mode: u32,
        replace: &str,
        durable: bool,
        mtime_ns: Option<i64>,
        key: Option<[u8; 16]>,
        blake3: Option<[u8; 32]>,
        volume: &str,
    ) -> PyResult<Upload> {
        let path = path_bytes(path)?;
        let options = rpc::WriteOptions {
            size_hint,
            mode,
            replace: self::replace(replace, false)?,
            mtime: mtime_ns.map(|at| v1::Timestamp {
                seconds: at.div_euclid(1_000_000_000),
                nanos: u32::try_from(at.rem_euclid(1_000_000_000)).unwrap_or(0),
            }),
            durable,
            key,
            blake3,
        };
        let upload = self.call(py, &path, |client| client.create(volume, &path, options))?;
        Ok(Upload::new(Arc::new(upload), path))
    }

    fn transports(&self) -> PyResult<Vec<Use>> {
        let uses = self.get()?.transports().into_iter();
        Ok(uses
            .map(|used| {
                let way = used.transport.to_string();
                (used.operation, used.path, way, used.bytes, used.demoted_because)
            })
            .collect())
    }

    fn close(&self, py: Python<'_>) {
        let client = self.0.write().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(client));
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }
}

fn in_part(py: Python<'_>, left: &v1::PathError) -> PyErr {
    let failure = Failure::from_message(&left.error.clone().unwrap_or_default());
    raised(py, &failure, Some(&left.path))
}

#[pymethods]
impl Listing {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Entry>> {
        let (next, left) = py.detach(|| {
            let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let next = told.listing.next();
            let left = match &next {
                Some(_) => None,
                // What could not be read is told at the end, once each.
                None => told.listing.errors().get(told.errors).cloned(),
            };
            told.errors += usize::from(left.is_some());
            (next, left)
        });
        match (next, left) {
            (Some(Ok(next)), _) => Ok(Some(Entry(next))),
            (Some(Err(failure)), _) => Err(raised(py, &failure, None)),
            (None, Some(left)) => Err(in_part(py, &left)),
            (None, None) => Ok(None),
        }
    }
}

/// Nanoseconds since 1970.
fn nanoseconds(time: Option<v1::Timestamp>) -> i128 {
    let time = time.unwrap_or_default();
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

impl Entry {
    pub(crate) fn new(entry: v1::Entry) -> Self {
        Self(entry)
    }
}

#[pymethods]
impl Entry {
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.path)
    }
    #[getter]
    fn ino(&self) -> u64 {
        self.0.ino
    }
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind() {
            v1::Kind::Unknown => "unknown",
            v1::Kind::Regular => "regular",
            v1::Kind::Directory => "directory",
            v1::Kind::Symlink => "symlink",
            v1::Kind::BlockDevice => "block_device",
            v1::Kind::CharDevice => "char_device",
            v1::Kind::Fifo => "fifo",
            v1::Kind::Socket => "socket",
        }
    }
    #[getter]
    fn mode(&self) -> u32 {
        self.0.mode
    }
    #[getter]
    fn nlink(&self) -> u32 {
        self.0.nlink
    }
    #[getter]
    fn uid(&self) -> u32 {
        self.0.uid
    }
    #[getter]
    fn gid(&self) -> u32 {
        self.0.gid
    }
    #[getter]
    fn size(&self) -> u64 {
        self.0.size_bytes
    }
    #[getter]
    fn allocated(&self) -> u64 {
        self.0.allocated_bytes
    }
    #[getter]
    fn content_version(&self) -> u64 {
        self.0.content_version
    }
    #[getter]
    fn atime_ns(&self) -> i128 {
        nanoseconds(self.0.atime)
    }
    #[getter]
    fn mtime_ns(&self) -> i128 {
        nanoseconds(self.0.mtime)
    }
    #[getter]
    fn ctime_ns(&self) -> i128 {
        nanoseconds(self.0.ctime)
    }
    #[getter]
    fn btime_ns(&self) -> i128 {
        nanoseconds(self.0.btime)
    }
    #[getter]
    fn symlink_target<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.symlink_target)
    }

    fn __repr__(&self) -> String {
        let path = String::from_utf8_lossy(&self.0.path);
        format!("<librorum.Entry {path:?} {} of {} bytes>", self.kind(), self.0.size_bytes)
    }
}
