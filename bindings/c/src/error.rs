//! What went wrong: a code as the answer, the rest kept for the thread.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use librorum_rpc::Failure;
use librorum_rpc::proto::v1;

/// Success. The other codes are those of gRPC (`google.rpc.Code`).
pub const LB_OK: i32 = 0;
/// The call was withdrawn.
pub const LB_CANCELLED: i32 = 1;
/// The other side failed in a way that has no code of its own.
pub const LB_UNKNOWN: i32 = 2;
/// An argument is wrong, or a number belongs to no open object.
pub const LB_INVALID_ARGUMENT: i32 = 3;
/// The call's time was up.
pub const LB_DEADLINE_EXCEEDED: i32 = 4;
/// There is no such thing.
pub const LB_NOT_FOUND: i32 = 5;
/// The name is taken.
pub const LB_ALREADY_EXISTS: i32 = 6;
/// The user may not.
pub const LB_PERMISSION_DENIED: i32 = 7;
/// Too much is under way or stored already; see `retry_after_ms`.
pub const LB_RESOURCE_EXHAUSTED: i32 = 8;
/// Something else has to happen first; `kind` says more.
pub const LB_FAILED_PRECONDITION: i32 = 9;
/// Somebody else is at it.
pub const LB_ABORTED: i32 = 10;
/// Beyond a limit, or a buffer is too short.
pub const LB_OUT_OF_RANGE: i32 = 11;
/// Not an operation that the daemon knows.
pub const LB_UNIMPLEMENTED: i32 = 12;
/// A mistake in this library or the daemon.
pub const LB_INTERNAL: i32 = 13;
/// The daemon or a disk cannot be reached.
pub const LB_UNAVAILABLE: i32 = 14;
/// Stored bytes are lost.
pub const LB_DATA_LOSS: i32 = 15;
/// The daemon does not know who asks.
pub const LB_UNAUTHENTICATED: i32 = 16;
/// The end of a listing. It is no failure, and changes nothing about the last one.
pub const LB_END: i32 = -1;

/// What the last failure on a thread was.
#[repr(C)]
#[derive(Debug)]
pub struct Error {
    /// What the failed call answered; `LB_OK` if none has failed.
    pub code: i32,
    /// The errno that a mount would answer, by Linux's numbers; 0 where there is none.
    pub os_errno: i32,
    /// When trying again makes sense, in milliseconds; 0: now or never.
    pub retry_after_ms: u32,
    /// The finer reason, such as "NotFound" or "Disconnected".
    pub kind: *const c_char,
    /// What, where, and what to do, in UTF-8.
    pub message: *const c_char,
}

/// A failure on its way over the border.
#[derive(Debug)]
pub(crate) struct Problem {
    code: i32,
    os_errno: i32,
    retry_after_ms: u32,
    kind: String,
    message: String,
}

impl Problem {
    fn new(code: i32, os_errno: i32, kind: &str, message: impl Into<String>) -> Self {
        Self { code, os_errno, retry_after_ms: 0, kind: kind.to_owned(), message: message.into() }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(LB_INVALID_ARGUMENT, 22, "InvalidInput", message)
    }

    pub(crate) fn bad_handle(message: impl Into<String>) -> Self {
        Self::new(LB_INVALID_ARGUMENT, 9, "InvalidHandle", message)
    }

    pub(crate) fn too_short(message: impl Into<String>) -> Self {
        Self::new(LB_OUT_OF_RANGE, 34, "OutOfRange", message)
    }

    pub(crate) fn in_use(what: &str) -> Self {
        let message = format!("another thread is using this {what}");
        Self::new(LB_FAILED_PRECONDITION, 16, "Busy", message)
    }
}

impl Problem {
    /// An operation on a tree of which a part failed: the first of `count` failures.
    pub(crate) fn in_part(first: &v1::PathError, count: usize) -> Self {
        let error = first.error.clone().unwrap_or_default();
        let mut problem = Self::from(Failure::from_message(&error));
        let path = first.path.escape_ascii();
        problem.message = format!("{path}: {} ({count} failures in all)", problem.message);
        problem
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let message = failure.to_message();
        Self {
            code: i32::try_from(message.code).unwrap_or(LB_UNKNOWN),
            os_errno: failure.errno().unwrap_or(0),
            retry_after_ms: message.retry_after_ms,
            kind: message.kind,
            message: message.message,
        }
    }
}

/// An [`Error`] and the texts that it points to.
struct Kept {
    error: Error,
    _kind: CString,
    _message: CString,
}

thread_local! {
    static LAST: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

fn keep(problem: Problem) -> i32 {
    let Problem { code, os_errno, retry_after_ms, kind, message } = problem;
    let (kind, message) = (text(kind), text(message));
    let error =
        Error { code, os_errno, retry_after_ms, kind: kind.as_ptr(), message: message.as_ptr() };
    let kept = Kept { error, _kind: kind, _message: message };
    // On a thread that is ending there is nowhere to keep it; the code still says what it was.
    match LAST.try_with(|last| last.replace(Some(kept))) {
        Ok(_) | Err(_) => code,
    }
}

fn text(text: String) -> CString {
    CString::new(text).unwrap_or_else(|error| {
        let mut bytes = error.into_vec();
        bytes.retain(|&byte| byte != 0);
        CString::new(bytes).unwrap_or_default()
    })
}

/// Does what a function of the border does: nothing unwinds past it, what fails is kept.
pub(crate) fn border(body: impl FnOnce() -> Result<(), Problem>) -> i32 {
    border_or_end(|| body().map(|()| true))
}

/// The same for what may answer that there is no more.
pub(crate) fn border_or_end(body: impl FnOnce() -> Result<bool, Problem>) -> i32 {
    // What a panic leaves half done is behind locks that heal, or is dropped with the body.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(true)) => LB_OK,
        Ok(Ok(false)) => LB_END,
        Ok(Err(problem)) => keep(problem),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("of an unknown kind");
            keep(Problem::new(LB_INTERNAL, 0, "Panic", format!("a panic: {what}")))
        }
    }
}

struct Shareable(Error);
// SAFETY: its pointers are to constants, which any thread may read.
unsafe impl Sync for Shareable {}

static NONE: Shareable = Shareable(Error {
    code: LB_OK,
    os_errno: 0,
    retry_after_ms: 0,
    kind: c"".as_ptr(),
    message: c"".as_ptr(),
});

/// What the last failure of a call on this thread was; never NULL. It and its texts are valid until the
/// next call on this thread that fails, or the thread's end. A call that succeeds leaves it as it is.
///
/// Any thread; each has its own.
#[unsafe(no_mangle)]
pub extern "C" fn lb_last_error() -> *const Error {
    let last = LAST.try_with(|last| {
        // It is never replaced by who has borrowed it, so the borrow cannot fail.
        last.try_borrow()
            .ok()
            .and_then(|last| last.as_ref().map(|kept| std::ptr::from_ref(&kept.error)))
    });
    last.ok().flatten().unwrap_or(&raw const NONE.0)
}

/// The version of this interface: the upper 16 bits change when a program has to be changed or compiled
/// anew, the lower ones when something is added. Compare with `LB_ABI_VERSION`.
///
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lb_abi_version() -> u32 {
    LB_ABI_VERSION
}

/// What `lb_abi_version` answers if the header fits the library.
pub const LB_ABI_VERSION: u32 = 0x0001_0000;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };

/// The version of the library, such as "0.1.0".
///
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lb_version() -> *const c_char {
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: it is never null, and nothing fails meanwhile.
        let error = unsafe { &*lb_last_error() };
        // SAFETY: as above.
        unsafe { CStr::from_ptr(error.message) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_ends_at_the_border() {
        assert_eq!(border(|| panic!("on purpose, {}", 7)), LB_INTERNAL);
        assert_eq!(message(), "a panic: on purpose, 7");
    }

    #[test]
    fn threads_have_errors_of_their_own() {
        assert_eq!(border(|| Err(Problem::argument("with a \0 in it"))), LB_INVALID_ARGUMENT);
        std::thread::spawn(|| assert_eq!(message(), "")).join().unwrap_or_default();
        assert_eq!(message(), "with a  in it");
        assert_eq!(border(|| Ok(())), LB_OK);
        assert_eq!(message(), "with a  in it");
    }
}
