//! Directories and entries, as events name them.

use std::cmp::Ordering;
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::{FileId, Kind, Metadata};

/// Names a directory within one walk. Numbers say nothing about order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirId(pub(crate) u64);

/// A directory that was found: its name, and its parent.
///
/// Costs about 100 bytes and its name, for as long as anybody holds it or anything below it. Paths
/// exist only while they are asked for.
#[derive(Debug)]
pub struct Dir {
    parent: Option<Arc<Self>>,
    name: Box<CStr>,
    id: DirId,
    root: usize,
    depth: u32,
    file_id: OnceLock<FileId>,
}

impl Dir {
    pub(crate) fn new_root(name: Box<CStr>, root: usize, id: DirId) -> Self {
        Self { parent: None, name, id, root, depth: 0, file_id: OnceLock::new() }
    }

    pub(crate) fn new_below(parent: Arc<Self>, name: Box<CStr>, id: DirId) -> Self {
        let (root, depth) = (parent.root, parent.depth + 1);
        Self { parent: Some(parent), name, id, root, depth, file_id: OnceLock::new() }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> DirId {
        self.id
    }

    /// Its name; of a root, the path as it was given.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(self.name.to_bytes())
    }

    pub(crate) fn name_c(&self) -> &CStr {
        &self.name
    }

    /// How far below its root it is; 0 for a root.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Which root it is below, counted from zero in the order they were given.
    #[must_use]
    pub fn root(&self) -> usize {
        self.root
    }

    /// The directory that it was found in; `None` for a root.
    #[must_use]
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// What names it on this machine. Known for [`crate::Need::Size`] and more, when links are
    /// followed, and with [`crate::Devices::SameAsRoot`].
    #[must_use]
    pub fn file_id(&self) -> Option<FileId> {
        self.file_id.get().copied()
    }

    pub(crate) fn set_file_id(&self, id: FileId) {
        self.file_id.get_or_init(|| id);
    }

    /// The directories above it, nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(self.parent(), |dir| dir.parent())
    }

    /// Its path, starting with the root as it was given. Costs time and memory in its length.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path_with(None)))
    }

    /// The path of `last` in this directory, or its own, built from the end in one allocation.
    pub(crate) fn path_with(&self, last: Option<&[u8]>) -> Vec<u8> {
        let names = || {
            let own = self.name.to_bytes();
            let above = self.ancestors().map(|dir| dir.name.to_bytes());
            last.into_iter().chain(std::iter::once(own)).chain(above)
        };
        let len: usize = names().map(|name| name.len() + 1).sum();
        let mut path = vec![0; len];
        let mut start = len;
        for name in names() {
            // No second slash after a root that ends in one.
            if start < len && name.last() != Some(&b'/') {
                start -= 1;
                path[start] = b'/';
            }
            path[start - name.len()..start].copy_from_slice(name);
            start -= name.len();
        }
        path.drain(..start);
        path
    }

    /// Sorted order: by root, a directory before what is in it, siblings by the bytes of their names.
    #[must_use]
    pub fn sorted_cmp(&self, other: &Self) -> Ordering {
        if self.root != other.root {
            return self.root.cmp(&other.root);
        }
        // Climbs to the same depth, then together until both are in the same directory.
        let (mut one, mut two) = (self, other);
        while one.depth > two.depth {
            let Some(parent) = one.parent() else { break };
            one = parent;
        }
        while two.depth > one.depth {
            let Some(parent) = two.parent() else { break };
            two = parent;
        }
        if one.id == two.id {
            return self.depth.cmp(&other.depth);
        }
        while let (Some(above_one), Some(above_two)) = (one.parent(), two.parent()) {
            if above_one.id == above_two.id {
                break;
            }
            (one, two) = (above_one, above_two);
        }
        one.name.cmp(&two.name)
    }
}

impl Drop for Dir {
    /// Lets go of a long chain without recursion.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(mut parent) = next.and_then(Arc::into_inner) {
            next = parent.parent.take();
        }
    }
}

/// A directory at the moment it is entered.
#[derive(Debug)]
pub struct Entered<'e> {
    pub(crate) dir: &'e Arc<Dir>,
    pub(crate) metadata: Option<&'e Metadata>,
    pub(crate) fd: Option<BorrowedFd<'e>>,
}

impl<'e> Entered<'e> {
    /// Which one.
    #[must_use]
    pub fn dir(&self) -> &'e Arc<Dir> {
        self.dir
    }

    /// What is known about it; there for [`crate::Need::Size`] and more.
    #[must_use]
    pub fn metadata(&self) -> Option<&'e Metadata> {
        self.metadata
    }

    /// The open directory, to read files relative to it. Not to be read itself: its position is the
    /// walk's. `None` if it could not be opened, or is too deep to be read.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'e>> {
        self.fd
    }
}

/// A name in a directory, or a root.
#[derive(Debug)]
pub struct Entry<'e> {
    pub(crate) name: &'e CStr,
    pub(crate) kind: Kind,
    pub(crate) inode: u64,
    pub(crate) root: usize,
    pub(crate) dir: Option<&'e Arc<Dir>>,
    pub(crate) metadata: Option<&'e Metadata>,
}

impl<'e> Entry<'e> {
    /// Its name; of a root, the path as it was given.
    #[must_use]
    pub fn name(&self) -> &'e OsStr {
        OsStr::from_bytes(self.name.to_bytes())
    }

    /// The bytes of its name.
    #[must_use]
    pub fn name_bytes(&self) -> &'e [u8] {
        self.name.to_bytes()
    }

    /// What it is. While it is asked whether to keep it, a symlink is one even if it will be
    /// followed, and it is [`Kind::Unknown`] where the listing does not tell.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its inode as the listing says (for a mount point, the one below); 0 for a root.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// How far below the root it is; 0 for a root.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.dir.map_or(0, |dir| dir.depth + 1)
    }

    /// The directory it is in; `None` for a root.
    #[must_use]
    pub fn dir(&self) -> Option<&'e Arc<Dir>> {
        self.dir
    }

    /// Which root it is, or is below.
    #[must_use]
    pub fn root(&self) -> usize {
        self.root
    }

    /// What is known about it, if that was asked for and fetched.
    #[must_use]
    pub fn metadata(&self) -> Option<&'e Metadata> {
        self.metadata
    }

    /// Its path, built now.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let bytes = match self.dir {
            Some(dir) => dir.path_with(Some(self.name.to_bytes())),
            None => self.name.to_bytes().to_vec(),
        };
        PathBuf::from(OsString::from_vec(bytes))
    }
}
