//! Every mount ends: asked, forced, or by the death of its process; and nothing synced is lost.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use rustix::process::Signal;

use crate::harness::{Mode, Mount, Run, bytes, in_modes};

const ENOTCONN: i32 = 107;

in_modes!(a_lazy_unmount_ends_when_the_files_are_closed: passthrough, cached, unprivileged);

fn a_lazy_unmount_ends_when_the_files_are_closed(mode: Mode) {
    let mut mount = Mount::new(mode);
    let content = bytes(1, 1 << 20);
    let path = mount.path("open");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(&content).unwrap();
    let busy = mount.librorum(&["umount"]).arg(mount.root()).run();
    assert_eq!(busy.code, Some(1), "{busy}");
    if mode != Mode::Unprivileged {
        assert!(busy.stderr.contains("in use") && busy.stderr.contains("--lazy"), "{busy}");
    }
    assert!(mount.is_in_tree());
    mount.librorum(&["umount", "--lazy"]).arg(mount.root()).ok();
    assert!(!mount.is_in_tree());
    // Who has it open goes on as if nothing were.
    file.write_all_at(b"after the unmount", content.len() as u64).unwrap();
    rustix::fs::fsync(&file).unwrap();
    let mut seen = vec![0; content.len()];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == content);
    // The volume is still in use, and says by whom.
    let second = mount.librorum(&["mount"]).arg(mount.volume()).arg(mount.root()).run();
    assert_eq!(second.code, Some(3), "{second}");
    assert!(second.stderr.contains(&mount.pid().to_string()), "{second}");
    drop(file);
    mount.ended_well();
    mount.mount();
    assert_eq!(fs::read(&path).unwrap(), [&content[..], b"after the unmount"].concat());
}

in_modes!(a_killed_mount_says_so_and_comes_back_whole: passthrough, cached, unprivileged);

fn a_killed_mount_says_so_and_comes_back_whole(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=20"]);
    fs::create_dir(mount.path("dir")).unwrap();
    let mut expected = Vec::new();
    for index in 0..40_u64 {
        let name = format!("dir/file-{index}");
        let content = bytes(index, usize::try_from(index * index * 1000).unwrap());
        let mut file = File::create(mount.path(&name)).unwrap();
        file.write_all(&content).unwrap();
        rustix::fs::fsync(&file).unwrap();
        expected.push((name, content));
    }
    let mut open = File::options().read(true).write(true).open(mount.path("dir/file-9")).unwrap();
    mount.kill();
    let by_path = fs::metadata(mount.path("dir/file-1")).unwrap_err();
    assert_eq!(by_path.raw_os_error(), Some(ENOTCONN));
    let listed = fs::read_dir(mount.root()).unwrap_err();
    assert_eq!(listed.raw_os_error(), Some(ENOTCONN));
    if mode != Mode::Passthrough {
        // (The kernel goes on to pass through what is open.)
        let read = open.read(&mut [0; 10]);
        let synced = rustix::fs::fsync(&open);
        assert!(read.is_err() || synced.is_err(), "{read:?} {synced:?}");
    }
    drop(open);
    // The dead mount does not pretend to be a volume in use.
    let status = mount.librorum(&["status", "--json"]).arg(mount.volume()).run();
    assert_eq!(status.code, Some(0), "{status}");
    mount.librorum(&["umount"]).arg(mount.root()).ok();
    assert!(!mount.is_in_tree());
    mount.assert_clean();
    mount.mount();
    for (name, content) in &expected {
        assert!(fs::read(mount.path(name)).unwrap() == *content, "{name}");
    }
    // A mount over the dead one clears it away, or says what to do; it does not bury it.
    mount.kill();
    let mut again = mount.librorum(&["mount", "--background"]);
    let again = again.arg(mount.volume()).arg(mount.root()).run();
    if again.code == Some(0) {
        mount.librorum(&["umount"]).arg(mount.root()).ok();
    } else {
        assert!(again.stderr.contains("librorum umount"), "{again}");
        mount.librorum(&["umount"]).arg(mount.root()).ok();
    }
    assert!(!mount.is_in_tree(), "the dead mount is still there");
    mount.mount();
}

in_modes!(a_signal_ends_the_mount_even_with_open_files: passthrough, cached, unprivileged);

fn a_signal_ends_the_mount_even_with_open_files(mode: Mode) {
    let mut mount = Mount::new(mode);
    for (signal, open) in
        [(Signal::TERM, false), (Signal::INT, true), (Signal::HUP, true), (Signal::TERM, true)]
    {
        let name = format!("{}-{open}", signal.as_raw());
        let content = bytes(1, 300_000);
        let mut file = File::create(mount.path(&name)).unwrap();
        file.write_all(&content).unwrap();
        rustix::fs::fsync(&file).unwrap();
        let held = open.then_some(file);
        mount.signal(signal);
        mount.ended_well();
        mount.assert_clean();
        drop(held);
        mount.mount();
        assert!(fs::read(mount.path(&name)).unwrap() == content);
    }
}

in_modes!(files_unlinked_but_open_are_freed_after_a_crash: passthrough, cached, unprivileged);

fn files_unlinked_but_open_are_freed_after_a_crash(mode: Mode) {
    let mut mount = Mount::new(mode);
    let mut held = Vec::new();
    for index in 0..10 {
        let path = mount.path(&format!("{index}"));
        fs::write(&path, bytes(index, 1 << 20)).unwrap();
        held.push(File::open(&path).unwrap());
        fs::remove_file(&path).unwrap();
    }
    // Not syncfs: the kernel does not tell a FUSE daemon of it.
    rustix::fs::fsync(File::open(mount.root()).unwrap()).unwrap();
    mount.kill();
    drop(held);
    mount.librorum(&["umount", "--lazy"]).arg(mount.root()).ok();
    mount.mount();
    crate::harness::within("the orphans to be freed", || {
        let status = mount.status();
        (status["orphan_count"] == 0 && status["condemned_count"] == 0).then_some(())
    });
    let status = mount.status();
    assert_eq!(status["file_count"], 0, "{status}");
    assert!(status["stored_bytes"].as_u64().unwrap() < 1 << 20, "{status}");
}

#[test]
fn a_volume_in_use_is_refused_with_who_holds_it() {
    let mount = Mount::new(Mode::Passthrough);
    fs::write(mount.path("file"), "x").unwrap();
    let pid = mount.pid().to_string();
    let elsewhere = mount.outside("elsewhere");
    let volume = mount.volume().to_str().unwrap();
    let elsewhere = elsewhere.to_str().unwrap();
    for (arguments, code) in [
        (&["mount", volume, elsewhere][..], 3),
        (&["mount", "--background", volume, elsewhere], 3),
        (&["mount", "--read-only", volume, elsewhere], 3),
        (&["sweep", volume], 3),
        // The codes of fsck(8): it could not be checked.
        (&["fsck", volume], 8),
        (&["fsck", "--repair", volume], 8),
    ] {
        let refused = mount.librorum(arguments).run();
        assert_eq!(refused.code, Some(code), "{arguments:?}: {refused}");
        assert!(refused.stderr.contains(&pid), "{arguments:?} names the holder: {refused}");
        let root = mount.root().to_str().unwrap();
        assert!(refused.stderr.contains(root), "{arguments:?} says where: {refused}");
    }
    let formatted = mount.librorum(&["format", volume]).run();
    assert_eq!(formatted.code, Some(1), "{formatted}");
    for at in [mount.volume(), mount.root()] {
        let status = mount.librorum(&["status", "--json"]).arg(at).ok();
        let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
        assert_eq!(status[0]["holder"]["pid"], mount.pid());
        assert_eq!(status[0]["file_count"], 1);
        let scrub = mount.librorum(&["scrub", "--json"]).arg(at).ok();
        assert_eq!(scrub.stdout.trim(), "{\"findings\":[]}");
    }
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"x");
}

#[test]
fn what_a_crash_leaves_behind_is_not_damage() {
    let mut mount = Mount::new(Mode::Passthrough);
    fs::write(mount.path("file"), bytes(1, 1 << 20)).unwrap();
    mount.kill();
    mount.librorum(&["umount", "--lazy"]).arg(mount.root()).ok();
    mount.assert_clean();
    mount.mount();
    mount.unmount();
    mount.assert_clean();
    mount.mount();
}
