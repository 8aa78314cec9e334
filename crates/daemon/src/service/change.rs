//! Changes of the namespace.

use librorum_format::{ErrorKind, Ino};
use librorum_fs::{AttributeChange, Attributes, PublishOptions, TimeChange};
use librorum_meta::{FileKind, NewInode, RenameMode};
use librorum_rpc::Failure;
use librorum_rpc::proto::v1;

use super::access::{Access, Caller};
use super::entry::timestamp;
use super::path::{Names, resolve, resolve_parent};
use super::{Call, Context, ServedVolume, Service, failure, shown};

/// A directory is read in pages of this many entries.
const PAGE: usize = 256;

/// A recursive removal goes on behind a failure, but does not list more of them than a frame holds.
const ERRORS_MAX: usize = 200;

/// The mode of files that are made without one: umask(2) is the client's business.
const FILE_MODE: u16 = 0o644;
const DIRECTORY_MODE: u16 = 0o755;

/// Where something is about to be made.
pub(super) struct Place<'a> {
    pub(super) parent: Attributes,
    pub(super) name: &'a [u8],
    /// What has the name now.
    pub(super) taken_by: Option<Attributes>,
}

/// The place that a path names, whether or not the caller may make something there.
fn look_up_place<'a>(
    volume: &ServedVolume,
    caller: &Caller,
    names: &Names<'a>,
    replace: bool,
) -> Result<Place<'a>, Failure> {
    let (parent, name) = resolve_parent(&volume.outside, caller, names)?;
    let taken_by = match volume.outside.find(parent.inode.ino, name) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failure(&error, &format!("cannot look up {}", names.shown()))),
    };
    if taken_by.is_some() && !replace {
        let message = format!("{} exists already", names.shown());
        return Err(Failure::file(ErrorKind::AlreadyExists, message));
    }
    Ok(Place { parent, name, taken_by })
}

/// The place that a path names, if the caller may make something there.
pub(super) fn place<'a>(
    volume: &ServedVolume,
    caller: &Caller,
    names: &Names<'a>,
    replace: bool,
) -> Result<Place<'a>, Failure> {
    let place = look_up_place(volume, caller, names, replace)?;
    match &place.taken_by {
        Some(taken) => {
            caller.require_removal(&place.parent.inode, &taken.inode, || names.shown())?;
            if taken.inode.kind == FileKind::Directory {
                let message = format!("{} is a directory", names.shown());
                return Err(Failure::file(ErrorKind::IsDirectory, message));
            }
        }
        None => caller.require(&place.parent.inode, Access::CHANGE, || names.shown())?,
    }
    Ok(place)
}

/// An inode of the caller's in a place. Mode 0 stands for the mode of what is replaced, or the usual one.
pub(super) fn new_inode<'a>(
    caller: &Caller,
    place: &Place<'_>,
    kind: FileKind,
    mode: u32,
    symlink_target: &'a [u8],
) -> NewInode<'a> {
    let given = u16::try_from(mode & 0o7777).expect("twelve bits");
    let mode = match (given, &place.taken_by, kind) {
        (_, _, FileKind::Symlink) => 0o777,
        (0, Some(taken), _) if taken.inode.kind == kind => taken.inode.mode & 0o777,
        (0, _, FileKind::Directory) => DIRECTORY_MODE,
        (0, _, _) => FILE_MODE,
        // mkdir(2) knows no set-id bits; the directory above gives its set-gid bit.
        (mode, _, FileKind::Directory) => mode & 0o1777,
        (mode, _, _) => mode,
    };
    // A set-gid directory gives its group.
    let gid =
        if place.parent.inode.mode & 0o2000 != 0 { place.parent.inode.gid } else { caller.gid };
    let mode = if mode & 0o010 != 0 { caller.without_foreign_group_bit(mode, gid) } else { mode };
    NewInode {
        kind,
        mode,
        uid: caller.uid,
        gid: caller.gid,
        rdev: 0,
        symlink_target,
        staging: None,
        now: librorum_sys::clock::now(),
    }
}

impl Service {
    /// Makes a directory, and those above it if asked to.
    ///
    /// # Errors
    ///
    /// Those of mkdir(2).
    pub fn make_directory(
        &self,
        call: &Call,
        request: &v1::MakeDirectoryRequest,
    ) -> Result<v1::EntryResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let names = Names::new(&request.path)?;
        let made = if request.parents {
            self.make_directories(call, &volume, &names, request.mode)?
        } else {
            self.make_one_directory(call, &volume, &names, request.mode)?
        };
        Ok(v1::EntryResponse { entry: Some(self.entry(&volume, &request.path, &made)?) })
    }

    fn make_one_directory(
        &self,
        call: &Call,
        volume: &ServedVolume,
        names: &Names<'_>,
        mode: u32,
    ) -> Result<Attributes, Failure> {
        let place = place(volume, &call.caller, names, false)?;
        let new = new_inode(&call.caller, &place, FileKind::Directory, mode, b"");
        volume
            .outside
            .make(place.parent.inode.ino, place.name, &new)
            .context(|| format!("cannot make {}", names.shown()))
    }

    /// As `mkdir -p`: what is there is kept, and what was made by somebody else meanwhile too.
    fn make_directories(
        &self,
        call: &Call,
        volume: &ServedVolume,
        names: &Names<'_>,
        mode: u32,
    ) -> Result<Attributes, Failure> {
        let root = Names::new(b"")?;
        let mut found = resolve(&volume.outside, &call.caller, &root)?;
        let count = names.names().len();
        let mut path = Vec::new();
        for (index, name) in names.names().iter().enumerate() {
            path.push(b'/');
            path.extend_from_slice(name);
            let so_far = Names::new(&path)?;
            // Those on the way are open to their maker whatever the mode of the last one.
            let mode = if index + 1 == count { mode } else { 0 };
            found = match resolve(&volume.outside, &call.caller, &so_far) {
                Err(error) if is_absent(&error) => {
                    match self.make_one_directory(call, volume, &so_far, mode) {
                        Err(error) if is_taken(&error) => {
                            resolve(&volume.outside, &call.caller, &so_far)?
                        }
                        made => made?,
                    }
                }
                found => found?,
            };
            if found.inode.kind != FileKind::Directory {
                let is_last = index + 1 == count;
                // As mkdir(2) has it for the last name, and for those on the way.
                let kind = if is_last { ErrorKind::AlreadyExists } else { ErrorKind::NotDirectory };
                let message = format!("{} is there and not a directory", so_far.shown());
                return Err(Failure::file(kind, message));
            }
        }
        Ok(found)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    ///
    /// Those of symlink(2).
    pub fn make_symlink(
        &self,
        call: &Call,
        request: &v1::MakeSymlinkRequest,
    ) -> Result<v1::EntryResponse, Failure> {
        let target = &request.target;
        if target.is_empty() || target.len() > 4095 || target.contains(&0) {
            let message = "a link's target has 1 to 4095 bytes and no NUL";
            return Err(Failure::file(ErrorKind::InvalidInput, message));
        }
        let volume = self.volume(&request.volume)?;
        let names = Names::new(&request.path)?;
        let place = place(&volume, &call.caller, &names, false)?;
        let new = new_inode(&call.caller, &place, FileKind::Symlink, 0, target);
        let made = volume
            .outside
            .make(place.parent.inode.ino, place.name, &new)
            .context(|| format!("cannot make the link {}", names.shown()))?;
        Ok(v1::EntryResponse { entry: Some(self.entry(&volume, &request.path, &made)?) })
    }

    /// Gives a file another name.
    ///
    /// # Errors
    ///
    /// Those of link(2).
    pub fn link(
        &self,
        call: &Call,
        request: &v1::LinkRequest,
    ) -> Result<v1::EntryResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let (from, to) = (Names::new(&request.from)?, Names::new(&request.to)?);
        let source = resolve(&volume.outside, &call.caller, &from)?;
        let place = look_up_place(&volume, &call.caller, &to, false)?;
        call.caller.require_link(&source.inode, || from.shown())?;
        call.caller.require(&place.parent.inode, Access::CHANGE, || to.shown())?;
        if source.inode.kind == FileKind::Directory {
            let message = format!("{} is a directory, which has one name only", from.shown());
            return Err(Failure::file(ErrorKind::NotPermitted, message));
        }
        let linked = volume
            .outside
            .link(source.inode.ino, place.parent.inode.ino, place.name)
            .context(|| format!("cannot link {}", to.shown()))?;
        Ok(v1::EntryResponse { entry: Some(self.entry(&volume, &request.to, &linked)?) })
    }

    /// Moves a name, replacing what has the new one if that is wanted.
    ///
    /// # Errors
    ///
    /// Those of renameat2(2).
    pub fn rename(
        &self,
        call: &Call,
        request: &v1::RenameRequest,
    ) -> Result<v1::EntryResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let caller = &call.caller;
        let (from, to) = (Names::new(&request.from)?, Names::new(&request.to)?);
        let mode = match request.replace() {
            v1::Replace::Yes => RenameMode::Replace,
            v1::Replace::No => RenameMode::NoReplace,
            v1::Replace::Exchange => RenameMode::Exchange,
        };
        let (from_parent, from_name) = resolve_parent(&volume.outside, caller, &from)?;
        let (to_parent, to_name) = resolve_parent(&volume.outside, caller, &to)?;
        let what = || format!("cannot move {} to {}", from.shown(), to.shown());
        let moved = volume.outside.find(from_parent.inode.ino, from_name).context(what)?;
        let changes_parent = from_parent.inode.ino != to_parent.inode.ino;
        let replaced = match volume.outside.find(to_parent.inode.ino, to_name) {
            Ok(replaced) => Some(replaced),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failure(&error, &what())),
        };
        match (&replaced, mode) {
            (Some(_), RenameMode::NoReplace) => {
                let message = format!("{}: it exists already", what());
                return Err(Failure::file(ErrorKind::AlreadyExists, message));
            }
            (None, RenameMode::Exchange) => {
                let message = format!("{}: there is nothing to exchange with", what());
                return Err(Failure::file(ErrorKind::NotFound, message));
            }
            _ => {}
        }
        require_no_loop(&from, &to, mode)?;
        // Two names of one file: nothing is done, so nothing is asked.
        if replaced.as_ref().is_none_or(|replaced| replaced.inode.ino != moved.inode.ino) {
            caller.require_removal(&from_parent.inode, &moved.inode, || from.shown())?;
            match &replaced {
                Some(replaced) => {
                    caller.require_removal(&to_parent.inode, &replaced.inode, || to.shown())?;
                    if mode == RenameMode::Replace {
                        require_same_kind(&moved, replaced, &to)?;
                    }
                }
                None => caller.require(&to_parent.inode, Access::CHANGE, || to.shown())?,
            }
            caller.require_move(&moved.inode, changes_parent, || from.shown())?;
            if let (Some(replaced), RenameMode::Exchange) = (&replaced, mode) {
                caller.require_move(&replaced.inode, changes_parent, || to.shown())?;
            }
        }
        volume
            .outside
            .rename((from_parent.inode.ino, from_name), (to_parent.inode.ino, to_name), mode)
            .context(what)?;
        let moved = volume.outside.attributes(moved.inode.ino).context(what)?;
        Ok(v1::EntryResponse { entry: Some(self.entry(&volume, &request.to, &moved)?) })
    }

    /// Copies a file by sharing what it is made of; a symbolic link is made anew.
    ///
    /// # Errors
    ///
    /// Those of open(2) for reading, and of rename(2) for the copy.
    pub fn copy(
        &self,
        call: &Call,
        request: &v1::CopyRequest,
    ) -> Result<v1::EntryResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let (from, to) = (Names::new(&request.from)?, Names::new(&request.to)?);
        let replace = replaces(request.replace())?;
        let source = resolve(&volume.outside, &call.caller, &from)?;
        let what = || format!("cannot copy {} to {}", from.shown(), to.shown());
        let copied = match source.inode.kind {
            FileKind::Regular => {
                call.caller.require(&source.inode, Access::READ, || from.shown())?;
                let place = place(&volume, &call.caller, &to, replace)?;
                if place.taken_by.as_ref().is_some_and(|taken| taken.inode.ino == source.inode.ino)
                {
                    let message = format!("{}: they are the same file", what());
                    return Err(Failure::file(ErrorKind::InvalidInput, message));
                }
                let mode = u32::from(source.inode.mode & 0o777);
                let new = new_inode(&call.caller, &place, FileKind::Regular, mode, b"");
                let target = (place.parent.inode.ino, place.name);
                let options = PublishOptions { replace, ..PublishOptions::default() };
                volume.outside.clone_file(source.inode.ino, target, &new, &options).context(what)?
            }
            FileKind::Symlink => {
                let target = volume.outside.symlink_target(source.inode.ino).context(what)?;
                let place = place(&volume, &call.caller, &to, false)?;
                let new = new_inode(&call.caller, &place, FileKind::Symlink, 0, &target);
                volume.outside.make(place.parent.inode.ino, place.name, &new).context(what)?
            }
            FileKind::Directory
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => {
                let message = format!("{}: it is neither a file nor a link", what());
                return Err(Failure::file(ErrorKind::InvalidInput, message));
            }
        };
        Ok(v1::EntryResponse { entry: Some(self.entry(&volume, &request.to, &copied)?) })
    }

    /// Changes mode, owner and times.
    ///
    /// # Errors
    ///
    /// Those of chmod(2), chown(2) and utimensat(2).
    pub fn set_attributes(
        &self,
        call: &Call,
        request: &v1::SetAttributesRequest,
    ) -> Result<v1::EntryResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let names = Names::new(&request.path)?;
        let found = resolve(&volume.outside, &call.caller, &names)?;
        let inode = &found.inode;
        let mut set =
            AttributeChange { uid: request.uid, gid: request.gid, ..AttributeChange::default() };
        if request.uid.is_some() || request.gid.is_some() {
            let mode =
                call.caller.mode_after_chown(inode, request.uid, request.gid, || names.shown())?;
            set.mode = (mode != inode.mode).then_some(mode);
        }
        if let Some(mode) = request.mode {
            let mode = u16::try_from(mode & 0o7777).expect("twelve bits");
            let gid = request.gid.unwrap_or(inode.gid);
            set.mode = Some(call.caller.new_mode(inode, mode, gid, || names.shown())?);
        }
        let time = |time: &v1::Timestamp| TimeChange::At(timestamp(time));
        (set.atime, set.mtime) =
            (request.atime.as_ref().map(time), request.mtime.as_ref().map(time));
        if set.atime.is_some() || set.mtime.is_some() {
            call.caller.require_owner(inode, "set the times of", || names.shown())?;
        }
        let changed = volume
            .outside
            .set_attributes(inode.ino, &set)
            .context(|| format!("cannot change {}", names.shown()))?;
        Ok(v1::EntryResponse { entry: Some(self.entry(&volume, &request.path, &changed)?) })
    }

    /// Removes a name, or all that is below it.
    ///
    /// # Errors
    ///
    /// Those of unlink(2) and rmdir(2). A recursive removal goes on behind failures and lists them; it
    /// fails itself only if the path cannot be looked up.
    pub fn remove(
        &self,
        call: &Call,
        request: &v1::RemoveRequest,
    ) -> Result<v1::RemoveResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let names = Names::new(&request.path)?;
        let found = match resolve(&volume.outside, &call.caller, &names) {
            Err(error) if request.missing_ok && is_absent(&error) => {
                names.split_last()?;
                return Ok(v1::RemoveResponse::default());
            }
            found => found?,
        };
        let (parent, name) = resolve_parent(&volume.outside, &call.caller, &names)?;
        // Checked first: a tree whose root cannot go is left alone.
        call.caller.require_removal(&parent.inode, &found.inode, || names.shown())?;
        let is_directory = found.inode.kind == FileKind::Directory;
        if is_directory && !request.recursive && !request.directory {
            let message = format!("{} is a directory", names.shown());
            return Err(Failure::file(ErrorKind::IsDirectory, message));
        }
        if !is_directory && request.directory {
            let message = format!("{} is not a directory", names.shown());
            return Err(Failure::file(ErrorKind::NotDirectory, message));
        }
        let mut removal = Removal {
            call,
            volume: &volume,
            base: &request.path,
            answer: v1::RemoveResponse::default(),
        };
        if is_directory && request.recursive && !removal.empty(found.inode.ino)? {
            return Ok(removal.answer);
        }
        match removal.remove_one(&parent, name, &found) {
            Ok(()) => Ok(removal.answer),
            Err(error) if removal.answer.errors.is_empty() => Err(error),
            Err(_) => Ok(removal.answer),
        }
    }
}

/// A recursive removal under way.
struct Removal<'a> {
    call: &'a Call,
    volume: &'a ServedVolume,
    base: &'a [u8],
    answer: v1::RemoveResponse,
}

/// A directory that is being emptied.
struct Level {
    directory: Attributes,
    name: Vec<u8>,
    /// Entries behind it have not been tried; those before it could not be removed.
    after: u64,
    kept: bool,
}

impl Removal<'_> {
    /// Removes what is in a directory; false if something stayed. Memory grows with the depth only.
    fn empty(&mut self, ino: Ino) -> Result<bool, Failure> {
        let directory = self.attributes(ino)?;
        let mut levels = vec![Level { directory, name: Vec::new(), after: 0, kept: false }];
        loop {
            self.call.check()?;
            let Some(level) = levels.last_mut() else { return Ok(true) };
            let page = match self.page(level) {
                Ok(page) => page,
                Err(error) => {
                    level.kept = true;
                    self.note(&levels, b"", &error);
                    Vec::new()
                }
            };
            if page.is_empty() {
                let Some(done) = levels.pop() else { return Ok(true) };
                let Some(above) = levels.last_mut() else { return Ok(!done.kept) };
                if done.kept {
                    above.kept = true;
                } else if let Err(error) =
                    self.remove_one(&above.directory.clone(), &done.name, &done.directory)
                {
                    above.kept = true;
                    self.note(&levels, &done.name, &error);
                }
                continue;
            }
            self.remove_page(&mut levels, page)?;
        }
    }

    fn page(&self, level: &Level) -> Result<Vec<(librorum_meta::Dentry, Attributes)>, Failure> {
        let inode = &level.directory.inode;
        let path = || shown(&level.name);
        self.call.caller.require(inode, Access::LIST, path)?;
        let page = self.volume.outside.read_dir(inode.ino, level.after, PAGE);
        page.context(|| format!("cannot list {}", shown(&level.name)))
    }

    /// Removes the files of a page, up to the first directory, which becomes the next level.
    fn remove_page(
        &mut self,
        levels: &mut Vec<Level>,
        page: Vec<(librorum_meta::Dentry, Attributes)>,
    ) -> Result<(), Failure> {
        for (dentry, found) in page {
            self.call.check()?;
            let Some(level) = levels.last_mut() else { return Ok(()) };
            level.after = dentry.cookie;
            if found.inode.kind == FileKind::Directory {
                levels.push(Level { directory: found, name: dentry.name, after: 0, kept: false });
                return Ok(());
            }
            let directory = level.directory.clone();
            if let Err(error) = self.remove_one(&directory, &dentry.name, &found) {
                level.kept = true;
                self.note(levels, &dentry.name, &error);
            }
        }
        Ok(())
    }

    /// Removes one name. One that is gone already is as good as removed.
    fn remove_one(
        &mut self,
        directory: &Attributes,
        name: &[u8],
        found: &Attributes,
    ) -> Result<(), Failure> {
        let path = || shown(name);
        self.call.caller.require_removal(&directory.inode, &found.inode, path)?;
        let removed = if found.inode.kind == FileKind::Directory {
            self.volume.outside.rmdir(directory.inode.ino, name)
        } else {
            self.volume.outside.unlink(directory.inode.ino, name)
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failure(&error, &format!("cannot remove {}", shown(name))))
            }
            _ => {
                self.answer.removed_count += 1;
                Ok(())
            }
        }
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, Failure> {
        self.volume.outside.attributes(ino).context(|| format!("cannot list {}", shown(self.base)))
    }

    fn note(&mut self, levels: &[Level], name: &[u8], error: &Failure) {
        if self.answer.errors.len() >= ERRORS_MAX {
            return;
        }
        let mut path = self.base.to_vec();
        for name in levels.iter().map(|level| level.name.as_slice()).chain([name]) {
            if !name.is_empty() {
                path.push(b'/');
                path.extend_from_slice(name);
            }
        }
        let error = Some(error.to_message());
        self.answer.errors.push(v1::PathError { path: path.into(), error });
    }
}

/// Refuses to replace a directory by something else, and the other way round.
fn require_same_kind(
    moved: &Attributes,
    replaced: &Attributes,
    to: &Names<'_>,
) -> Result<(), Failure> {
    let is_directory = |found: &Attributes| found.inode.kind == FileKind::Directory;
    match (is_directory(moved), is_directory(replaced)) {
        (true, false) => {
            let message = format!("{} is not a directory, as what would replace it is", to.shown());
            Err(Failure::file(ErrorKind::NotDirectory, message))
        }
        (false, true) => {
            let message = format!("{} is a directory", to.shown());
            Err(Failure::file(ErrorKind::IsDirectory, message))
        }
        _ => Ok(()),
    }
}

/// Refuses to move a directory below itself, and onto one that it lies in. No link is followed, so the
/// names tell.
fn require_no_loop(from: &Names<'_>, to: &Names<'_>, mode: RenameMode) -> Result<(), Failure> {
    let (above, below) = (from.names(), to.names());
    if below.len() > above.len() && below.starts_with(above) {
        let message = format!("cannot move {} below itself", from.shown());
        return Err(Failure::file(ErrorKind::InvalidInput, message));
    }
    if above.len() > below.len() && above.starts_with(below) {
        let message = format!("cannot move {} onto a directory it lies in", from.shown());
        let is_exchange = mode == RenameMode::Exchange;
        let kind = if is_exchange { ErrorKind::InvalidInput } else { ErrorKind::NotEmpty };
        return Err(Failure::file(kind, message));
    }
    Ok(())
}

/// Whether existing files are replaced; an exchange is a rename's only.
pub(super) fn replaces(replace: v1::Replace) -> Result<bool, Failure> {
    match replace {
        v1::Replace::Yes => Ok(true),
        v1::Replace::No => Ok(false),
        v1::Replace::Exchange => {
            Err(Failure::file(ErrorKind::InvalidInput, "only a rename can exchange two names"))
        }
    }
}

fn is_absent(error: &Failure) -> bool {
    error.reason == librorum_rpc::Reason::File(ErrorKind::NotFound)
}

fn is_taken(error: &Failure) -> bool {
    error.reason == librorum_rpc::Reason::File(ErrorKind::AlreadyExists)
}
