//! A walk as an iterator, for those who want one.
//!
//! Workers collect entries and send them in batches through a bounded channel: a message per entry
//! would cost more than reading it.

use std::ffi::{CStr, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::{Descend, Dir, Entered, Entry, Error, Kind, Metadata, Stop, Visitor, Walk};

/// Entries in a message.
const BATCH: usize = 256;

/// Messages that may wait for the consumer: then workers do.
const BATCHES_MAX: usize = 64;

/// A file or directory that a walk found.
#[derive(Clone, Debug)]
pub struct WalkEntry {
    name: Box<CStr>,
    kind: Kind,
    dir: Option<Arc<Dir>>,
    metadata: Option<Metadata>,
}

impl WalkEntry {
    /// Its name; of a root, the path as it was given.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(self.name.to_bytes())
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How far below its root it is; 0 for a root.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.dir.as_ref().map_or(0, |dir| dir.depth() + 1)
    }

    /// The directory it is in; `None` for a root.
    #[must_use]
    pub fn dir(&self) -> Option<&Arc<Dir>> {
        self.dir.as_ref()
    }

    /// What is known about it, if that was asked for.
    #[must_use]
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Its path, built now.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let name = self.name.to_bytes();
        let bytes =
            self.dir.as_ref().map_or_else(|| name.to_vec(), |dir| dir.path_with(Some(name)));
        PathBuf::from(OsString::from_vec(bytes))
    }
}

type Item = Result<WalkEntry, Error>;

/// The files and directories of a walk, a directory before what is in it, otherwise in no order. Dropping
/// it stops the walk.
#[derive(Debug)]
pub struct Entries {
    batch: std::vec::IntoIter<Item>,
    /// `None` when all was received.
    receiver: Option<Receiver<Vec<Item>>>,
    walk: Option<JoinHandle<()>>,
    stop: Stop,
}

impl Walk {
    /// Walks on threads of its own, and gives what they find one after the other. A consumer that is
    /// slow slows the walk; memory is bounded.
    #[must_use]
    pub fn entries(self) -> Entries {
        let (sender, receiver) = sync_channel(BATCHES_MAX);
        let stop = self.stop.clone();
        let walk = std::thread::spawn(move || {
            let stop = self.stop.clone();
            let make =
                |_worker| Sending { batch: Vec::new(), sender: sender.clone(), stop: stop.clone() };
            drop(self.run(make));
        });
        Entries { batch: Vec::new().into_iter(), receiver: Some(receiver), walk: Some(walk), stop }
    }
}

impl Iterator for Entries {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.batch.next() {
                return Some(item);
            }
            match self.receiver.as_ref()?.recv() {
                Ok(batch) => self.batch = batch.into_iter(),
                Err(_all_sent) => {
                    self.receiver = None;
                    if let Some(Err(panic)) = self.walk.take().map(JoinHandle::join) {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        if self.receiver.take().is_some() {
            self.stop.stop();
        }
        // Its panic, if it had one, is of no interest any more.
        drop(self.walk.take().map(JoinHandle::join));
    }
}

/// Sends what it sees.
struct Sending {
    batch: Vec<Item>,
    sender: SyncSender<Vec<Item>>,
    stop: Stop,
}

impl Sending {
    fn send(&mut self, item: Item) {
        self.batch.push(item);
        if self.batch.len() == BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.batch.is_empty() && self.sender.send(std::mem::take(&mut self.batch)).is_err() {
            self.stop.stop();
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Visitor for Sending {
    type Scope = ();
    type Tally = ();

    fn enter(&mut self, entered: &Entered<'_>, _: Option<&()>, (): &mut ()) -> Descend<()> {
        let dir = entered.dir();
        self.send(Ok(WalkEntry {
            name: dir.name_c().into(),
            kind: Kind::Directory,
            dir: dir.parent().cloned(),
            metadata: entered.metadata().copied(),
        }));
        Descend::Into(())
    }

    fn file(&mut self, entry: &Entry<'_>, _: Option<&()>, (): &mut ()) {
        self.send(Ok(WalkEntry {
            name: entry.name.into(),
            kind: entry.kind,
            dir: entry.dir.cloned(),
            metadata: entry.metadata.copied(),
        }));
    }

    fn fold(&mut self, (): &mut (), (): ()) {}

    fn error(&mut self, error: Error, (): &mut ()) {
        self.send(Err(error));
    }
}
