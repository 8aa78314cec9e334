//! Times, extended attributes, permissions and limits.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use crate::harness::{Mode, Mount, Python, Run, bytes, in_modes, within};

in_modes!(times_keep_their_nanoseconds_also_before_1970: passthrough, cached, unprivileged);

fn times_keep_their_nanoseconds_also_before_1970(mode: Mode) {
    let mut mount = Mount::new(mode);
    let path = mount.path("file");
    fs::write(&path, "x").unwrap();
    let cases = [
        (0, 0),
        (0, 1),
        (-1, 999_999_999),
        (-1, 0),
        (-1, 1),
        (-2_000_000_000, 123_456_789),
        (2_147_483_648, 5),
        (10_000_000_000, 999_999_999),
    ];
    for (secs, nanos) in cases {
        let atime = Timespec { tv_sec: secs, tv_nsec: nanos };
        let mtime = Timespec { tv_sec: secs + 7, tv_nsec: nanos };
        let times = Timestamps { last_access: atime, last_modification: mtime };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        for remounted in [false, true] {
            if remounted {
                mount.remount();
            }
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.mtime(), found.mtime_nsec()), (secs + 7, nanos));
            assert_eq!((found.atime(), found.atime_nsec()), (secs, nanos));
        }
    }
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let before = fs::metadata(&path).unwrap();
    let times = Timestamps { last_access: omit, last_modification: now };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.atime(), after.atime_nsec()), (before.atime(), before.atime_nsec()));
    assert!(after.mtime() > 1_700_000_000 && after.mtime() < 10_000_000_000);
}

in_modes!(a_file_that_is_written_shows_size_and_time_at_once: passthrough, cached, unprivileged);

/// The kernel passes writes to the staging file without telling us: its attributes count.
fn a_file_that_is_written_shows_size_and_time_at_once(mode: Mode) {
    let mount = Mount::new(mode);
    let path = mount.path("file");
    fs::write(&path, "x").unwrap();
    let old = Timespec { tv_sec: 1000, tv_nsec: 5 };
    let times = Timestamps { last_access: old, last_modification: old };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 1000, "opening is not writing");
    for size in [10_u64, 5000, 200_000, 200_001] {
        file.write_all_at(&vec![1; usize::try_from(size).unwrap()], 0).unwrap();
        let seen = fs::metadata(&path).unwrap();
        assert_eq!(seen.size(), size);
        assert!(seen.mtime() > 1_700_000_000, "the time of the write, not {}", seen.mtime());
        // Another process does not share this one's descriptors.
        let script = "print(os.stat(sys.argv[1]).st_size)";
        assert_eq!(Python::script(script).arg(&path).ok().stdout.trim(), size.to_string());
    }
    drop(file);
    let closed = fs::metadata(&path).unwrap();
    mount.seal_everything();
    let sealed = fs::metadata(&path).unwrap();
    assert_eq!((sealed.mtime(), sealed.mtime_nsec()), (closed.mtime(), closed.mtime_nsec()));
    assert_eq!((sealed.ctime(), sealed.ctime_nsec()), (closed.ctime(), closed.ctime_nsec()));
}

in_modes!(a_mapped_write_moves_the_time: passthrough, cached, unprivileged);

fn a_mapped_write_moves_the_time(mode: Mode) {
    let mut mount = Mount::new(mode);
    let path = mount.path("file");
    fs::write(&path, vec![0; 8192]).unwrap();
    let old = Timespec { tv_sec: 1000, tv_nsec: 0 };
    let times = Timestamps { last_access: old, last_modification: old };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let script = "fd = os.open(sys.argv[1], os.O_RDWR)\nm = mmap.mmap(fd, 8192)\nm[0:1] = b'x'\n\
                  m.flush()\nm.close()\nos.close(fd)";
    Python::script(script).arg(&path).ok();
    // By the time the file is closed, as POSIX has it for msync.
    within("the time of the mapped write", || {
        (fs::metadata(&path).unwrap().mtime() > 1000).then_some(())
    });
    mount.remount();
    assert!(fs::metadata(&path).unwrap().mtime() > 1000);
    assert_eq!(fs::read(&path).unwrap()[0], b'x');
}

in_modes!(extended_attributes_have_the_kernels_limits: passthrough, cached, unprivileged);

fn extended_attributes_have_the_kernels_limits(mode: Mode) {
    let mut mount = Mount::new(mode);
    let path = mount.path("file");
    fs::write(&path, "x").unwrap();
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    let get = |name: &str| {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::getxattr(&path, name, value.as_mut_slice())?;
        value.truncate(len);
        Ok::<_, Errno>(value)
    };
    let longest_name = format!("user.{}", "n".repeat(250));
    set(&longest_name, b"v", XattrFlags::empty()).unwrap();
    let too_long = format!("{longest_name}n");
    assert_eq!(set(&too_long, b"v", XattrFlags::empty()), Err(Errno::RANGE));
    set("user.64k", &vec![7; 65536], XattrFlags::empty()).unwrap();
    assert_eq!(set("user.more", &vec![7; 65537], XattrFlags::empty()), Err(Errno::TOOBIG));
    assert_eq!(set("user.64k", b"", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set("user.none", b"", XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(get("user.none"), Err(Errno::NODATA));
    let mut short = [0; 10];
    assert_eq!(rustix::fs::getxattr(&path, "user.64k", &mut short), Err(Errno::RANGE));
    set("user.empty", b"", XattrFlags::CREATE).unwrap();
    mount.seal();
    mount.remount();
    assert_eq!(get("user.64k").unwrap(), vec![7; 65536]);
    assert_eq!(get("user.empty").unwrap(), b"");
    rustix::fs::removexattr(&path, "user.64k").unwrap();
    assert_eq!(rustix::fs::removexattr(&path, "user.64k"), Err(Errno::NODATA));
    mount.remount();
    assert_eq!(get("user.64k"), Err(Errno::NODATA));
    assert_eq!(get(&longest_name).unwrap(), b"v");
}

in_modes!(access_control_lists_are_refused: passthrough, unprivileged);

/// The documented refusal: nobody may believe that an ACL is in force that is not.
fn access_control_lists_are_refused(mode: Mode) {
    let mount = Mount::new(mode);
    let path = mount.path("file");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let set = crate::harness::program("setfacl").args(["-m", "u:1000:rw"]).arg(&path).run();
    assert_ne!(set.code, Some(0));
    assert!(set.stderr.contains("Operation not supported"), "{set}");
    // What is there is told as what it is: the mode.
    let get = crate::harness::program("getfacl").args(["-p", "-c"]).arg(&path).ok();
    assert_eq!(get.stdout.trim(), "user::rw-\ngroup::r--\nother::---");
    // Version 2; owner, group and others with the rights of the mode.
    let mut acl: Vec<u8> = vec![2, 0, 0, 0];
    for (tag, rights) in [(0x01, 6), (0x04, 4), (0x20, 0)] {
        acl.extend_from_slice(&[tag, 0, rights, 0, 255, 255, 255, 255]);
    }
    let direct = rustix::fs::setxattr(&path, "system.posix_acl_access", &acl, XattrFlags::empty());
    assert_eq!(direct, Err(Errno::OPNOTSUPP));
    // And copying with permissions still works.
    crate::harness::program("cp").arg("-p").arg(&path).arg(mount.path("copy")).ok();
}

in_modes!(a_limit_on_file_size_is_kept: passthrough, cached, unprivileged);

fn a_limit_on_file_size_is_kept(mode: Mode) {
    let mount = Mount::new(mode);
    let script = r#"
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert os.pwrite(fd, b'x' * 60000, 0) == 60000
assert os.pwrite(fd, b'x' * 60000, 60000) == 40000, 'a write is cut at the limit'
for attempt in (lambda: os.pwrite(fd, b'x', 100000), lambda: os.ftruncate(fd, 100001)):
    try:
        attempt()
        sys.exit('beyond the limit')
    except OSError as error:
        assert error.errno == errno.EFBIG, error
assert os.fstat(fd).st_size == 100000
"#;
    Python::script(script).arg(mount.path("limited")).ok();
    // Beyond what any file can hold.
    let file = File::create(mount.path("vast")).unwrap();
    let beyond = file.write_at(b"x", u64::try_from(i64::MAX).unwrap());
    let error = beyond.unwrap_err().raw_os_error().map(Errno::from_raw_os_error);
    assert!(matches!(error, Some(Errno::FBIG | Errno::INVAL)), "{error:?}");
}

in_modes!(a_users_write_drops_set_id_bits: passthrough, cached);

/// Not unprivileged: such a mount is always `nosuid`.
fn a_users_write_drops_set_id_bits(mode: Mode) {
    let mut mount = Mount::new(mode);
    let mode_of = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let prepare = |name: &str, sealed: bool, mode: u32| {
        let path = mount.path(name);
        fs::write(&path, bytes(1, 100_000)).unwrap();
        if sealed {
            mount.seal();
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    };
    let mut checked = Vec::new();
    for sealed in [false, true] {
        for (how, script) in [
            ("write", "os.write(os.open(sys.argv[1], os.O_WRONLY), b'new')"),
            ("append", "os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), b'new')"),
            ("truncate", "os.truncate(sys.argv[1], 5)"),
            ("open", "os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)"),
        ] {
            for (given, left) in [(0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777)] {
                let path = prepare(&format!("{how}-{sealed}-{given:o}"), sealed, given);
                Python::script_as_nobody(script).arg(&path).ok();
                assert_eq!(mode_of(&path), left, "{how}, sealed: {sealed}, {given:o}");
                checked.push((path, left));
            }
            // Root keeps them, and so does whoever only reads.
            let path = prepare(&format!("root-{how}-{sealed}"), sealed, 0o6777);
            Python::script(script).arg(&path).ok();
            assert_eq!(mode_of(&path), 0o6777, "{how} by root");
            Python::script_as_nobody("open(sys.argv[1]).close()").arg(&path).ok();
            assert_eq!(mode_of(&path), 0o6777, "opened for reading");
        }
    }
    mount.remount();
    for (path, left) in checked {
        assert_eq!(mode_of(&path), left, "{}", path.display());
    }
}

in_modes!(the_kernel_keeps_strangers_out: passthrough, cached);

fn the_kernel_keeps_strangers_out(mode: Mode) {
    let mount = Mount::new(mode);
    let path = mount.path("secret");
    fs::write(&path, "secret").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let tried = Python::script_as_nobody("open(sys.argv[1])").arg(&path).run();
    assert!(tried.stderr.contains("PermissionError"), "{tried}");
    // Nor does the volume's folder let them in by the back door.
    let data = mount.volume().join("data");
    let tried = Python::script_as_nobody("os.listdir(sys.argv[1])").arg(&data).run();
    assert!(tried.stderr.contains("PermissionError"), "{tried}");
}
