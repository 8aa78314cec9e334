//! What every implementation of [`Meta`] must do: behaviour tests, and a random one against a
//! model.
//!
//! An implementation hands in a [`Volume`] factory, through [`meta_conformance!`](crate::meta_conformance),
//! which makes one test of every case. Cases know nothing but the trait.

#![allow(clippy::unwrap_used, reason = "these are tests, compiled into others' tests by a feature")]

pub mod content;
pub mod durability;
pub mod lists;
pub mod model;
pub mod names;
pub mod publishing;
pub mod renames;

use std::collections::BTreeMap;

use librorum_format::{ChunkId, Encoding, Extent, Ino, Location, SegmentId, Timestamp};

use crate::{
    FileKind, Inode, Meta, MetaError, NewContent, NewInode, RenameMode, Result, SetContent,
};

/// A new, empty volume of the implementation under test.
pub trait Volume {
    /// Its metadata.
    fn meta(&self) -> &dyn Meta;

    /// Closes and opens it again.
    fn reopen(&mut self);
}

macro_rules! cases {
    (($d:tt) $($module:ident :: $name:ident,)*) => {
        /// Every case, by name.
        pub const CASES: &[(&str, fn(&mut dyn Volume))] =
            &[$((stringify!($name), $module::$name),)*];

        /// Makes a test of every conformance case. `$fresh` is an expression that makes a new
        /// [`Volume`](crate::conformance::Volume).
        #[macro_export]
        macro_rules! meta_conformance {
            ($d fresh:expr) => {
                $(
                    #[test]
                    fn $name() {
                        let mut volume = $d fresh;
                        $crate::conformance::$module::$name(&mut volume);
                        $crate::conformance::assert_sound(
                            $crate::conformance::Volume::meta(&volume),
                        );
                    }
                )*
            };
        }
    };
}

cases! {
    ($)
    names::new_volume_has_a_root_directory,
    names::created_inode_is_found_by_name_and_number,
    names::create_refuses_an_existing_name,
    names::bad_names_are_refused_everywhere,
    names::names_may_hold_any_other_byte,
    names::entries_need_a_directory,
    names::create_changes_the_times_and_links_of_its_directory,
    names::set_gid_directory_hands_its_group_down,
    names::unlinked_file_stays_readable_until_reaped,
    names::hard_links_count,
    names::link_refuses_directories_and_orphans,
    names::unlink_and_rmdir_keep_to_their_kinds,
    names::rmdir_refuses_a_directory_with_entries,
    names::removed_directory_takes_no_entries,
    names::set_attr_changes_what_it_is_told,
    names::symlink_keeps_its_target,
    names::reap_refuses_what_has_a_name,
    renames::rename_moves_an_entry,
    renames::rename_replaces_a_file,
    renames::rename_of_a_missing_name_fails,
    renames::rename_keeps_directories_and_files_apart,
    renames::rename_replaces_only_empty_directories,
    renames::rename_moves_a_directory_and_its_link,
    renames::rename_refuses_to_move_a_directory_below_itself,
    renames::rename_onto_the_own_parent_fails,
    renames::rename_between_names_of_one_inode_changes_nothing,
    renames::no_replace_refuses_an_existing_target,
    renames::exchange_swaps_files_and_directories,
    lists::readdir_pages_see_every_entry_once,
    lists::readdir_goes_on_after_removals,
    lists::readdir_plus_agrees_with_lookup,
    lists::readdir_of_something_else_fails,
    lists::xattrs_round_trip,
    lists::xattr_modes_are_kept,
    lists::xattr_limits_are_kept,
    lists::inodes_are_listed_in_order,
    lists::counters_follow,
    content::inline_bytes_round_trip,
    content::stale_content_is_refused,
    content::content_is_for_regular_files,
    content::staged_files_are_listed,
    content::extents_come_back_in_ranges,
    content::invalid_extents_are_refused,
    content::overlay_keeps_the_base,
    content::overlay_needs_a_base,
    content::size_changes_only_where_no_byte_is_cut,
    content::shared_pages_keep_their_segments_until_the_last_file_goes,
    content::sealing_in_place_never_condemns_the_staging_file,
    content::replaced_content_condemns_its_segments,
    content::only_known_segments_may_be_named_again,
    content::claimed_segments_are_out_of_reach,
    content::condemn_spares_what_is_named,
    content::ownership_is_exclusive,
    content::reap_condemns_the_staging_file,
    publishing::published_file_has_its_content_at_once,
    publishing::published_file_takes_a_name_only_if_it_may,
    publishing::only_sound_regular_files_are_published,
    durability::positions_grow_and_sync_covers_them,
    durability::everything_survives_reopening,
    durability::numbers_are_never_reused,
    durability::concurrent_creates_all_happen,
    durability::concurrent_renames_keep_the_tree_a_tree,
    durability::one_of_many_concurrent_creators_wins,
    durability::concurrent_syncs_all_return,
    durability::dump_loads_into_an_equal_volume,
    durability::damaged_dump_is_refused,
    durability::dump_loads_only_into_an_empty_volume,
}

/// Asserts that `check` finds nothing.
pub fn assert_sound(meta: &dyn Meta) {
    let mut reports = Vec::new();
    meta.check(false, &mut |report| reports.push(report)).unwrap();
    assert!(reports.is_empty(), "check found: {reports:#?}");
}

/// A time that counts.
#[must_use]
pub(crate) fn at(secs: i64) -> Timestamp {
    Timestamp::new(secs, 7)
}

/// A new inode of a kind, at a time.
#[must_use]
pub(crate) fn new(kind: FileKind, secs: i64) -> NewInode<'static> {
    NewInode {
        kind,
        mode: if kind == FileKind::Directory { 0o755 } else { 0o644 },
        uid: 1000,
        gid: 1001,
        rdev: 0,
        symlink_target: if kind == FileKind::Symlink { b"target" } else { b"" },
        staging: None,
        now: at(secs),
    }
}

/// Makes a regular file.
pub(crate) fn file(meta: &dyn Meta, parent: Ino, name: &str) -> Inode {
    meta.create(parent, name.as_bytes(), &new(FileKind::Regular, 10)).unwrap().0
}

/// Makes a directory.
pub(crate) fn directory(meta: &dyn Meta, parent: Ino, name: &str) -> Inode {
    meta.create(parent, name.as_bytes(), &new(FileKind::Directory, 10)).unwrap().0
}

/// Renames in the given mode.
pub(crate) fn rename(
    meta: &dyn Meta,
    from: (Ino, &str),
    to: (Ino, &str),
    mode: RenameMode,
) -> Result<crate::Renamed> {
    meta.rename((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()), mode, at(50))
}

/// An extent of one whole chunk, at a place in a segment that follows from its place in the file.
#[must_use]
pub(crate) fn extent(file_offset_bytes: u64, len_bytes: u32, segment: u64) -> Extent {
    Extent {
        file_offset_bytes,
        len_bytes,
        chunk_offset_bytes: 0,
        chunk_len_bytes: len_bytes,
        chunk: ChunkId::of(&file_offset_bytes.to_le_bytes()),
        location: Location {
            segment: SegmentId(segment),
            offset_bytes: file_offset_bytes,
            stored_len_bytes: len_bytes,
            encoding: Encoding::Raw,
        },
    }
}

/// Changes a file's content from whatever it is now.
pub(crate) fn put(
    meta: &dyn Meta,
    ino: Ino,
    content: NewContent<'_>,
    size_bytes: u64,
) -> Result<Inode> {
    let expected_version = meta.inode(ino)?.content_version;
    let change = SetContent {
        ino,
        expected_version,
        content,
        size_bytes,
        allocated_bytes: size_bytes,
        mtime: None,
        ctime: None,
    };
    meta.set_content(&change).map(|(inode, _)| inode)
}

/// Seals a file with extents whose segments are all new.
pub(crate) fn seal(meta: &dyn Meta, ino: Ino, extents: &[Extent]) -> Result<Inode> {
    let fresh: Vec<SegmentId> = extents.iter().map(|extent| extent.location.segment).collect();
    let size_bytes = extents.last().map_or(0, Extent::file_end_bytes);
    put(meta, ino, NewContent::Sealed { extents, fresh: &fresh }, size_bytes)
}

/// The segments that nothing names.
pub(crate) fn condemned(meta: &dyn Meta) -> Vec<u64> {
    let all = meta.condemned(SegmentId(0), 1000).unwrap();
    all.into_iter().map(|condemned| condemned.segment.0).collect()
}

/// The names in a directory, by inode.
pub(crate) fn entries(meta: &dyn Meta, dir: Ino) -> BTreeMap<Vec<u8>, Ino> {
    let mut entries = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = meta.readdir(dir, after, 3).unwrap();
        let Some(last) = page.last() else { return entries };
        after = last.cookie;
        for dentry in page {
            assert!(dentry.cookie >= crate::COOKIE_MIN && dentry.cookie < 1 << 63);
            assert_eq!(entries.insert(dentry.name, dentry.ino), None, "an entry seen twice");
        }
    }
}

/// Asserts that an operation failed with a variant of [`MetaError`].
macro_rules! assert_fails {
    ($result:expr, $pattern:pat) => {
        match $result {
            Err($pattern) => {}
            other => panic!("expected {}, got {other:?}", stringify!($pattern)),
        }
    };
}
use assert_fails;

/// The error, for comparing with a model.
fn kind_of<T>(result: &Result<T>) -> Option<librorum_format::ErrorKind> {
    result.as_ref().err().map(MetaError::kind)
}
