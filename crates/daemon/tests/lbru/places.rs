//! Where the socket is, and who could put another in its place.

use std::fs::Permissions;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};

use librorum_daemon::lbru::{Access, BindError, bind};

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_folder_is_made_for_those_who_may() {
    let dir = tempfile::tempdir().unwrap();
    for (access, folder_mode, socket_mode) in [
        (Access::Owner, 0o700, 0o600),
        (Access::Group(rustix::process::getegid().as_raw()), 0o750, 0o660),
        (Access::Everybody, 0o755, 0o666),
    ] {
        let path = dir.path().join(format!("{folder_mode:o}/socket"));
        let _listener = bind(&path, access).unwrap();
        assert_eq!(mode(path.parent().unwrap()), folder_mode);
        assert_eq!(mode(&path), socket_mode);
    }
}

#[test]
fn a_folder_of_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    for writable in [0o777, 0o770, 0o1777] {
        std::fs::set_permissions(dir.path(), Permissions::from_mode(writable)).unwrap();
        assert!(matches!(bind(&path, Access::Owner), Err(BindError::Writable { .. })));
    }
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    drop(bind(&path, Access::Owner).unwrap());
    if rustix::process::geteuid().is_root() {
        chown(dir.path(), Some(12_345), None).unwrap();
        assert!(matches!(bind(&path, Access::Owner), Err(BindError::Foreign { uid: 12_345, .. })));
    }
}

#[test]
fn only_a_socket_that_nobody_listens_at_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/socket");
    let listener = bind(&path, Access::Owner).unwrap();
    assert!(matches!(bind(&path, Access::Owner), Err(BindError::InUse { .. })));
    let client = UnixStream::connect(&path).unwrap();
    drop((listener, client));
    // Killed without a chance to clean up.
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    drop(bind(&path, Access::Owner).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"not a socket").unwrap();
    assert!(matches!(bind(&path, Access::Owner), Err(BindError::NotSocket { .. })));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
    assert!(matches!(bind(&path, Access::Owner), Err(BindError::NotSocket { .. })));
    std::fs::remove_file(&path).unwrap();
    if rustix::process::geteuid().is_root() {
        drop(UnixListener::bind(&path).unwrap());
        chown(&path, Some(12_345), None).unwrap();
        assert!(matches!(bind(&path, Access::Owner), Err(BindError::NotSocket { .. })));
    }
}
