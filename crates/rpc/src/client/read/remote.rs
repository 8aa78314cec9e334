//! Bytes that the daemon has to send: through the arena, or in frames.

use std::sync::Arc;

use super::{Opened, RemoteFile};
use crate::client::call::Bounds;
use crate::client::connection::{Connection, Event, Mailbox, Request, Sink, failure_of};
use crate::client::session::Slots;
use crate::client::transport::Transport;
use crate::failure::{Failure, Reason};
use crate::frame::{Header, Kind, Opcode, Transfer};

/// Less is not worth a slot: it comes with the answer.
const ARENA_BYTES_MIN: usize = 64 << 10;

/// How much one READ asks for: long enough that its own cost is nothing, short enough that several
/// are under way.
const READ_LEN: usize = 1 << 20;

/// How many READs of one call are under way: the daemon works on one while another is received.
const UNDER_WAY: usize = 3;

/// A part of a read that has its own request.
struct Part {
    id: u64,
    start: usize,
    len: usize,
    filled: usize,
    slot: Option<u32>,
    done: bool,
}

struct Into<'a> {
    buffer: &'a mut [u8],
    parts: Vec<Part>,
}

impl Sink for Into<'_> {
    fn room(&mut self, header: &Header) -> Option<&mut [u8]> {
        if !matches!(header.kind, Kind::Res | Kind::Data) || header.status != 0 {
            return None;
        }
        let len = usize::try_from(header.payload_len).ok()?;
        let part = self.parts.iter().find(|part| part.id == header.request_id && !part.done)?;
        if len == 0 || part.slot.is_some() || len > part.len - part.filled {
            return None;
        }
        let from = part.start + part.filled;
        self.buffer.get_mut(from..from + len)
    }
}

impl Into<'_> {
    fn open(&self) -> usize {
        self.parts.iter().filter(|part| !part.done).count()
    }

    /// How many bytes there are without a gap.
    fn len(&self) -> usize {
        let short = self.parts.iter().filter(|part| part.filled < part.len);
        let end = short.map(|part| part.start + part.filled).min();
        end.unwrap_or_else(|| {
            self.parts.iter().map(|part| part.start + part.len).max().unwrap_or(0)
        })
    }

    fn take(&mut self, event: Event, slots: Option<&Slots>) -> Result<(), Failure> {
        let protocol = |what| Failure::new(Reason::Protocol, what);
        let header = match &event {
            Event::Frame(frame) => frame.header,
            Event::Received(header) => *header,
        };
        let Some(part) =
            self.parts.iter_mut().find(|part| part.id == header.request_id && !part.done)
        else {
            return Err(protocol("bytes for a read that is none"));
        };
        match event {
            Event::Received(header) => {
                part.filled += usize::try_from(header.payload_len).unwrap_or(0);
                part.done = header.kind == Kind::Res;
                Ok(())
            }
            Event::Frame(frame) => {
                part.done = header.kind == Kind::Res;
                if let (Some(slot), Some(slots), true) = (part.slot, slots, part.done) {
                    let result = match failure_of(&header, &frame.meta) {
                        Some(failure) => Err(failure),
                        None => take_slot(part, slot, slots, &frame.meta, self.buffer),
                    };
                    slots.give_back(slot);
                    return result;
                }
                if let Some(failure) = failure_of(&header, &frame.meta) {
                    return Err(failure);
                }
                if frame.payload.len() > part.len - part.filled || part.slot.is_some() {
                    return Err(protocol("more bytes than were asked for"));
                }
                let from = part.start + part.filled;
                self.buffer[from..from + frame.payload.len()].copy_from_slice(&frame.payload);
                part.filled += frame.payload.len();
                Ok(())
            }
        }
    }
}

fn take_slot(
    part: &mut Part,
    slot: u32,
    slots: &Slots,
    meta: &[u8],
    buffer: &mut [u8],
) -> Result<(), Failure> {
    let protocol = |what: String| Failure::new(Reason::Protocol, what);
    let Some(&count) = meta.first_chunk::<4>() else {
        return Err(protocol("a slot was answered without its length".to_owned()));
    };
    let count = usize::try_from(u32::from_le_bytes(count)).unwrap_or(usize::MAX);
    if count > part.len {
        return Err(protocol("more bytes in a slot than were asked for".to_owned()));
    }
    slots
        .arena
        .copy_out(slot, &mut buffer[part.start..part.start + count])
        .map_err(|error| protocol(format!("the arena: {error}")))?;
    part.filled = count;
    Ok(())
}

impl RemoteFile {
    pub(super) fn read_remote(
        &self,
        opened: &Opened,
        offset: u64,
        buffer: &mut [u8],
        bounds: &Bounds,
    ) -> Result<usize, Failure> {
        let options = &self.client.inner.options;
        let inline = options.allows(Transport::Inline);
        let mut slots = None;
        if options.allows(Transport::Arena) && (buffer.len() >= ARENA_BYTES_MIN || !inline) {
            match opened.session.slots() {
                Ok(open) => slots = Some(open),
                Err(why) => self.demote(format!("no arena: {why}")),
            }
        }
        if slots.is_none() && !inline {
            return Err(Failure::new(
                Reason::FailedPrecondition,
                "every way for these bytes is forbidden or not to be had",
            ));
        }
        let connection = opened.session.bulk()?;
        let read =
            self.transfer(&connection, opened.handle, offset, buffer, slots.as_deref(), bounds)?;
        Ok(read)
    }

    /// Sends READs a few at a time until the buffer is full or the file ends.
    fn transfer(
        &self,
        connection: &Arc<Connection>,
        handle: u64,
        offset: u64,
        buffer: &mut [u8],
        slots: Option<&Slots>,
        bounds: &Bounds,
    ) -> Result<usize, Failure> {
        let mailbox = Mailbox::new();
        let total = buffer.len();
        let mut into = Into { buffer, parts: Vec::new() };
        let mut next = 0;
        let mut failure = None;
        let may_inline = self.client.inner.options.allows(Transport::Inline);
        loop {
            while failure.is_none() && next < total && into.open() < UNDER_WAY {
                let slot = slots.and_then(Slots::take);
                if slot.is_none() && slots.is_some() {
                    if into.open() > 0 {
                        break;
                    }
                    // Other threads have all of them.
                    if !may_inline {
                        librorum_sys::clock::sleep(std::time::Duration::from_millis(1));
                        bounds.prefix(None)?;
                        continue;
                    }
                    self.demote("all slots of the arena were in use".to_owned());
                }
                let at_most = match (slot, slots) {
                    (Some(_), Some(slots)) => slots.arena.slot_bytes(),
                    _ => READ_LEN,
                };
                let len = (total - next).min(at_most);
                match begin(connection, &mailbox, handle, offset, next, len, slot, bounds) {
                    Ok(part) => {
                        next += len;
                        into.parts.push(part);
                    }
                    Err(error) => {
                        if let (Some(slot), Some(slots)) = (slot, slots) {
                            slots.give_back(slot);
                        }
                        failure = Some(error);
                    }
                }
            }
            if into.open() == 0 && (next == total || failure.is_some() || into.len() < next) {
                break;
            }
            // A slot comes as an empty frame, so whatever has room for it is a part without one.
            let event = match connection.wait(&mailbox, &mut into, bounds.until) {
                Ok(event) => event,
                Err(error) => {
                    let open: Vec<u64> =
                        into.parts.iter().filter(|part| !part.done).map(|part| part.id).collect();
                    // Their slots are the daemon's until it answers: nobody may use them again.
                    connection.abandon(&open);
                    return Err(failure.unwrap_or(error));
                }
            };
            if let Err(error) = into.take(event, slots) {
                if error.reason == Reason::Protocol {
                    connection.end(&error);
                }
                failure.get_or_insert(error);
            }
        }
        for part in &into.parts {
            let transport = if part.slot.is_some() { Transport::Arena } else { Transport::Inline };
            self.count(transport, part.filled);
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(into.len()),
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "what a READ is made of")]
fn begin(
    connection: &Arc<Connection>,
    mailbox: &Arc<Mailbox>,
    handle: u64,
    offset: u64,
    start: usize,
    len: usize,
    slot: Option<u32>,
    bounds: &Bounds,
) -> Result<Part, Failure> {
    let wire_len = u32::try_from(len).unwrap_or(u32::MAX);
    let message = Transfer { handle, offset: offset + start as u64, len: wire_len, slot }.encode();
    let request = Request {
        opcode: Opcode::READ,
        prefix: bounds.prefix(None)?,
        message: &message,
        payload: &[],
        asks: if slot.is_some() { 0 } else { wire_len },
    };
    let id = connection.submit(mailbox, &request)?;
    if let Some(cancel) = &bounds.cancel {
        cancel.watch(connection, id);
    }
    Ok(Part { id, start, len, filled: 0, slot, done: false })
}
