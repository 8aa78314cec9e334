//! Telling the kernel what changed behind its back.
//!
//! The kernel keeps names (absent ones too), attributes and pages for as long as it likes. What changes
//! through it it knows; everything else it must be told before whoever made the change hears that it
//! is done, so that nobody who looks at the mount afterwards sees what was.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use librorum_format::Ino;

/// Who tells the kernel. Called without any lock of a volume held, because the kernel may have to wait
/// for requests that need them.
pub trait KernelNotifier: Send + Sync {
    /// A name appeared, went, or leads elsewhere; the directory's attributes changed with it.
    fn entry_changed(&self, parent: Ino, name: &[u8]);

    /// An inode's attributes changed.
    fn attributes_changed(&self, ino: Ino);

    /// A file's bytes changed, and its attributes. What the kernel has not written back yet of that
    /// file it writes back first.
    fn data_changed(&self, ino: Ino);
}

/// The one who tells it, if there is a mount, and how often.
#[derive(Default)]
pub(crate) struct Notifications {
    notifier: RwLock<Option<Arc<dyn KernelNotifier>>>,
    count: AtomicU64,
}

impl std::fmt::Debug for Notifications {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notifications").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Notifications {
    pub(crate) fn set(&self, notifier: Arc<dyn KernelNotifier>) {
        *self.notifier.write().unwrap_or_else(PoisonError::into_inner) = Some(notifier);
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn entry_changed(&self, parent: Ino, name: &[u8]) {
        self.tell(|notifier| notifier.entry_changed(parent, name));
    }

    pub(crate) fn attributes_changed(&self, ino: Ino) {
        self.tell(|notifier| notifier.attributes_changed(ino));
    }

    pub(crate) fn data_changed(&self, ino: Ino) {
        self.tell(|notifier| notifier.data_changed(ino));
    }

    fn tell(&self, what: impl FnOnce(&dyn KernelNotifier)) {
        // Cloned, because a notification may wait for requests.
        let notifier = self.notifier.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(notifier) = notifier {
            what(&*notifier);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
