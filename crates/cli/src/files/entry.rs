//! What is known of a file, for programs and for people.

use librorum_rpc::proto::v1;
use serde_json::{Value, json};

use crate::output::{bytes, utc};
use crate::remote::{path_json, shown};

/// A word for a kind of file.
pub(crate) fn kind_name(kind: v1::Kind) -> &'static str {
    match kind {
        v1::Kind::Unknown => "unknown",
        v1::Kind::Regular => "file",
        v1::Kind::Directory => "directory",
        v1::Kind::Symlink => "symlink",
        v1::Kind::BlockDevice => "block device",
        v1::Kind::CharDevice => "character device",
        v1::Kind::Fifo => "fifo",
        v1::Kind::Socket => "socket",
    }
}

pub(crate) fn state_name(state: v1::State) -> &'static str {
    match state {
        v1::State::Unknown => "unknown",
        v1::State::Empty => "empty",
        v1::State::Inline => "inline",
        v1::State::Staged => "staged",
        v1::State::Sealed => "sealed",
    }
}

fn nanoseconds(time: Option<&v1::Timestamp>) -> i64 {
    time.map_or(0, |time| {
        time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
    })
}

/// All of it, under the path that it has in its volume.
pub(crate) fn entry_json(path: &[u8], entry: &v1::Entry) -> Value {
    let mut value = json!({
        "path": path_json(path),
        "ino": entry.ino,
        "kind": kind_name(entry.kind()),
        "mode": format!("{:04o}", entry.mode),
        "nlink": entry.nlink,
        "uid": entry.uid,
        "gid": entry.gid,
        "size_bytes": entry.size_bytes,
        "allocated_bytes": entry.allocated_bytes,
        "atime_ns": nanoseconds(entry.atime.as_ref()),
        "mtime_ns": nanoseconds(entry.mtime.as_ref()),
        "ctime_ns": nanoseconds(entry.ctime.as_ref()),
        "btime_ns": nanoseconds(entry.btime.as_ref()),
        "state": state_name(entry.state()),
    });
    if entry.kind() == v1::Kind::Symlink {
        value["target"] = path_json(&entry.symlink_target);
    }
    value
}

/// `-rwxr-xr-x`, as `ls -l` has it.
pub(crate) fn mode_text(entry: &v1::Entry) -> String {
    let kind = match entry.kind() {
        v1::Kind::Unknown => '?',
        v1::Kind::Regular => '-',
        v1::Kind::Directory => 'd',
        v1::Kind::Symlink => 'l',
        v1::Kind::BlockDevice => 'b',
        v1::Kind::CharDevice => 'c',
        v1::Kind::Fifo => 'p',
        v1::Kind::Socket => 's',
    };
    let mode = entry.mode;
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// Arrow and target of a symlink, nothing for others.
pub(crate) fn target_text(entry: &v1::Entry) -> String {
    match entry.kind() {
        v1::Kind::Symlink => format!(" -> {}", shown(&entry.symlink_target)),
        v1::Kind::Unknown
        | v1::Kind::Regular
        | v1::Kind::Directory
        | v1::Kind::BlockDevice
        | v1::Kind::CharDevice
        | v1::Kind::Fifo
        | v1::Kind::Socket => String::new(),
    }
}

/// The entry as `stat` shows it.
pub(crate) fn describe(path: &str, entry: &v1::Entry) -> String {
    let time = |time: Option<&v1::Timestamp>| {
        time.map_or_else(|| "?".to_owned(), |time| utc(time.seconds, Some(time.nanos)))
    };
    format!(
        "path       {path}{}\nkind       {}, {}\nsize       {} ({} bytes), {} allocated\nmode       {:04o} {}, user {}, group {}, {} names\ninode      {}\nread       {}\nmodified   {}\nchanged    {}\nborn       {}",
        target_text(entry),
        kind_name(entry.kind()),
        state_name(entry.state()),
        bytes(entry.size_bytes),
        entry.size_bytes,
        bytes(entry.allocated_bytes),
        entry.mode,
        mode_text(entry),
        entry.uid,
        entry.gid,
        entry.nlink,
        entry.ino,
        time(entry.atime.as_ref()),
        time(entry.mtime.as_ref()),
        time(entry.ctime.as_ref()),
        time(entry.btime.as_ref()),
    )
}
