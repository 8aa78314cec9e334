//! What is mounted where, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mounted volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedVolume {
    /// Where.
    pub mountpoint: PathBuf,
    /// The volume's folder.
    pub volume: PathBuf,
    /// Major and minor number of the mount's device, as in `/sys/class/bdi`.
    pub device: String,
}

/// The volumes that this machine has mounted, as far as this process can see.
///
/// # Errors
///
/// What reading `/proc/self/mountinfo` answers.
pub fn mounted_volumes() -> std::io::Result<Vec<MountedVolume>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The newest mount at `path`, which need not be reachable: a mount whose daemon died is not.
///
/// # Errors
///
/// As [`mounted_volumes`].
pub fn mounted_at(path: &Path) -> std::io::Result<Option<MountedVolume>> {
    let absolute = absolute(path);
    let mounted = mounted_volumes()?;
    Ok(mounted.into_iter().rev().find(|mount| mount.mountpoint == absolute))
}

#[must_use]
/// The path without links, touching only its parent: touching the mount itself could fail or hang.
pub fn absolute(path: &Path) -> PathBuf {
    let joined = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (joined.parent().map(Path::canonicalize), joined.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => joined,
    }
}

fn parse(text: &[u8]) -> Vec<MountedVolume> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountedVolume> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let mountpoint = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    if rest.next()? != b"fuse.librorum" {
        return None;
    }
    let volume = unescape(rest.next()?);
    Some(MountedVolume { mountpoint, volume, device })
}

/// Undoes the kernel's `\ooo` for blanks and backslashes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|digits| {
            field[at] == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        });
        if let Some(digits) = octal {
            let value =
                digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            bytes.push(u8::try_from(value & 0xff).unwrap_or(b'?'));
            at += 4;
        } else {
            bytes.push(field[at]);
            at += 1;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_our_mounts_with_blanks_in_their_names() {
        let text = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            90 22 0:47 / /mnt/my\\040files rw,nosuid,nodev - fuse.librorum /srv/a\\134b rw,user_id=0\n";
        let found = parse(text);
        assert_eq!(
            found,
            [MountedVolume {
                mountpoint: "/mnt/my files".into(),
                volume: "/srv/a\\b".into(),
                device: "0:47".into(),
            }]
        );
    }
}
