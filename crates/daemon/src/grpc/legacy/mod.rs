//! The services of the first Librorum: the same bytes on the wire, and the truth in them.
//!
//! They serve the first volume, whose paths are text here and start with '/'. What failed is always a
//! status: `success` is only ever false for a removal that was done in part.

pub(super) mod file;
mod info;
pub(super) mod log;
mod mime;
pub(super) mod node;
mod sync;
mod upload;

use librorum_rpc::{Failure, Reason};

use super::call::Inner;
use crate::service::Call;

/// Refuses what only root and the daemon's own user may do.
fn require_owner(shared: &Inner, call: &Call, what: &str) -> Result<(), Failure> {
    if shared.service.may_lend(&call.caller) {
        return Ok(());
    }
    let message =
        format!("user {} may not {what}: root and the daemon's user may", call.caller.uid);
    Err(Failure::new(Reason::AccessDenied, message))
}
