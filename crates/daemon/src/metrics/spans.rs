//! Finished operations on their way to an exporter.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use super::{Operation, Transport, trace};

/// An operation that has ended, for who keeps it.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// Its name.
    pub name: &'static str,
    /// How its bytes went.
    pub transport: Transport,
    /// When it began.
    pub started_unix_ns: i64,
    /// How long it took.
    pub took_ns: u64,
    /// Bytes of files that it moved.
    pub bytes: u64,
    /// A status code, 0 for success.
    pub code: u32,
    /// The path it was about, as much as is kept of one.
    pub path: Box<[u8]>,
    /// Who asked.
    pub uid: u32,
    /// The connection it came by.
    pub connection: u64,
    /// What the client calls the request, 0 for nothing.
    pub trace_id: u64,
    /// Why the bytes did not go the way that was wanted first.
    pub demoted_because: Option<&'static str>,
}

/// Takes finished operations. Called on the thread that served the operation, so it must not wait.
pub trait SpanSink: Send + Sync + fmt::Debug {
    /// Takes one, or drops and counts it.
    fn take(&self, span: FinishedSpan);
}

/// The way out, closed unless an exporter is there: then recording costs one load.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    open: AtomicBool,
    sink: RwLock<Option<Arc<dyn SpanSink>>>,
}

impl Outlet {
    pub(super) fn set(&self, sink: Option<Arc<dyn SpanSink>>) {
        let open = sink.is_some();
        *self.sink.write().unwrap_or_else(PoisonError::into_inner) = sink;
        self.open.store(open, Relaxed);
    }

    pub(super) fn offer(&self, operation: &Operation<'_>, took_ns: u64) {
        if !self.open.load(Relaxed) {
            return;
        }
        // Only a change of the configuration writes.
        let sink = self.sink.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sink) = &*sink else { return };
        let path = &operation.path[..operation.path.len().min(trace::PATH_BYTES_MAX)];
        sink.take(FinishedSpan {
            name: operation.name,
            transport: operation.transport,
            started_unix_ns: trace::started_unix_ns(took_ns),
            took_ns,
            bytes: operation.bytes,
            code: operation.code,
            path: path.into(),
            uid: operation.uid,
            connection: operation.connection,
            trace_id: operation.trace_id,
            demoted_because: operation.demoted_because,
        });
    }
}
