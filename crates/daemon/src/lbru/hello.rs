//! What both sides agree on before anything else.

use std::sync::Arc;

use bytes::Bytes;
use librorum_rpc::frame::{PAYLOAD_LEN_DEFAULT, PAYLOAD_LEN_MAX, VERSION, feature};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use prost::Message as _;

use super::connection::{Agreed, Connection};
use super::session::{Session, is_same};

/// Below this, frames would be more header than content.
const PAYLOAD_LEN_MIN: u32 = 4096;
/// Of silence, after which a client may ask whether anybody is there.
const PING_AFTER_MS: u32 = 30_000;

/// What HELLO led to.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) reply: v1::HelloReply,
    pub(super) agreed: Agreed,
    pub(super) session: Arc<Session>,
}

/// The smaller one; 0 means that the client does not care.
fn smaller(wanted: u32, most: u32) -> u32 {
    if wanted == 0 { most } else { wanted.min(most) }
}

pub(super) fn greet(connection: &Connection, message: Bytes) -> Result<Greeted, Failure> {
    let core = connection.core();
    let hello = v1::Hello::decode(message)
        .map_err(|error| Failure::new(Reason::Protocol, format!("HELLO: {error}")))?;
    let ours = u32::from(VERSION);
    if !(hello.version_min..=hello.version_max).contains(&ours) {
        let message = format!(
            "this daemon speaks version {ours}, the client {} to {}",
            hello.version_min, hello.version_max
        );
        return Err(Failure::new(Reason::FailedPrecondition, message));
    }
    if !connection.is_known() {
        let token = core.options.token.as_deref().unwrap_or_default();
        if token.is_empty() || !is_same(token, &hello.token) {
            let message = format!(
                "user {} is not on the list of those who may connect, and brings no valid token",
                connection.caller().uid
            );
            return Err(Failure::new(Reason::Unauthenticated, message));
        }
    }
    if (1..PAYLOAD_LEN_MIN).contains(&hello.payload_bytes_max) {
        let message = format!("payloads of less than {PAYLOAD_LEN_MIN} bytes are not possible");
        return Err(Failure::new(Reason::Protocol, message));
    }
    let limits = &core.limits;
    let wanted =
        if hello.payload_bytes_max == 0 { PAYLOAD_LEN_DEFAULT } else { hello.payload_bytes_max };
    let payload_bytes_max = wanted.min(limits.payload_bytes_max).min(PAYLOAD_LEN_MAX);
    let most = u32::from(limits.descriptors_max);
    let descriptors_max = u8::try_from(hello.descriptors_max.min(most)).unwrap_or(u8::MAX);
    let mut features = hello.features & core.options.features;
    if descriptors_max == 0 {
        features &= !(feature::FD_READ | feature::FD_WRITE | feature::ARENA);
    }
    // Last: what is refused must not begin one.
    let uid = connection.caller().uid;
    let session = match hello.session {
        0 => core.sessions.begin(&core.service, uid),
        id => core.sessions.join(id, &hello.session_secret, uid)?,
    };
    tracing::debug!(
        connection = connection.number(),
        uid,
        client = hello.client,
        features,
        "a client says hello"
    );
    let reply = v1::HelloReply {
        version: ours,
        features,
        payload_bytes_max,
        requests_max: smaller(hello.requests_max, limits.requests_max),
        bytes_max: limits.bytes_max,
        descriptors_max: u32::from(descriptors_max),
        session: session.id,
        session_secret: Bytes::copy_from_slice(&session.secret()),
        instance: Bytes::copy_from_slice(&core.service.instance()),
        leases_max: limits.leases_max,
        server: format!("librorum {}", env!("CARGO_PKG_VERSION")),
        grpc_address: core.options.grpc_address.clone(),
        ping_after_ms: PING_AFTER_MS,
    };
    let agreed = Agreed { features, payload_bytes_max, descriptors_max };
    Ok(Greeted { reply, agreed, session })
}
