//! `/dev/fuse`: requests out of it, answers into it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno as E;

use super::Errno;
use super::wire::{OUT_HEADER_BYTES, Output, attributes_invalid, data_invalid, entry_invalid};

/// One connection to the kernel.
#[derive(Debug)]
pub(super) struct Device {
    fd: OwnedFd,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A request of so many bytes.
    Request(usize),
    Nothing,
    /// The file system has been unmounted.
    Ended,
}

impl Device {
    /// The connection behind a mounted descriptor.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        // Reading never sleeps; `wait` does.
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Takes the next request, if there is one.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Read> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(len) => Ok(Read::Request(len)),
            // The second: the request was aborted while it was being copied out.
            Err(E::AGAIN | E::INTR | E::NOENT) => Ok(Read::Nothing),
            Err(E::NODEV) => Ok(Read::Ended),
            Err(error) => Err(error.into()),
        }
    }

    /// Sleeps until there is something to read. False if that took longer than `limit`.
    pub(super) fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match rustix::event::poll(&mut fds, limit.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(E::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one message, which the kernel takes whole or not at all.
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        loop {
            match rustix::io::writev(&self.fd, parts) {
                Ok(_) => return Ok(()),
                Err(E::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Tells the kernel to ask again for an inode's attributes.
    pub(super) fn invalidate_attributes(&self, ino: u64) {
        self.notify(&attributes_invalid(ino));
    }

    /// Tells the kernel to forget what it has of an inode's bytes or entries, and its attributes.
    pub(super) fn invalidate_data(&self, ino: u64) {
        self.notify(&data_invalid(ino));
    }

    /// Tells the kernel to forget where a name leads.
    pub(super) fn invalidate_entry(&self, parent: u64, name: &[u8]) {
        self.notify(&entry_invalid(parent, name));
    }

    fn notify(&self, message: &Output) {
        // What the kernel does not have (ENOENT) needs nothing.
        if let Err(error) = self.send(&[IoSlice::new(message.bytes())]) {
            tracing::trace!(%error, "nothing to invalidate");
        }
    }

    /// Makes the kernel read and write `file` by itself where an answer names the registration.
    pub(super) fn register(self: &Arc<Self>, file: impl AsFd) -> io::Result<Backing> {
        let id = librorum_sys::passthrough::register_backing(self.fd.as_fd(), file)?;
        Ok(Backing { device: Arc::downgrade(self), id })
    }
}

/// A registered file; dropping it takes the registration back.
#[derive(Debug)]
pub(super) struct Backing {
    device: Weak<Device>,
    id: i32,
}

impl Backing {
    pub(super) fn id(&self) -> i32 {
        self.id
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // With the connection the kernel has dropped it already.
        if let Some(device) = self.device.upgrade()
            && let Err(error) =
                librorum_sys::passthrough::unregister_backing(device.fd.as_fd(), self.id)
        {
            tracing::debug!(%error, id = self.id, "a passthrough file stays registered");
        }
    }
}

/// The answer that a request waits for. Dropped without one, by a panic, it says `EIO`: no caller
/// waits for ever.
#[derive(Debug)]
pub(super) struct Answer {
    device: Arc<Device>,
    unique: u64,
    open: bool,
}

impl Answer {
    pub(super) fn new(device: Arc<Device>, unique: u64) -> Self {
        Self { device, unique, open: true }
    }

    /// Sends data.
    pub(super) fn data(self, data: &[u8]) {
        self.finish(0, data);
    }

    /// Sends a structure.
    pub(super) fn body(self, body: &Output) {
        self.finish(0, body.bytes());
    }

    /// Sends success without more.
    pub(super) fn ok(self) {
        self.finish(0, &[]);
    }

    pub(super) fn error(self, error: Errno) {
        self.finish(error.0, &[]);
    }

    /// For a request that is never answered.
    pub(super) fn none(mut self) {
        self.open = false;
    }

    fn finish(mut self, errno: i32, data: &[u8]) {
        self.open = false;
        self.send(errno, data);
    }

    fn send(&self, errno: i32, data: &[u8]) {
        let mut header = Output::with_capacity(OUT_HEADER_BYTES);
        header.header(self.unique, errno, data.len());
        let parts = [IoSlice::new(header.bytes()), IoSlice::new(data)];
        if let Err(error) = self.device.send(&parts) {
            // ENOENT: whoever asked was killed, or the file system is gone.
            tracing::debug!(%error, unique = self.unique, "an answer was not taken");
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.open {
            self.send(E::IO.raw_os_error(), &[]);
        }
    }
}
