//! Bytes on their way in: frames, slots, and descriptors that the client writes by itself.

use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::frame::{Transfer, feature};
use librorum_rpc::proto::v1;

use super::output::Lent;
use super::request::{Answer, Note, Request};
use crate::metrics::Transport;
use crate::service::Upload;

/// How the bytes will come, and why not as it was wanted.
fn grant(
    request: &Request,
    want: v1::Transport,
) -> Result<(v1::Transport, Option<&'static str>), Failure> {
    let features = request.connection.agreed()?.features;
    let has = |bit| features & bit != 0;
    let next = if has(feature::ARENA) { v1::Transport::Arena } else { v1::Transport::Inline };
    Ok(match want {
        v1::Transport::Fd if !has(feature::FD_WRITE) => {
            (next, Some("descriptors for writing were not agreed on"))
        }
        v1::Transport::Fd if !request.connection.core().service.may_lend(&request.call.caller) => {
            (next, Some("only root and the daemon's user get a descriptor"))
        }
        v1::Transport::Fd => (v1::Transport::Fd, None),
        v1::Transport::Arena if has(feature::ARENA) => (v1::Transport::Arena, None),
        v1::Transport::Arena => (v1::Transport::Inline, Some("an arena was not agreed on")),
        v1::Transport::Unknown | v1::Transport::Inline => (v1::Transport::Inline, None),
        v1::Transport::Grpc => (v1::Transport::Inline, Some("this is not gRPC")),
    })
}

fn of(transport: v1::Transport) -> Transport {
    match transport {
        v1::Transport::Fd => Transport::LbruFd,
        v1::Transport::Arena => Transport::LbruArena,
        v1::Transport::Inline | v1::Transport::Unknown | v1::Transport::Grpc => {
            Transport::LbruInline
        }
    }
}

pub(super) fn open(
    request: &Request,
    asked: &v1::OpenWriteRequest,
    note: &mut Note,
) -> Result<Answer, Failure> {
    let core = request.connection.core();
    let (transport, reason) = grant(request, asked.want())?;
    let upload = core.service.open_write(&request.call, asked)?;
    request.connection.session()?.add_upload(upload.id, &core.limits)?;
    note.transport = of(transport);
    note.demoted_because = reason;
    if let Some(reason) = reason {
        core.metrics.demoted("WRITE_OPEN", of(asked.want()), of(transport), reason);
    }
    let mut answer = Answer::message(&v1::OpenWriteResponse {
        upload: upload.id,
        transport: transport.into(),
        demoted_because: reason.unwrap_or_default().to_owned(),
        received: upload.received(),
    });
    if transport == v1::Transport::Fd {
        // Before anybody can have it.
        upload.mark_lent();
        answer.descriptors.push(Lent::File(upload.file()?));
        core.metrics.lent(1);
    }
    Ok(answer)
}

pub(super) fn write(
    request: &Request,
    transfer: Transfer,
    note: &mut Note,
) -> Result<Answer, Failure> {
    let core = request.connection.core();
    let upload = core.service.upload(&request.call, transfer.handle)?;
    match transfer.slot {
        Some(index) => {
            if !request.payload.is_empty() {
                return Err(invalid("a WRITE has its bytes in a slot or in the frame, not both"));
            }
            let slot = request.connection.session()?.slot(index, transfer.len)?;
            note.transport = Transport::LbruArena;
            write_slot(&upload, &slot, transfer)?;
        }
        None => {
            if u32::try_from(request.payload.len()) != Ok(transfer.len) {
                return Err(invalid("a WRITE has another length than its payload"));
            }
            note.transport = Transport::LbruInline;
            upload.write_at(transfer.offset, &request.payload)?;
        }
    }
    note.bytes = u64::from(transfer.len);
    Ok(Answer::default())
}

fn invalid(why: &str) -> Failure {
    Failure::file(ErrorKind::InvalidInput, why)
}

/// From the slot to the file, past our own memory.
fn write_slot(
    upload: &Upload,
    slot: &super::session::Slot,
    transfer: Transfer,
) -> Result<(), Failure> {
    let len = usize::try_from(transfer.len).map_err(|_too_large| invalid("the length"))?;
    let end = transfer
        .offset
        .checked_add(u64::from(transfer.len))
        .filter(|&end| i64::try_from(end).is_ok())
        .ok_or_else(|| Failure::file(ErrorKind::TooLarge, "beyond the end of all files"))?;
    upload.leave_room(end)?;
    slot.arena
        .write_to(slot.index, len, &*upload.file()?, transfer.offset)
        .map_err(|error| crate::io_failure(&format!("cannot write upload {}", upload.id), &error))
}

pub(super) fn commit(request: &Request, asked: &v1::CommitRequest) -> Result<Answer, Failure> {
    let core = request.connection.core();
    let found = core.service.commit(&request.call, asked);
    // Also a commit that failed may have ended it.
    if core.service.upload(&request.call, asked.upload).is_err() {
        request.connection.session()?.forget_upload(asked.upload);
    }
    Ok(Answer::message(&found?))
}
