//! Connections, and the small operations: each is one message there and one back.

use std::ffi::{c_char, c_int};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use librorum_rpc::client::{CallOptions, Client, ClientOptions, Target, Tls, Transport};
use librorum_rpc::proto::v1;

use crate::error::{Problem, border};
use crate::handles;
use crate::pointer::{self, Out};
use crate::types::{
    ClientHandle, ConnectOptions, Entry, LB_CONNECT_EXPECTED_UID, LB_MKDIR_PARENTS,
    LB_REMOVE_DIRECTORY, LB_REMOVE_MISSING_OK, LB_REMOVE_RECURSIVE, LB_TRANSPORT_ARENA,
    LB_TRANSPORT_FD, LB_TRANSPORT_INLINE,
};

/// What an option is if the caller says nothing.
fn connect_defaults() -> ConnectOptions {
    let defaults = ClientOptions::default();
    let ms = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    ConnectOptions {
        struct_size: size_of::<ConnectOptions>(),
        name: std::ptr::null(),
        token: std::ptr::null(),
        token_len: 0,
        flags: 0,
        expected_uid: 0,
        forbid: 0,
        connect_timeout_ms: ms(defaults.connect_timeout),
        retry_for_ms: ms(defaults.retry_for),
        deadline_ms: 0,
        tls_authorities: std::ptr::null(),
        tls_certificate: std::ptr::null(),
        tls_key: std::ptr::null(),
        tls_server_name: std::ptr::null(),
    }
}

/// Fills options with what they are if nothing is said.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_connect_options_init(options: *mut ConnectOptions) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        unsafe { Out::new(options, "options") }?.put(connect_defaults());
        Ok(())
    })
}

/// Connects to a daemon, by the path of its socket, or by an address of gRPC: `http://host:port`,
/// `https://host:port`, or `unix:/path`. `options` may be NULL. The client is closed with
/// `lb_disconnect`.
///
/// Any thread; the client may be used by any number of threads at a time. After fork(2) the child
/// connects by itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_connect(
    target: *const c_char,
    options: *const ConnectOptions,
    client: *mut ClientHandle,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let client = unsafe { Out::new(client, "client") }?;
        // SAFETY: as above.
        let target = unsafe { pointer::text(target, "target") }?;
        // SAFETY: as above.
        let options = unsafe { client_options(options) }?;
        let target = if target.first() == Some(&b'/') {
            Target::Socket(PathBuf::from(std::ffi::OsStr::from_bytes(target)))
        } else {
            let address = std::str::from_utf8(target)
                .map_err(|error| Problem::argument(format!("target is not UTF-8: {error}")))?;
            if !["http://", "https://", "unix:"].iter().any(|start| address.starts_with(start)) {
                let why = "target is neither an absolute path nor http://, https:// or unix:";
                return Err(Problem::argument(why));
            }
            Target::Grpc(address.to_owned())
        };
        client.put(handles::insert(Client::connect(target, options)?));
        Ok(())
    })
}

/// Speaks over a Unix stream socket that is connected to a daemon already. The descriptor belongs to the
/// library from here on, also if this fails, unless `client` or the options are wrong.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_connect_fd(
    fd: c_int,
    options: *const ConnectOptions,
    client: *mut ClientHandle,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let client = unsafe { Out::new(client, "client") }?;
        // SAFETY: as above.
        let options = unsafe { client_options(options) }?;
        if fd < 0 {
            return Err(Problem::argument("fd is negative"));
        }
        // SAFETY: the caller gives the descriptor away, as the documentation says.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let target = Target::Connected(UnixStream::from(fd));
        client.put(handles::insert(Client::connect(target, options)?));
        Ok(())
    })
}

/// Closes a client. What was opened with it goes on until it is closed, too.
///
/// Any thread, also while others use the client: their calls end as if it was open.
#[unsafe(no_mangle)]
pub extern "C" fn lb_disconnect(client: ClientHandle) -> i32 {
    border(|| handles::remove::<Client>(client).map(drop))
}

/// # Safety
///
/// As [`pointer::options`], and the pointers in them are NULL or as the header says.
unsafe fn client_options(options: *const ConnectOptions) -> Result<ClientOptions, Problem> {
    let least = std::mem::offset_of!(ConnectOptions, tls_authorities);
    // SAFETY: what the caller promises; it is made of plain fields.
    let given = unsafe { pointer::options(options, connect_defaults(), least) }?;
    let mut options = ClientOptions::default();
    // SAFETY: what the caller promises.
    let name = unsafe { pointer::utf8(given.name, "name") }?;
    if !name.is_empty() {
        name.clone_into(&mut options.name);
    }
    // SAFETY: as above.
    let token = unsafe { pointer::bytes(given.token, given.token_len, "token") }?;
    options.token = Bytes::copy_from_slice(token);
    if given.flags & LB_CONNECT_EXPECTED_UID != 0 {
        options.expected_uid = Some(given.expected_uid);
    }
    check_flags(given.flags, LB_CONNECT_EXPECTED_UID, "flags")?;
    let ways = [
        (LB_TRANSPORT_FD, Transport::Descriptor),
        (LB_TRANSPORT_ARENA, Transport::Arena),
        (LB_TRANSPORT_INLINE, Transport::Inline),
    ];
    check_flags(given.forbid, ways.iter().map(|way| way.0).sum(), "forbid")?;
    let forbidden = ways.into_iter().filter(|(bit, _)| given.forbid & bit != 0);
    options.forbid = forbidden.map(|(_, way)| way).collect();
    options.connect_timeout = Duration::from_millis(given.connect_timeout_ms.into());
    options.retry_for = Duration::from_millis(given.retry_for_ms.into());
    let deadline = Duration::from_millis(given.deadline_ms.into());
    options.call = CallOptions {
        deadline: Some(deadline).filter(|at| !at.is_zero()),
        ..CallOptions::default()
    };
    // SAFETY: as above.
    let authorities = unsafe { pointer::optional_text(given.tls_authorities) };
    // SAFETY: as above.
    let certificate = unsafe { pointer::optional_text(given.tls_certificate) };
    // SAFETY: as above.
    let key = unsafe { pointer::optional_text(given.tls_key) };
    // SAFETY: as above.
    let server_name = unsafe { pointer::utf8(given.tls_server_name, "tls_server_name") }?;
    if certificate.is_some() != key.is_some() {
        return Err(Problem::argument("tls_certificate and tls_key come together"));
    }
    if authorities.is_some() || certificate.is_some() || !server_name.is_empty() {
        options.tls = Some(Tls {
            authorities: authorities.unwrap_or_default().to_vec(),
            identity: certificate.zip(key).map(|(one, other)| (one.to_vec(), other.to_vec())),
            server_name: Some(server_name.to_owned()).filter(|name| !name.is_empty()),
        });
    }
    Ok(options)
}

pub(crate) fn check_flags(flags: u32, known: u32, what: &str) -> Result<(), Problem> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(Problem::argument(format!("{what} has unknown bits {unknown:#x}"))),
    }
}

/// Where an operation happens: a client, a volume and a path of the caller's.
pub(crate) struct Place {
    pub(crate) client: Arc<Client>,
    pub(crate) volume: String,
    pub(crate) path: Bytes,
}

impl Place {
    /// # Safety
    ///
    /// As [`pointer::text`].
    pub(crate) unsafe fn new(
        client: ClientHandle,
        volume: *const c_char,
        path: *const c_char,
    ) -> Result<Self, Problem> {
        let client = handles::get::<Client>(client)?;
        // SAFETY: what the caller promises.
        let volume = unsafe { pointer::utf8(volume, "volume") }?.to_owned();
        // SAFETY: as above.
        let path = Bytes::copy_from_slice(unsafe { pointer::text(path, "path") }?);
        Ok(Self { client, volume, path })
    }
}

pub(crate) fn replace(replace: u32) -> Result<v1::Replace, Problem> {
    i32::try_from(replace)
        .ok()
        .and_then(|replace| v1::Replace::try_from(replace).ok())
        .ok_or_else(|| Problem::argument(format!("replace is {replace}")))
}

fn put_entry(out: Out<Entry>, entry: Option<&v1::Entry>) {
    out.put(entry.map(Entry::from).unwrap_or_default());
}

/// Copies a text and its zero byte to the caller's buffer; says how long it is also if it does not fit.
///
/// # Safety
///
/// As [`pointer::bytes_mut`] and [`Out::new`].
pub(crate) unsafe fn put_text(
    text: &[u8],
    buffer: *mut c_char,
    buffer_len: usize,
    len: Out<usize>,
) -> Result<(), Problem> {
    // SAFETY: what the caller promises.
    let buffer = unsafe { pointer::bytes_mut(buffer.cast(), buffer_len, "buffer") }?;
    len.put(text.len());
    match buffer.split_at_mut_checked(text.len()) {
        Some((place, [end, ..])) => {
            place.copy_from_slice(text);
            *end = 0;
            Ok(())
        }
        _ => Err(Problem::too_short(format!(
            "the buffer has {buffer_len} bytes, the text {} and a zero",
            text.len()
        ))),
    }
}

/// What a name stands for. `volume` may be NULL: the daemon's only or first one.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_stat(
    client: ClientHandle,
    volume: *const c_char,
    path: *const c_char,
    entry: *mut Entry,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::new(entry, "entry") }?;
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, path) }?;
        let request = v1::StatRequest { volume, path, ..Default::default() };
        put_entry(out, client.stat(&request)?.entry.as_ref());
        Ok(())
    })
}

/// Where a symbolic link leads, with a zero byte behind. `target_len` is how long it is, without that
/// byte, also if the answer is `LB_OUT_OF_RANGE` because the buffer is too short.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_read_link(
    client: ClientHandle,
    volume: *const c_char,
    path: *const c_char,
    target: *mut c_char,
    target_size: usize,
    target_len: *mut usize,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let len = unsafe { Out::new(target_len, "target_len") }?;
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, path) }?;
        let request = v1::StatRequest { volume, path, ..Default::default() };
        let entry = client.stat(&request)?.entry.unwrap_or_default();
        if entry.kind != i32::from(v1::Kind::Symlink as u8) {
            return Err(Problem::argument("it is no symbolic link"));
        }
        // SAFETY: as above.
        unsafe { put_text(&entry.symlink_target, target, target_size, len) }
    })
}

/// Makes a directory. `entry` may be NULL.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_mkdir(
    client: ClientHandle,
    volume: *const c_char,
    path: *const c_char,
    mode: u32,
    flags: u32,
    entry: *mut Entry,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::optional(entry) };
        check_flags(flags, LB_MKDIR_PARENTS, "flags")?;
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, path) }?;
        let parents = flags & LB_MKDIR_PARENTS != 0;
        let request = v1::MakeDirectoryRequest { volume, path, mode, parents };
        put_entry(out, client.make_directory(&request)?.entry.as_ref());
        Ok(())
    })
}

/// Makes a symbolic link that leads to `target`. `entry` may be NULL.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_symlink(
    client: ClientHandle,
    volume: *const c_char,
    path: *const c_char,
    target: *const c_char,
    entry: *mut Entry,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::optional(entry) };
        // SAFETY: as above.
        let target = unsafe { pointer::text(target, "target") }?;
        let target = Bytes::copy_from_slice(target);
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, path) }?;
        let request = v1::MakeSymlinkRequest { volume, path, target };
        put_entry(out, client.make_symlink(&request)?.entry.as_ref());
        Ok(())
    })
}

/// Removes a file, or with `LB_REMOVE_`... a directory. `removed_count` may be NULL. In a recursive removal what could not be
/// removed fails it at the end; the rest is gone.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_remove(
    client: ClientHandle,
    volume: *const c_char,
    path: *const c_char,
    flags: u32,
    removed_count: *mut u64,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::optional(removed_count) };
        check_flags(
            flags,
            LB_REMOVE_RECURSIVE | LB_REMOVE_MISSING_OK | LB_REMOVE_DIRECTORY,
            "flags",
        )?;
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, path) }?;
        let request = v1::RemoveRequest {
            volume,
            path,
            recursive: flags & LB_REMOVE_RECURSIVE != 0,
            missing_ok: flags & LB_REMOVE_MISSING_OK != 0,
            directory: flags & LB_REMOVE_DIRECTORY != 0,
        };
        let response = client.remove(&request)?;
        out.put(response.removed_count);
        match response.errors.first() {
            Some(left) => Err(Problem::in_part(left, response.errors.len())),
            None => Ok(()),
        }
    })
}

/// Renames, or exchanges two names. `entry`, what `to` is now, may be NULL.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_rename(
    client: ClientHandle,
    volume: *const c_char,
    from: *const c_char,
    to: *const c_char,
    replace: u32,
    entry: *mut Entry,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::optional(entry) };
        // SAFETY: as above.
        let to = Bytes::copy_from_slice(unsafe { pointer::text(to, "to") }?);
        let replace = self::replace(replace)?.into();
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, from) }?;
        let request = v1::RenameRequest { volume, from: path, to, replace };
        put_entry(out, client.rename(&request)?.entry.as_ref());
        Ok(())
    })
}

/// Copies a file or a symbolic link without moving its bytes. `entry`, what `to` is now, may be NULL.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_copy(
    client: ClientHandle,
    volume: *const c_char,
    from: *const c_char,
    to: *const c_char,
    replace: u32,
    entry: *mut Entry,
) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers.
        let out = unsafe { Out::optional(entry) };
        // SAFETY: as above.
        let to = Bytes::copy_from_slice(unsafe { pointer::text(to, "to") }?);
        let replace = self::replace(replace)?.into();
        // SAFETY: as above.
        let Place { client, volume, path } = unsafe { Place::new(client, volume, from) }?;
        let request = v1::CopyRequest { volume, from: path, to, replace };
        put_entry(out, client.copy(&request)?.entry.as_ref());
        Ok(())
    })
}

/// Makes durable what was written before. `volume` may be NULL.
///
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_sync(client: ClientHandle, volume: *const c_char) -> i32 {
    border(|| {
        // SAFETY: the caller's promise for all pointers; the path is a constant.
        let place = unsafe { Place::new(client, volume, c"".as_ptr()) }?;
        place.client.sync(&v1::SyncRequest { volume: place.volume, seal: false })?;
        Ok(())
    })
}
