//! Reading: into memory of the caller, or in place.

use std::ffi::{c_char, c_void};

use librorum_rpc::client::{Mapped, RemoteFile};

use crate::client::Place;
use crate::error::{Problem, border};
use crate::handles;
use crate::pointer::{self, Out};
use crate::types::{ClientHandle, Entry, FileHandle, MappingHandle};

/// Opens a file for reading. `entry`, what it is, may be NULL. The file is closed with `lb_close`.
///
/// Any thread; the file may be used by any number of threads at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_open(
    client: ClientHandle,
    volume: *const c_char,
    path: *const c_char,
    file: *mut FileHandle,
    entry: *mut Entry,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(file, "file") }?;
        // SAFETY: as above.
        let entry = unsafe { Out::optional(entry) };
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, path) }?;
        let file = client.open(&volume, &path)?;
        entry.put(Entry::from(file.entry()));
        out.put(handles::insert(file));
        Ok(())
    })
}

/// Closes a file. Mappings of it stay.
///
/// Any thread, also while others read: their calls end as if it was open.
#[unsafe(no_mangle)]
pub extern "C" fn lb_close(file: FileHandle) -> i32 {
    border(|| handles::remove::<RemoteFile>(file).map(drop))
}

/// Reads bytes from `offset` on into `buffer`, which need not have been written before. `read_len` is how
/// many there were, fewer than `len` only at the end of the file. A buffer that is used again is much
/// faster than a fresh one, whose first touch costs more than the copy.
///
/// Any thread; the buffer is the call's until it ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_read_into(
    file: FileHandle,
    offset: u64,
    buffer: *mut c_void,
    len: usize,
    read_len: *mut usize,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(read_len, "read_len") }?;
        out.put(0);
        let file = handles::get::<RemoteFile>(file)?;
        // SAFETY: as above; the client only writes to it.
        let buffer = unsafe { pointer::bytes_mut(buffer, len, "buffer") }?;
        out.put(file.read_into(offset, buffer)?);
        Ok(())
    })
}

/// Maps bytes from `offset` on: in place if they lie in one piece of a file that the daemon lends, else
/// in a buffer of the library that is used again. `data` is where they are, `data_len` how many, fewer
/// than `len` only at the end of the file. They are only to be read, never change, and are there until
/// `lb_unmap`, whatever else is closed.
///
/// Any thread, and so for the bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_map_range(
    file: FileHandle,
    offset: u64,
    len: usize,
    mapping: *mut MappingHandle,
    data: *mut *const c_void,
    data_len: *mut usize,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(mapping, "mapping") }?;
        // SAFETY: as above.
        let data = unsafe { Out::new(data, "data") }?;
        // SAFETY: as above.
        let data_len = unsafe { Out::new(data_len, "data_len") }?;
        if isize::try_from(len).is_err() {
            return Err(Problem::argument("len is longer than memory"));
        }
        let mapped = handles::get::<RemoteFile>(file)?.map_range(offset, len)?;
        // Neither a mapping nor a heap's bytes move with the value that owns them.
        data.put(mapped.as_ptr().cast());
        data_len.put(mapped.len());
        out.put(handles::insert(mapped));
        Ok(())
    })
}

/// Whether no byte was copied for a mapping: 1 or 0.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_mapping_is_in_place(mapping: MappingHandle, in_place: *mut i32) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(in_place, "in_place") }?;
        out.put(handles::get::<Mapped>(mapping)?.is_in_place().into());
        Ok(())
    })
}

/// Ends a mapping: nobody may look at its bytes any more.
///
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lb_unmap(mapping: MappingHandle) -> i32 {
    border(|| handles::remove::<Mapped>(mapping).map(drop))
}
