//! A disk that hangs delays those who need it and nobody else.

use std::fs::{self, File};
use std::io::{Read, Write};

use std::process::Stdio;

use crate::harness::{LoopDisk, Mode, Mount, Python, Run, bytes, in_modes, program, within};

in_modes!(a_hanging_disk_does_not_delay_what_is_known: passthrough, cached);

const BLOCKED_COUNT: usize = 20;

fn a_hanging_disk_does_not_delay_what_is_known(mode: Mode) {
    let disk = LoopDisk::new(128);
    let mount = Mount::on(mode, &["seal_after=20"], disk.root());
    let dir = mount.path("dir");
    fs::create_dir(&dir).unwrap();
    for index in 0..100 {
        fs::write(dir.join(format!("{index}")), bytes(index, 20_000)).unwrap();
    }
    let known = dir.join("7");
    let expected = bytes(7, 20_000);
    mount.seal();
    assert!(fs::read(&known).unwrap() == expected);
    let script = "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\nprint('open', flush=True)\n\
                  sys.stdin.readline()\nos.write(fd, b'x' * 300000)\nos.fsync(fd)";
    let mut writers = Vec::new();
    for index in 0..BLOCKED_COUNT {
        let mut command = Python::script(script);
        command.arg(mount.path(&format!("writer-{index}")));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        writers.push(command.spawn().unwrap());
    }
    for writer in &mut writers {
        let mut line = [0; 5];
        writer.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    }
    {
        let frozen = disk.freeze();
        for writer in &mut writers {
            writer.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        }
        // Until all of them are stuck, in the kernel or with us.
        let is_stuck = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            !stat.is_empty() && stat != "0" && !stat.contains("pipe")
        };
        within("the writers to be stuck", || {
            writers.iter().all(|writer| is_stuck(writer.id())).then_some(())
        });
        for writer in &mut writers {
            assert!(writer.try_wait().unwrap().is_none(), "the disk is not frozen");
        }
        // Each in a process of its own: one that hangs must not hang the test.
        let looks = [
            program("stat").arg(&known).start(),
            program("cat").arg(&known).stdout(Stdio::null()).start(),
            program("ls").arg("-l").arg(&dir).stdout(Stdio::null()).start(),
            program("find").arg(&dir).stdout(Stdio::null()).start(),
            program("stat").arg("-f").arg(mount.root()).start(),
            program("test").arg("!").arg("-e").arg(dir.join("missing")).start(),
        ];
        for look in looks {
            look.ok();
        }
        drop(frozen);
    }
    for mut writer in writers {
        let status = within("a writer to end", || writer.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
    for index in 0..BLOCKED_COUNT {
        let written = fs::read(mount.path(&format!("writer-{index}"))).unwrap();
        assert!(written == vec![b'x'; 300_000]);
    }
    let mut file = File::create(mount.path("afterwards")).unwrap();
    file.write_all(b"works").unwrap();
    rustix::fs::fsync(&file).unwrap();
    drop(file);
    drop(mount);
}

in_modes!(a_wait_for_the_sealer_can_be_interrupted: passthrough, cached);

/// Who waits because too much is unsealed gets its signal at once, also while the sealer hangs.
fn a_wait_for_the_sealer_can_be_interrupted(mode: Mode) {
    let disk = LoopDisk::new(128);
    let mount = Mount::on(mode, &["seal_after=3600000", "unsealed=8M"], disk.root());
    for name in ["first", "second"] {
        fs::write(mount.path(name), bytes(1, 1000)).unwrap();
    }
    // Durable, so that closing it needs no disk, and too much as soon as it is closed.
    let big = File::create(mount.path("big")).unwrap();
    (&big).write_all(&bytes(2, 12 << 20)).unwrap();
    rustix::fs::fsync(&big).unwrap();
    {
        let _frozen = disk.freeze();
        drop(big);
        within("too much to be unsealed", || {
            (mount.status()["staged_bytes"].as_u64().unwrap() > 8 << 20).then_some(())
        });
        let script = "class Alarm(Exception): pass\n\
                      def ring(*_): raise Alarm\n\
                      signal.signal(signal.SIGALRM, ring)\n\
                      signal.setitimer(signal.ITIMER_REAL, 0.3)\n\
                      try:\n    os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n\
                      except Alarm:\n    sys.exit(0)\n\
                      sys.exit('it was opened')";
        for name in ["first", "new"] {
            Python::script(script).arg(mount.path(name)).start().ok();
        }
        let mut killed = Python::script("os.open(sys.argv[1], os.O_WRONLY)");
        let mut killed = killed.arg(mount.path("second")).spawn().unwrap();
        let waits = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            stat.contains("request_wait_answer") || stat.contains("fuse")
        };
        within("an open to wait", || waits(killed.id()).then_some(()));
        killed.kill().unwrap();
        within("a killed process to end", || killed.try_wait().unwrap());
    }
    assert!(!mount.path("new").exists(), "an interrupted create made nothing");
    fs::write(mount.path("new"), "works").unwrap();
    assert!(fs::read(mount.path("big")).unwrap() == bytes(2, 12 << 20));
}
