//! Many small requests at once: one write for all that there is credit for, answers in any order.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::call::{Bounds, Repeat};
use super::connection::{Connection, Event, Mailbox, NoSink, Request, failure_of};
use super::{Backend, Client};
use crate::failure::{Failure, Reason};
use crate::frame::{Kind, Opcode};

/// Requests to be sent together; made by [`Client::pipeline`].
///
/// They run side by side: one must not depend on another. They are not tried again when the connection
/// is lost; each then answers [`Reason::Disconnected`].
#[derive(Debug)]
pub struct Pipeline<'a> {
    client: &'a Client,
    // All messages, one behind the other.
    messages: Vec<u8>,
    requests: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    opcode: Opcode,
    end: usize,
    key: Option<[u8; 16]>,
}

/// Which answer belongs to a request of a [`Pipeline`].
pub struct Ticket<R> {
    index: usize,
    response: PhantomData<fn() -> R>,
}

impl<R> fmt::Debug for Ticket<R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ticket").field("index", &self.index).finish()
    }
}

/// The answers to a [`Pipeline`].
#[derive(Debug)]
pub struct Answers {
    answers: Vec<Option<Result<Bytes, Failure>>>,
}

impl Answers {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Takes the answer to one request.
    ///
    /// # Errors
    ///
    /// What the daemon answers; [`Reason::Internal`] for a ticket of another pipeline.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one answer")]
    pub fn take<R: Message + Default>(&mut self, ticket: Ticket<R>) -> Result<R, Failure> {
        let answer =
            self.answers.get_mut(ticket.index).and_then(Option::take).ok_or_else(|| {
                Failure::new(Reason::Internal, "a ticket of another pipeline was shown")
            })??;
        R::decode(answer)
            .map_err(|error| Failure::new(Reason::Protocol, format!("an answer: {error}")))
    }
}

impl Client {
    /// Begins a batch of requests.
    ///
    /// ```no_run
    /// # use librorum_rpc::{Failure, client::Client, proto::v1};
    /// # fn example(client: &Client) -> Result<(), Failure> {
    /// let mut pipeline = client.pipeline();
    /// let a = pipeline.stat(&v1::StatRequest { path: "a".into(), ..Default::default() });
    /// let b = pipeline.stat(&v1::StatRequest { path: "b".into(), ..Default::default() });
    /// let mut answers = pipeline.send()?;
    /// println!("{:?} {:?}", answers.take(a)?, answers.take(b)?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn pipeline(&self) -> Pipeline<'_> {
        Pipeline { client: self, messages: Vec::new(), requests: Vec::new() }
    }
}

impl Pipeline<'_> {
    /// How many requests it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn add<Q: Message, R>(
        &mut self,
        opcode: Opcode,
        request: &Q,
        repeat: Repeat,
    ) -> Ticket<R> {
        let index = self.requests.len();
        let key = self.client.key_for(repeat);
        match request.encode(&mut self.messages) {
            Ok(()) => {}
            Err(error) => unreachable!("a vector grows as needed: {error}"),
        }
        self.requests.push(Planned { opcode, end: self.messages.len(), key });
        Ticket { index, response: PhantomData }
    }

    /// Sends the requests and waits for all answers.
    ///
    /// # Errors
    ///
    /// If nothing could be sent at all; the failure of a single request is its answer.
    pub fn send(self) -> Result<Answers, Failure> {
        let bounds = Bounds::of(&self.client.call);
        let prefix = bounds.prefix(None)?;
        let mut start = 0;
        let requests: Vec<Request<'_>> = self
            .requests
            .iter()
            .map(|planned| {
                let message = &self.messages[start..planned.end];
                start = planned.end;
                let prefix = crate::frame::Prefix { key: planned.key, cpu: 0, ..prefix };
                Request { opcode: planned.opcode, prefix, message, payload: &[], asks: 0 }
            })
            .collect();
        match &self.client.inner.backend {
            Backend::Frames(frames) => {
                let session = frames.session(&self.client.inner)?;
                run(&session.control, &requests, &bounds)
            }
            #[cfg(feature = "grpc")]
            Backend::Grpc(grpc) => {
                let calls = requests.iter().map(|request| {
                    (request.opcode, Bytes::copy_from_slice(request.message), request.prefix)
                });
                let answers = grpc.unary_many(calls, &bounds)?;
                Ok(Answers { answers: answers.into_iter().map(Some).collect() })
            }
        }
    }
}

fn run(
    connection: &Arc<Connection>,
    requests: &[Request<'_>],
    bounds: &Bounds,
) -> Result<Answers, Failure> {
    let mailbox = Mailbox::new();
    let mut answers: Vec<Option<Result<Bytes, Failure>>> = Vec::new();
    answers.resize_with(requests.len(), || None);
    // Runs of consecutive ids: the first id, the first index, how many.
    let mut sent: Vec<(u64, usize, usize)> = Vec::new();
    let mut next = 0;
    let mut open = 0_usize;
    // Asking for credit after every answer would send requests one by one.
    let mut refill_at = 0;
    let failure = loop {
        if next < requests.len() && open <= refill_at {
            match connection.submit_some(&mailbox, &requests[next..], open > 0) {
                Ok(Some((first, count))) => {
                    if let Some(cancel) = &bounds.cancel {
                        (0..count as u64).for_each(|at| cancel.watch(connection, first + 2 * at));
                    }
                    sent.push((first, next, count));
                    next += count;
                    open += count;
                    refill_at = open / 2;
                }
                Ok(None) => refill_at = open - 1,
                Err(failure) => break failure,
            }
        }
        if open == 0 {
            return Ok(Answers { answers });
        }
        let frame = match connection.wait(&mailbox, &mut NoSink, bounds.until) {
            Ok(Event::Frame(frame)) if frame.header.kind == Kind::Res => frame,
            Ok(_) => {
                let failure = Failure::new(Reason::Protocol, "bytes that were not asked for");
                connection.end(&failure);
                break failure;
            }
            Err(failure) => break failure,
        };
        let id = frame.header.request_id;
        let index = sent.iter().rev().find_map(|&(first, start, count)| {
            let at = usize::try_from(id.checked_sub(first)? / 2).ok()?;
            (at < count).then_some(start + at)
        });
        if let Some(index) = index {
            answers[index] = Some(match failure_of(&frame.header, &frame.meta) {
                Some(failure) => Err(failure),
                None => Ok(frame.meta),
            });
        }
        open -= 1;
    };
    if sent.is_empty() {
        return Err(failure);
    }
    for &(first, start, count) in &sent {
        let unanswered: Vec<u64> = (0..count)
            .filter(|at| answers[start + at].is_none())
            .map(|at| first + 2 * (at as u64))
            .collect();
        connection.abandon(&unanswered);
    }
    for answer in &mut answers {
        answer.get_or_insert_with(|| Err(failure.clone()));
    }
    Ok(Answers { answers })
}
