//! A file that appears under its name with all of its content, in one step.

use super::Core;
use super::content::paginate;
use super::edit::Edit;
use super::names::{add_entry, check_name, check_new, drop_link, found, new_inode, remove_entry};
use super::space::Growth;
use crate::record::{Body, Record, Table, Target, key};
use crate::{Content, FileKind, MetaError, NewContent, Publish, Published, Result};

impl Core {
    pub(super) fn publish(&self, file: &Publish<'_>) -> Result<Published> {
        let Publish { parent, name, new, .. } = *file;
        check_name(name)?;
        check_new(parent, new)?;
        if new.kind != FileKind::Regular || new.staging.is_some() {
            let what = "only a regular file is published, and its content says where it is";
            return Err(MetaError::BadContent { ino: parent, what });
        }
        self.engine.admit(Growth::Grows)?;
        let ino = self.engine.allocate_ino();
        // Hashing pages needs no lock.
        let manifest = match file.content {
            NewContent::Sealed { extents, .. } => Some(paginate(ino, extents, file.size_bytes)?),
            NewContent::Inline(bytes) if bytes.len() as u64 != file.size_bytes => {
                return Err(MetaError::BadContent { ino, what: "inline bytes of another length" });
            }
            NewContent::Overlay { .. } => {
                return Err(MetaError::BadContent { ino, what: "nothing to overlay" });
            }
            NewContent::Empty | NewContent::Inline(_) | NewContent::Staged { .. } => None,
        };

        let (_held, replaced) = loop {
            let target = self.target_now(parent, name)?;
            let mut inos = vec![parent, ino];
            inos.extend(target.map(|target| target.ino));
            let held = self.stripes.lock(&inos);
            if self.target_locked(parent, name)? == target {
                break (held, target);
            }
        };
        let mut edit = Edit::new(self);
        edit.live_directory(parent)?;
        if let Some(replaced) = replaced {
            if !file.replace {
                return Err(MetaError::Exists { parent, name: name.to_vec() });
            }
            if replaced.kind == FileKind::Directory {
                return Err(MetaError::IsDirectory { ino: replaced.ino });
            }
            drop_link(found(&mut edit, replaced)?, new.now);
            remove_entry(edit.live_directory(parent)?, replaced.kind, new.now);
        }
        let directory = edit.live_directory(parent)?;
        add_entry(directory, new.kind, new.now)?;
        let mut inode = new_inode(ino, &directory.inode, new);
        inode.size_bytes = file.size_bytes;
        inode.allocated_bytes = file.allocated_bytes;
        inode.mtime = file.mtime.unwrap_or(new.now);
        inode.content = match file.content {
            NewContent::Empty => Content::Empty,
            NewContent::Inline(bytes) => {
                let body = Body::Inline(bytes.to_vec()).encode();
                edit.set(Table::Bodies, key::inode(ino), Some(body.into()));
                Content::Inline
            }
            NewContent::Staged { segment } => Content::Staged { segment },
            NewContent::Overlay { segment, base_len_bytes } => {
                Content::Overlay { segment, base_len_bytes }
            }
            NewContent::Sealed { fresh, .. } => {
                if let Some(manifest) = manifest {
                    manifest.store(&mut edit, ino, fresh);
                }
                Content::Sealed
            }
        };
        edit.add_record(Record { inode: inode.clone(), entry_count: 0 });
        edit.set_dentry(parent, name, Some(Target { ino, kind: FileKind::Regular }));
        let replaced = match replaced {
            Some(replaced) => Some(found(&mut edit, replaced)?.inode.clone()),
            None => None,
        };
        let txn = edit.finish()?;
        Ok(Published { inode, replaced, txn })
    }
}
