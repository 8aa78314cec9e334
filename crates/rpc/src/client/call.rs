//! One request and its answer, tried again where that is right.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use librorum_sys::{clock, cpu};
use prost::Message;

use super::backoff::Backoff;
use super::connection::{Connection, Mailbox, Request, lock};
use super::session::{self, Session};
use super::{Backend, Client};
use crate::failure::{Failure, Reason};
use crate::frame::{Frame, Opcode, Prefix};

/// What a call has beside its message.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// How long it may take, with all tries.
    pub deadline: Option<Duration>,
    /// What the daemon's log calls it; 0 for nothing.
    pub trace_id: u64,
    /// The idempotency key of the next change; a fresh one if there is none. It is for exactly one
    /// change: the same key again is answered with what the first said.
    pub key: Option<[u8; 16]>,
    /// Ends the call early.
    pub cancel: Option<Cancel>,
}

/// Ends calls early. All of its clones are one.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    state: Arc<CancelState>,
}

#[derive(Debug, Default)]
struct CancelState {
    cancelled: AtomicBool,
    requests: Mutex<Vec<(Weak<Connection>, u64)>>,
    #[cfg(feature = "grpc")]
    notify: tokio::sync::Notify,
}

impl Cancel {
    /// One that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the calls that have it, now and from now on. Those under way are withdrawn from the daemon,
    /// whose answer ends them; one that was done by then succeeds.
    pub fn cancel(&self) {
        self.state.cancelled.store(true, Ordering::SeqCst);
        let requests = std::mem::take(&mut *lock(&self.state.requests));
        for (connection, id) in requests {
            if let Some(connection) = connection.upgrade() {
                connection.cancel(id);
            }
        }
        #[cfg(feature = "grpc")]
        self.state.notify.notify_waiters();
    }

    /// Whether it was.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state.cancelled.load(Ordering::SeqCst)
    }

    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// Withdraws this request, too, when cancelled.
    pub(super) fn watch(&self, connection: &Arc<Connection>, id: u64) {
        let mut requests = lock(&self.state.requests);
        // A client that makes many calls with one would collect what has long ended.
        if requests.len() >= 64 {
            requests.retain(|(connection, id)| {
                connection.upgrade().is_some_and(|connection| connection.awaits(*id))
            });
        }
        requests.push((Arc::downgrade(connection), id));
        drop(requests);
        if self.is_cancelled() {
            connection.cancel(id);
        }
    }

    /// Waits until it is cancelled.
    #[cfg(feature = "grpc")]
    pub(super) async fn cancelled(&self) {
        let notified = self.state.notify.notified();
        let mut notified = std::pin::pin!(notified);
        notified.as_mut().enable();
        if !self.is_cancelled() {
            notified.await;
        }
    }
}

pub(super) fn cancelled() -> Failure {
    Failure::new(Reason::Cancelled, "the caller withdrew the request")
}

/// When a request may be sent again after its connection was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Always: it changes nothing, or the same again.
    Always,
    /// With a key, by which the daemon knows it again.
    Keyed,
    /// Never: it is about something that ended with the connection.
    Never,
}

/// The limits of a call: when it ends at the latest, and who may end it.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds {
    pub(super) until: Option<Duration>,
    pub(super) cancel: Option<Cancel>,
    pub(super) trace_id: u64,
}

impl Bounds {
    pub(super) fn of(call: &CallOptions) -> Self {
        Self {
            until: call.deadline.map(|deadline| clock::monotonic().saturating_add(deadline)),
            cancel: call.cancel.clone(),
            trace_id: call.trace_id,
        }
    }

    /// What is left, as the wire says it.
    pub(super) fn prefix(&self, key: Option<[u8; 16]>) -> Result<Prefix, Failure> {
        if let Some(cancel) = &self.cancel {
            cancel.check()?;
        }
        let deadline_ms = match self.until {
            None => 0,
            Some(until) => {
                let left = until.saturating_sub(clock::monotonic());
                if left.is_zero() {
                    return Err(Failure::new(Reason::DeadlineExceeded, "the call's time is up"));
                }
                // 0 would be none.
                u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1)
            }
        };
        let cpu = cpu::current().map_or(0, |cpu| cpu.saturating_add(1));
        Ok(Prefix { deadline_ms, cpu, trace_id: self.trace_id, key })
    }

    /// Sends a request over a connection and waits for its answer.
    pub(super) fn call(
        &self,
        connection: &Arc<Connection>,
        request: &Request<'_>,
    ) -> Result<Frame, Failure> {
        let mailbox = Mailbox::new();
        let id = connection.submit(&mailbox, request)?;
        if let Some(cancel) = &self.cancel {
            cancel.watch(connection, id);
        }
        session::finish(connection, &mailbox, id, self.until)
    }
}

/// Whether another try may help.
fn passes(failure: &Failure) -> bool {
    failure.reason == Reason::Disconnected
        || (failure.reason == Reason::Overloaded && failure.retry_after_ms > 0)
}

impl Client {
    /// Does something until it succeeds, fails for good, or time is up.
    pub(super) fn repeatedly<T>(
        &self,
        repeat: Repeat,
        bounds: &Bounds,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut backoff = None;
        loop {
            let failure = match attempt() {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            // An overloaded daemon has not begun, so even what is done once may be asked again.
            if !passes(&failure)
                || (repeat == Repeat::Never && failure.reason == Reason::Disconnected)
            {
                return Err(failure);
            }
            let backoff = backoff.get_or_insert_with(|| Backoff::new(self.inner.options.retry_for));
            let Some(wait) = backoff.next(failure.retry_after_ms) else { return Err(failure) };
            if bounds.until.is_some_and(|until| clock::monotonic() + wait >= until) {
                return Err(failure);
            }
            tracing::debug!(%failure, ?wait, "a request is tried again");
            clock::sleep(wait);
        }
    }

    /// An operation by its message, over whichever transport.
    pub(super) fn unary<Q: Message, R: Message + Default>(
        &self,
        opcode: Opcode,
        request: &Q,
        repeat: Repeat,
    ) -> Result<R, Failure> {
        let meta = self.unary_encoded(opcode, &request.encode_to_vec(), &[], repeat)?;
        R::decode(meta).map_err(|error| {
            Failure::new(Reason::Protocol, format!("the answer to {opcode:?}: {error}"))
        })
    }

    /// The same on encoded messages; the payload is only for frames.
    pub(super) fn unary_encoded(
        &self,
        opcode: Opcode,
        message: &[u8],
        payload: &[u8],
        repeat: Repeat,
    ) -> Result<Bytes, Failure> {
        let bounds = Bounds::of(&self.call);
        let key = self.key_for(repeat);
        match &self.inner.backend {
            Backend::Frames(frames) => self.repeatedly(repeat, &bounds, || {
                let session = frames.session(&self.inner)?;
                let prefix = bounds.prefix(key)?;
                let request = Request { opcode, prefix, message, payload, asks: 0 };
                bounds.call(&session.control, &request).map(|frame| frame.meta)
            }),
            #[cfg(feature = "grpc")]
            Backend::Grpc(grpc) => {
                // Not every daemon remembers keys that came by gRPC.
                let repeat = if repeat == Repeat::Keyed { Repeat::Never } else { repeat };
                let message = Bytes::copy_from_slice(message);
                self.repeatedly(repeat, &bounds, || {
                    grpc.unary(opcode, message.clone(), &bounds.prefix(key)?, &bounds)
                })
            }
        }
    }

    pub(super) fn key_for(&self, repeat: Repeat) -> Option<[u8; 16]> {
        (repeat == Repeat::Keyed).then(|| self.call.key.unwrap_or_else(|| self.fresh_key()))
    }

    /// Tells the daemon something whose answer nobody needs.
    pub(super) fn tell<Q: Message>(session: &Session, opcode: Opcode, request: &Q) {
        let request = Request {
            opcode,
            prefix: Prefix::default(),
            message: &request.encode_to_vec(),
            payload: &[],
            asks: 0,
        };
        let mailbox = Mailbox::new();
        match session.control.submit(&mailbox, &request) {
            Ok(id) => session.control.forget(id),
            // With the connection everything ends that could have been told of.
            Err(failure) => tracing::debug!(%failure, ?opcode, "the daemon could not be told"),
        }
    }
}
