//! A request as bytes.

use crate::failure::Failure;
use crate::frame::{Header, Kind, Opcode, Prefix};

/// A request to be sent.
pub(in crate::client) struct Request<'a> {
    pub(in crate::client) opcode: Opcode,
    pub(in crate::client) prefix: Prefix,
    pub(in crate::client) message: &'a [u8],
    pub(in crate::client) payload: &'a [u8],
    /// The bytes that a READ asks for.
    pub(in crate::client) asks: u32,
}

pub(super) fn request_bytes(request: &Request<'_>) -> u64 {
    (request.payload.len() as u64).saturating_add(u64::from(request.asks))
}

/// Whether a header can say how long the request is.
pub(super) fn check_lengths(request: &Request<'_>) -> Result<(), Failure> {
    let fits = request.message.len() <= usize::from(u16::MAX) - 32
        && u32::try_from(request.payload.len()).is_ok();
    if fits {
        return Ok(());
    }
    Err(Failure::file(
        librorum_format::ErrorKind::InvalidInput,
        "a request is longer than a frame can be",
    ))
}

pub(super) fn encode(out: &mut Vec<u8>, id: u64, request: &Request<'_>) -> Result<(), Failure> {
    let prefix_len = if request.prefix.key.is_some() { 32 } else { 16 };
    let too_long = |what| Failure::file(librorum_format::ErrorKind::InvalidInput, what);
    let Ok(meta_len) = u16::try_from(prefix_len + request.message.len()) else {
        return Err(too_long("a request's message is longer than 65,535 bytes"));
    };
    let Ok(payload_len) = u32::try_from(request.payload.len()) else {
        return Err(too_long("a request's payload is longer than 4 GiB"));
    };
    let header = Header {
        flags: request.prefix.flags(),
        payload_len,
        meta_len,
        ..Header::new(Kind::Req, request.opcode, id)
    };
    out.extend_from_slice(&header.encode());
    request.prefix.encode_to(out);
    out.extend_from_slice(request.message);
    Ok(())
}
