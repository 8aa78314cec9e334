//! Pointers of the caller. Everything here checks for null, and believes the rest: the header's opening
//! says what a caller promises.

use std::ffi::{CStr, c_char, c_void};

use crate::error::Problem;

/// A text of the caller.
///
/// # Safety
///
/// It is null or ends with a zero byte, and does not change while the answer is used.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a [u8], Problem> {
    // SAFETY: what the caller promises.
    unsafe { optional_text(pointer) }.ok_or_else(|| Problem::argument(format!("{what} is NULL")))
}

/// The same, where null means none.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(pointer: *const c_char) -> Option<&'a [u8]> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: it is not null; the caller promises the rest.
    Some(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

/// The same, for what has to be UTF-8; null is the empty text.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn utf8<'a>(pointer: *const c_char, what: &str) -> Result<&'a str, Problem> {
    // SAFETY: what the caller promises.
    let bytes = unsafe { optional_text(pointer) }.unwrap_or_default();
    std::str::from_utf8(bytes)
        .map_err(|error| Problem::argument(format!("{what} is not UTF-8: {error}")))
}

/// Bytes of the caller to be read; null is right only for none.
///
/// # Safety
///
/// `len` bytes can be read there, and nobody changes them while the answer is used.
pub(crate) unsafe fn bytes<'a>(
    pointer: *const c_void,
    len: usize,
    what: &str,
) -> Result<&'a [u8], Problem> {
    if len == 0 {
        return Ok(&[]);
    }
    check(pointer, len, what)?;
    // SAFETY: it is not null and not longer than any object; the caller promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer.cast(), len) })
}

/// Bytes of the caller to be filled; null is right only for none.
///
/// # Safety
///
/// `len` bytes can be written there, and nobody else reads or writes them while the answer is used. They
/// need not have been written before: they are only written to.
pub(crate) unsafe fn bytes_mut<'a>(
    pointer: *mut c_void,
    len: usize,
    what: &str,
) -> Result<&'a mut [u8], Problem> {
    if len == 0 {
        return Ok(&mut []);
    }
    check(pointer, len, what)?;
    // SAFETY: it is not null and not longer than any object; the caller promises the rest.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast(), len) })
}

fn check(pointer: *const c_void, len: usize, what: &str) -> Result<(), Problem> {
    if pointer.is_null() {
        return Err(Problem::argument(format!("{what} is NULL")));
    }
    if isize::try_from(len).is_err() {
        return Err(Problem::argument(format!("{what} is longer than memory")));
    }
    Ok(())
}

/// A place for an answer, checked before there is one.
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// A place that has to be there.
    ///
    /// # Safety
    ///
    /// It is null, or a `T` can be written there until the function ends.
    pub(crate) unsafe fn new(pointer: *mut T, what: &str) -> Result<Self, Problem> {
        // SAFETY: what the caller promises.
        let out = unsafe { Self::optional(pointer) };
        if pointer.is_null() { Err(Problem::argument(format!("{what} is NULL"))) } else { Ok(out) }
    }

    /// A place that may be null: the answer is not wanted.
    ///
    /// # Safety
    ///
    /// As [`Self::new`].
    pub(crate) unsafe fn optional(pointer: *mut T) -> Self {
        Self(pointer)
    }

    pub(crate) fn put(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: it is not null, and whoever made this promised that it can be written to.
            unsafe { self.0.write(value) };
        }
    }
}

/// Options of the caller, of which an older program knows only the beginning: `size` says how much.
///
/// # Safety
///
/// `pointer` is null, or begins with the number of bytes that can be read there, and `T` is of plain
/// fields for which every pattern of bytes is a value.
pub(crate) unsafe fn options<T: Copy>(
    pointer: *const T,
    mut defaults: T,
    least: usize,
) -> Result<T, Problem> {
    if pointer.is_null() {
        return Ok(defaults);
    }
    // SAFETY: what the caller promises: the first field is the size.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size < least || size > 1 << 16 {
        return Err(Problem::argument(
            "the options' struct_size is wrong: begin with the init function",
        ));
    }
    let len = size.min(size_of::<T>());
    let to = std::ptr::from_mut(&mut defaults).cast::<u8>();
    // SAFETY: both have `len` bytes, and ours is no memory of the caller's.
    unsafe { std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), to, len) };
    Ok(defaults)
}
