//! What a request does: the service's operations, and the ones that only frames have.

use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::frame::feature;
use librorum_rpc::proto::v1;

use super::message::Message;
use super::request::{Answer, Note, Request};
use super::{reading, writing};
use crate::metrics::Transport;

/// A client waits for the log in turns of this: between them is seen whether it still does.
const LOG_TURN_MS: u32 = 100;

/// Does a request, but for a READ into frames ([`reading::begin`]).
pub(super) fn perform(request: &Request, note: &mut Note) -> Result<Answer, Failure> {
    let call = &request.call;
    let core = request.connection.core();
    let (service, admin) = (&core.service, &core.admin);
    match &request.message {
        Message::Capabilities(asked) => {
            let mut found = service.capabilities(call, asked)?;
            found.features = core.options.features;
            found.payload_bytes_max = core.limits.payload_bytes_max;
            Ok(Answer::message(&found))
        }
        Message::Stat(asked) => Ok(Answer::message(&service.stat(call, asked)?)),
        Message::List(asked) => Ok(Answer::message(&service.list(call, asked)?)),
        Message::MakeDirectory(asked) => Ok(Answer::message(&service.make_directory(call, asked)?)),
        Message::Remove(asked) => Ok(Answer::message(&service.remove(call, asked)?)),
        Message::Rename(asked) => Ok(Answer::message(&service.rename(call, asked)?)),
        Message::Copy(asked) => Ok(Answer::message(&service.copy(call, asked)?)),
        Message::MakeSymlink(asked) => Ok(Answer::message(&service.make_symlink(call, asked)?)),
        Message::Link(asked) => Ok(Answer::message(&service.link(call, asked)?)),
        Message::SetAttributes(asked) => Ok(Answer::message(&service.set_attributes(call, asked)?)),
        Message::Usage(asked) => Ok(Answer::message(&service.usage(call, asked)?)),
        Message::Sync(asked) => Ok(Answer::message(&service.sync(call, asked)?)),
        Message::Put(asked) => {
            note.transport = Transport::LbruInline;
            let found = service.put(call, asked, &request.payload)?;
            note.bytes = request.payload.len() as u64;
            Ok(Answer::message(&found))
        }
        Message::ReadOpen(asked) => reading::open(request, asked, note),
        Message::Read(transfer) => reading::read(request, *transfer, note),
        Message::ReadClose(asked) => {
            request.connection.session()?.close_file(asked.handle);
            Ok(Answer::message(&v1::ReadCloseResponse {}))
        }
        Message::ReadPieces(asked) => reading::more_pieces(request, asked, note),
        Message::WriteOpen(asked) => writing::open(request, asked, note),
        Message::Write(transfer) => writing::write(request, *transfer, note),
        Message::Commit(asked) => writing::commit(request, asked),
        Message::Abort(asked) => {
            let found = service.abort(call, asked)?;
            request.connection.session()?.forget_upload(asked.upload);
            Ok(Answer::message(&found))
        }
        Message::QueryUpload(asked) => Ok(Answer::message(&service.query_upload(call, asked)?)),
        Message::ArenaOpen(asked) => open_arena(request, asked),
        Message::LeaseRelease(asked) => {
            let session = request.connection.session()?;
            for &segment in &asked.segments {
                session.release(segment);
            }
            Ok(Answer::message(&v1::LeaseReleaseResponse {}))
        }
        Message::Status(asked) => Ok(Answer::message(&admin.status(call, asked)?)),
        Message::Stats(asked) => Ok(Answer::message(&admin.stats(call, asked)?)),
        Message::Trace(asked) => Ok(Answer::message(&fitting(&admin.trace(call, asked)?))),
        Message::Logs(asked) => wait_for_logs(request, asked),
        Message::Nodes(asked) => Ok(Answer::message(&admin.nodes(call, asked)?)),
        Message::Mount(asked) => Ok(Answer::message(&admin.mount(call, asked)?)),
        Message::Unmount(asked) => Ok(Answer::message(&admin.unmount(call, asked)?)),
        Message::Reload(asked) => Ok(Answer::message(&admin.reload(call, asked)?)),
        Message::Shutdown(asked) => Ok(Answer::message(&admin.shutdown(call, asked)?)),
        Message::Config(asked) => Ok(Answer::message(&admin.config(call, asked)?)),
    }
}

/// Control messages that a frame has room for, with some left for the rest of the message.
const MESSAGE_BYTES_MAX: usize = 60_000;

/// The newest operations that fit a frame.
fn fitting(found: &v1::TraceResponse) -> v1::TraceResponse {
    v1::TraceResponse { operations: newest(&found.operations) }
}

/// As many as fit a frame, from the end.
fn newest<M: prost::Message + Clone>(all: &[M]) -> Vec<M> {
    let mut room = MESSAGE_BYTES_MAX;
    let fits = |message: &&M| {
        // The tag and the length.
        let len = message.encoded_len() + 6;
        let fits = len <= room;
        room = room.saturating_sub(len);
        fits
    };
    let count = all.iter().rev().take_while(fits).count();
    all[all.len() - count..].to_vec()
}

/// As many as fit a frame, from the start: with `after` the next ones are asked for.
fn oldest<M: prost::Message + Clone>(all: &[M]) -> Vec<M> {
    let mut room = MESSAGE_BYTES_MAX;
    all.iter()
        .take_while(|message| {
            let len = message.encoded_len() + 6;
            let fits = len <= room;
            room = room.saturating_sub(len);
            fits
        })
        .cloned()
        .collect()
}

fn wait_for_logs(request: &Request, asked: &v1::LogsRequest) -> Result<Answer, Failure> {
    let admin = &request.connection.core().admin;
    let mut left_ms = asked.wait_ms;
    loop {
        let turn_ms = left_ms.min(LOG_TURN_MS);
        left_ms -= turn_ms;
        let turn = v1::LogsRequest { wait_ms: turn_ms, ..asked.clone() };
        let found = admin.logs(&request.call, &turn)?;
        if !found.records.is_empty() || left_ms == 0 {
            let records =
                if asked.after > 0 { oldest(&found.records) } else { newest(&found.records) };
            return Ok(Answer::message(&v1::LogsResponse { records }));
        }
        request.call.check()?;
    }
}

fn open_arena(request: &Request, asked: &v1::ArenaOpenRequest) -> Result<Answer, Failure> {
    const SLOT_BYTES: u32 = 256 << 10;
    const SLOT_BYTES_MAX: u32 = 1 << 20;
    const SLOT_COUNT: u32 = 8;
    const SLOT_COUNT_MAX: u32 = 64;
    const BYTES_MAX: u32 = 16 << 20;
    const PAGE: u32 = 4096;
    if request.connection.agreed()?.features & feature::ARENA == 0 {
        return Err(Failure::file(ErrorKind::Unsupported, "an arena was not agreed on"));
    }
    let or = |wanted, usual| if wanted == 0 { usual } else { wanted };
    let slot_bytes = or(asked.slot_bytes, SLOT_BYTES).min(SLOT_BYTES_MAX).next_multiple_of(PAGE);
    let slot_count =
        or(asked.slot_count, SLOT_COUNT).min(SLOT_COUNT_MAX).min(BYTES_MAX / slot_bytes);
    let core = request.connection.core();
    let arena = request.connection.session()?.open_arena(&core.ledger, slot_bytes, slot_count)?;
    let found = v1::ArenaOpenResponse {
        slot_bytes: u32::try_from(arena.slot_bytes()).unwrap_or(slot_bytes),
        slot_count: u32::try_from(arena.slot_count()).unwrap_or(slot_count),
    };
    let mut answer = Answer::message(&found);
    answer.descriptors.push(super::output::Lent::Arena(arena));
    Ok(answer)
}
