//! Directories, entry by entry.

use std::ffi::c_char;
use std::sync::{Mutex, PoisonError};

use librorum_rpc::client::Listing;
use librorum_rpc::proto::v1;

use crate::client::{Place, check_flags, put_text};
use crate::error::{Problem, border, border_or_end};
use crate::handles;
use crate::pointer::Out;
use crate::types::{ClientHandle, Entry, LB_LIST_RECURSIVE, ListingHandle};

/// A listing, and the entry that did not fit the caller's buffer.
pub(crate) struct Pages(Mutex<State>);

struct State {
    listing: Listing,
    waiting: Option<v1::Entry>,
    // How many of the listing's errors were told.
    told: usize,
}

/// Begins to list a directory. The listing is closed with `lb_list_close`.
///
/// Any thread; the listing may be used by one after another, and is locked while one does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_list(
    client: ClientHandle,
    volume: *const c_char,
    path: *const c_char,
    flags: u32,
    listing: *mut ListingHandle,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(listing, "listing") }?;
        check_flags(flags, LB_LIST_RECURSIVE, "flags")?;
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, path) }?;
        let recursive = flags & LB_LIST_RECURSIVE != 0;
        let request = v1::ListRequest { volume, path, recursive, ..Default::default() };
        let listing = client.entries(request);
        out.put(handles::insert(Pages(Mutex::new(State { listing, waiting: None, told: 0 }))));
        Ok(())
    })
}

/// The next entry and its path, relative to the directory, with a zero byte behind; `LB_END` after the
/// last. `path_len` is how long the path is, without that byte. If the answer is `LB_OUT_OF_RANGE` and
/// `path_len` is not below `path_size`, the buffer is too short and the same entry comes again; 4096
/// bytes are nearly always enough. Any other failure in a recursive listing may be about one directory:
/// `message` names it, and the listing goes on until `LB_END`.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_list_next(
    listing: ListingHandle,
    entry: *mut Entry,
    path: *mut c_char,
    path_size: usize,
    path_len: *mut usize,
) -> i32 {
    border_or_end(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(entry, "entry") }?;
        // SAFETY: as above.
        let len = unsafe { Out::new(path_len, "path_len") }?;
        len.put(0);
        let pages = handles::get::<Pages>(listing)?;
        let mut state = pages.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match state.waiting.take() {
            Some(entry) => entry,
            None => match state.listing.next() {
                Some(entry) => entry?,
                None => {
                    let Some(left) = state.listing.errors().get(state.told) else {
                        return Ok(false);
                    };
                    let problem = Problem::in_part(left, state.listing.errors().len());
                    state.told += 1;
                    return Err(problem);
                }
            },
        };
        // SAFETY: as above.
        let fits = unsafe { put_text(&next.path, path, path_size, len) };
        if fits.is_err() {
            state.waiting = Some(next);
        } else {
            out.put(Entry::from(&next));
        }
        fits.map(|()| true)
    })
}

/// Closes a listing.
///
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lb_list_close(listing: ListingHandle) -> i32 {
    border(|| handles::remove::<Pages>(listing).map(drop))
}
