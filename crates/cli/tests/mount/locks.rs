//! Locks between processes: `flock`, records of `fcntl`, and those of open file descriptions.

use std::fs;

use crate::harness::{Mode, Mount, Python, Run, in_modes};

in_modes!(locks_conflict_between_processes: passthrough, cached, unprivileged);

fn locks_conflict_between_processes(mode: Mode) {
    let mount = Mount::with(mode, &["seal_after=1"]);
    let path = mount.path("locked");
    fs::write(&path, vec![0; 10_000]).unwrap();
    let script = r#"
path = sys.argv[1]
holds, told = os.pipe()
release, hear = os.pipe()
F_OFD_SETLK = 37
def ofd(fd, kind, start, len):
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack('hhqqi4x', kind, 0, start, len, 0))
def refused(attempt):
    try:
        attempt()
    except OSError as error:
        assert error.errno in (errno.EAGAIN, errno.EACCES), error
        return True
    return False
child = os.fork()
if child == 0:
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX, 100, 1000)
    other = os.open(path, os.O_RDWR)
    ofd(other, fcntl.F_WRLCK, 5000, 10)
    os.write(told, b'x')
    os.read(release, 1)
    os._exit(0)
os.read(holds, 1)
fd = os.open(path, os.O_RDWR)
assert refused(lambda: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)), 'flock'
assert refused(lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1050)), 'record'
assert refused(lambda: ofd(fd, fcntl.F_RDLCK, 5005, 1)), 'open file description'
fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 2000)
query = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 1000, 1, 0))
assert struct.unpack('hhqqi4x', query)[4] == child, 'who holds it'
os.write(hear, b'x')
assert os.waitpid(child, 0)[1] == 0
# With the process its locks are gone; a blocking call gets them.
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.lockf(fd, fcntl.LOCK_EX, 100, 1000)
ofd(fd, fcntl.F_WRLCK, 5000, 10)
"#;
    Python::script(script).arg(&path).ok();
}

in_modes!(a_waiting_lock_is_granted_and_can_be_interrupted: passthrough, unprivileged);

fn a_waiting_lock_is_granted_and_can_be_interrupted(mode: Mode) {
    let mount = Mount::new(mode);
    let path = mount.path("locked");
    fs::write(&path, "x").unwrap();
    let script = r#"
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
child = os.fork()
if child == 0:
    own = os.open(path, os.O_RDWR)
    class Alarm(Exception):
        pass
    def ring(*_):
        raise Alarm
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        fcntl.flock(own, fcntl.LOCK_EX)
        os._exit(1)
    except Alarm:
        pass
    os.kill(os.getppid(), signal.SIGUSR1)
    fcntl.flock(own, fcntl.LOCK_EX)
    os._exit(0)
signal.signal(signal.SIGUSR1, lambda *_: fcntl.flock(fd, fcntl.LOCK_UN))
assert os.waitpid(child, 0)[1] == 0
"#;
    Python::script(script).arg(&path).ok();
}
