//! Writing: all of a file, which appears whole when it is committed.

use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::BorrowedFd;

use librorum_rpc::client::{self, Upload};
use librorum_rpc::proto::v1;

use crate::client::{Place, check_flags, replace};
use crate::error::{Problem, border};
use crate::handles;
use crate::pointer::{self, Out};
use crate::types::{
    ClientHandle, Entry, LB_REPLACE_EXCHANGE, LB_REPLACE_YES, LB_WRITE_DURABLE, LB_WRITE_MTIME,
    Range, Time, UploadHandle, WriteOptions,
};

const DEFAULTS: WriteOptions = WriteOptions {
    struct_size: size_of::<WriteOptions>(),
    size_hint: 0,
    mode: 0o644,
    replace: LB_REPLACE_YES,
    flags: 0,
    reserved: 0,
    mtime: Time { seconds: 0, nanos: 0, reserved: 0 },
    key: std::ptr::null(),
    blake3: std::ptr::null(),
};

/// Fills options with what they are if nothing is said.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_write_options_init(options: *mut WriteOptions) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        unsafe { Out::new(options, "options") }?.put(DEFAULTS);
        Ok(())
    })
}

/// Begins to write a file. Nobody sees it before `lb_write_commit`; `lb_write_abort` gives it up.
/// `options` may be NULL.
///
/// Any thread; the upload may be used by any number of threads at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_write_begin(
    client: ClientHandle,
    volume: *const c_char,
    path: *const c_char,
    options: *const WriteOptions,
    upload: *mut UploadHandle,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(upload, "upload") }?;
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, path) }?;
        // SAFETY: as above.
        let options = unsafe { write_options(options) }?;
        out.put(handles::insert(client.create(&volume, &path, options)?));
        Ok(())
    })
}

/// # Safety
///
/// As [`pointer::options`], and the pointers in them are NULL or as the header says.
unsafe fn write_options(options: *const WriteOptions) -> Result<client::WriteOptions, Problem> {
    let least = size_of::<WriteOptions>();
    // SAFETY: what the caller promises; it is made of plain fields.
    let given = unsafe { pointer::options(options, DEFAULTS, least) }?;
    check_flags(given.flags, LB_WRITE_DURABLE | LB_WRITE_MTIME, "flags")?;
    if given.replace == LB_REPLACE_EXCHANGE {
        return Err(Problem::argument("an upload cannot be exchanged"));
    }
    let mtime = v1::Timestamp { seconds: given.mtime.seconds, nanos: given.mtime.nanos };
    // SAFETY: what the caller promises.
    let key = unsafe { array::<16>(given.key) };
    // SAFETY: as above.
    let blake3 = unsafe { array::<32>(given.blake3) };
    Ok(client::WriteOptions {
        size_hint: given.size_hint,
        mode: given.mode,
        replace: replace(given.replace)?,
        mtime: (given.flags & LB_WRITE_MTIME != 0).then_some(mtime),
        durable: given.flags & LB_WRITE_DURABLE != 0,
        key,
        blake3,
    })
}

/// # Safety
///
/// `pointer` is null, or `N` bytes can be read there.
unsafe fn array<const N: usize>(pointer: *const c_void) -> Option<[u8; N]> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: what the caller promises; bytes have no alignment.
    Some(unsafe { pointer.cast::<[u8; N]>().read() })
}

/// Writes bytes at an offset. They are on their way when this returns, and the buffer is the caller's
/// again; what goes wrong with them later the next call says, at the latest `lb_write_commit`.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_write(
    upload: UploadHandle,
    offset: u64,
    data: *const c_void,
    len: usize,
) -> i32 {
    border(|| {
        let upload = handles::get::<Upload>(upload)?;
        // SAFETY: the caller's promise for all pointers.
        let data = unsafe { pointer::bytes(data, len, "data") }?;
        Ok(upload.write_at(offset, data)?)
    })
}

/// Writes bytes of another file, from `fd_offset` on, without moving them through this program where that
/// can be. The descriptor stays the caller's. `written_len` is how many there were, fewer than `len` only
/// if the file ends; it may be NULL.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_write_from_fd(
    upload: UploadHandle,
    fd: c_int,
    fd_offset: u64,
    offset: u64,
    len: u64,
    written_len: *mut u64,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::optional(written_len) };
        out.put(0);
        let upload = handles::get::<Upload>(upload)?;
        if fd < 0 {
            return Err(Problem::argument("fd is negative"));
        }
        // SAFETY: the caller keeps the descriptor open until the call ends.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let file = fd
            .try_clone_to_owned()
            .map_err(|error| Problem::argument(format!("fd cannot be duplicated: {error}")))?;
        out.put(upload.write_from(&File::from(file), fd_offset, offset, len, &mut |_| {})?);
        Ok(())
    })
}

/// What the daemon had of an upload with a key when it was begun again. `count` is how many ranges there
/// are; the first `capacity` of them go to `ranges`.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_write_received(
    upload: UploadHandle,
    ranges: *mut Range,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(count, "count") }?;
        if ranges.is_null() && capacity > 0 {
            return Err(Problem::argument("ranges is NULL"));
        }
        let received = handles::get::<Upload>(upload)?.received();
        for (index, range) in received.iter().take(capacity).enumerate() {
            // SAFETY: it is below `capacity`, so within the caller's array.
            let place = unsafe { ranges.add(index) };
            // SAFETY: as above; it is not null.
            unsafe { place.write(Range { start: range.start, end: range.end }) };
        }
        out.put(received.len());
        Ok(())
    })
}

/// Publishes the file: it appears whole, in place of what had the name. `entry`, what it is now, may be
/// NULL. The upload is closed, also if this fails; only if another thread is using it
/// (`LB_FAILED_PRECONDITION`, kind "Busy") nothing has happened. A file that is not to be published after
/// all, because a commit failed, is gone, unless it has a key.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_write_commit(upload: UploadHandle, entry: *mut Entry) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::optional(entry) };
        let committed = handles::take::<Upload>(upload)?.commit()?;
        out.put(Entry::from(&committed));
        Ok(())
    })
}

/// Gives an upload up, also if it has a key. Fails as `lb_write_commit` if another thread is using it.
///
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lb_write_abort(upload: UploadHandle) -> i32 {
    border(|| {
        handles::take::<Upload>(upload)?.abort();
        Ok(())
    })
}

/// Closes an upload without a commit. With a key it can be begun again; without one it is gone.
///
/// Any thread; if another is using it, it ends with that call.
#[unsafe(no_mangle)]
pub extern "C" fn lb_write_close(upload: UploadHandle) -> i32 {
    border(|| handles::remove::<Upload>(upload).map(drop))
}
