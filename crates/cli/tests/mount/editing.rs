//! How single files are written: by editors, through mmap, past the page cache, by several at once.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{CWD, OFlags, RenameFlags};

use crate::harness::{Mode, Mount, Python, Run, bytes, in_modes};

in_modes!(saving_by_rename_never_shows_half_a_file: passthrough, cached, unprivileged);

fn saving_by_rename_never_shows_half_a_file(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    let path = mount.path("document");
    // Lengths below and above the inline and packed borders.
    let text = |save: usize| vec![b'a' + u8::try_from(save % 26).unwrap(); 3000 + save * 700];
    fs::write(&path, text(0)).unwrap();
    let last = 120;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut newest = 0;
            while newest < last {
                let seen = fs::read(&path).unwrap();
                let save = (seen.len() - 3000) / 700;
                assert_eq!(seen, text(save), "a mixture of two saves");
                assert!(save >= newest, "save {save} after save {newest}");
                newest = save;
            }
        });
        for save in 1..=last {
            let temporary = mount.path(&format!(".document.{save}~"));
            let mut file = File::create(&temporary).unwrap();
            file.write_all(&text(save)).unwrap();
            rustix::fs::fsync(&file).unwrap();
            drop(file);
            if save % 3 == 0 {
                // As vim does with `backupcopy=no`: the old file becomes the backup first.
                fs::hard_link(&path, mount.path(&format!("backup.{save}"))).unwrap();
            }
            fs::rename(&temporary, &path).unwrap();
        }
        reader.join().unwrap();
    });
    mount.seal();
    mount.remount();
    assert_eq!(fs::read(&path).unwrap(), text(last));
    assert_eq!(fs::read(mount.path("backup.60")).unwrap(), text(59));
}

in_modes!(rename_can_refuse_and_exchange: passthrough, cached, unprivileged);

fn rename_can_refuse_and_exchange(mode: Mode) {
    let mut mount = Mount::new(mode);
    let (left, right) = (mount.path("left"), mount.path("right"));
    fs::write(&left, "left").unwrap();
    fs::create_dir(&right).unwrap();
    fs::write(right.join("inside"), "right").unwrap();
    let rename =
        |from: &Path, to: &Path, flags| rustix::fs::renameat_with(CWD, from, CWD, to, flags);
    let refused = rename(&left, &right, RenameFlags::NOREPLACE);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    rename(&left, &right, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(&right).unwrap(), b"left");
    assert_eq!(fs::read(left.join("inside")).unwrap(), b"right");
    rename(&right, &mount.path("new"), RenameFlags::NOREPLACE).unwrap();
    let missing = rename(&right, &left, RenameFlags::EXCHANGE);
    assert_eq!(missing, Err(rustix::io::Errno::NOENT));
    mount.remount();
    assert_eq!(fs::read(mount.path("new")).unwrap(), b"left");
    assert_eq!(fs::read(left.join("inside")).unwrap(), b"right");
}

in_modes!(an_unlinked_file_lives_until_it_is_closed: passthrough, cached, unprivileged);

fn an_unlinked_file_lives_until_it_is_closed(mode: Mode) {
    let mount = Mount::with(mode, &["seal_after=1"]);
    let path = mount.path("gone");
    for content in [bytes(1, 100), bytes(2, 200_000), bytes(3, 6 << 20)] {
        fs::write(&path, &content).unwrap();
        mount.seal();
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!path.exists());
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"written after unlink").unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        rustix::fs::fsync(&file).unwrap();
        file.rewind().unwrap();
        let mut seen = Vec::new();
        file.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, [&content[..], b"written after unlink"].concat());
        // Another file of that name is another file.
        fs::write(&path, "new").unwrap();
        assert_eq!(file.metadata().unwrap().len(), seen.len() as u64);
        fs::remove_file(&path).unwrap();
    }
}

in_modes!(mapped_writes_are_seen_by_all: passthrough, cached, unprivileged);

fn mapped_writes_are_seen_by_all(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    for (name, sealed) in [("fresh", false), ("sealed", true)] {
        let path = mount.path(name);
        fs::write(&path, vec![b'.'; 300_000]).unwrap();
        if sealed {
            mount.seal();
        }
        let script = r#"
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
first = mmap.mmap(fd, 300000)
child_reads, parent_writes = os.pipe()
parent_reads, child_writes = os.pipe()
child = os.fork()
if child == 0:
    # A process of its own, with a descriptor and a mapping of its own.
    other = os.open(path, os.O_RDWR)
    second = mmap.mmap(other, 300000)
    os.read(child_reads, 1)
    assert second[5000:5005] == b'first', second[5000:5005]
    second[200000:200006] = b'second'
    os.write(child_writes, b'x')
    os._exit(0)
first[5000:5005] = b'first'
assert os.pread(fd, 5, 5000) == b'first', 'read does not see what mmap wrote'
os.write(parent_writes, b'x')
os.read(parent_reads, 1)
assert os.waitpid(child, 0)[1] == 0
assert first[200000:200006] == b'second'
assert os.pread(fd, 6, 200000) == b'second'
os.pwrite(fd, b'third', 100000)
assert first[100000:100005] == b'third', 'mmap does not see what write wrote'
private = mmap.mmap(fd, 300000, flags=mmap.MAP_PRIVATE)
private[0:5] = b'never'
assert os.pread(fd, 5, 0) == b'.....'
first.flush()
os.fsync(fd)
"#;
        Python::script(script).arg(&path).ok();
    }
    let expected = |content: &[u8]| {
        let mut expected = vec![b'.'; 300_000];
        expected[5000..5005].copy_from_slice(b"first");
        expected[200_000..200_006].copy_from_slice(b"second");
        expected[100_000..100_005].copy_from_slice(b"third");
        assert!(content == expected);
    };
    mount.seal();
    mount.crash();
    for name in ["fresh", "sealed"] {
        expected(&fs::read(mount.path(name)).unwrap());
    }
}

in_modes!(direct_io_reads_and_writes_the_same_bytes: passthrough, cached, unprivileged);

fn direct_io_reads_and_writes_the_same_bytes(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    let content = bytes(11, 2 << 20);
    let path = mount.path("direct");
    let open = || {
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
        File::options().read(true).write(true).create(true).custom_flags(flags).open(&path).unwrap()
    };
    let mut aligned = Aligned::new(content.len());
    aligned.bytes().copy_from_slice(&content);
    let file = open();
    file.write_all_at(aligned.bytes(), 0).unwrap();
    drop(file);
    for round in 0..3 {
        assert!(fs::read(&path).unwrap() == content, "buffered, round {round}");
        aligned.bytes().fill(0);
        open().read_exact_at(aligned.bytes(), 0).unwrap();
        assert!(aligned.bytes() == content, "direct, round {round}");
        // Beside an open that goes through the page cache.
        let buffered = File::options().read(true).write(true).open(&path).unwrap();
        let direct = open();
        buffered.write_all_at(&content[..10_000], 0).unwrap();
        direct.read_exact_at(&mut aligned.bytes()[..65536], 0).unwrap();
        assert!(aligned.bytes()[..65536] == content[..65536]);
        let block = 512 << 10;
        aligned.bytes()[..4096].copy_from_slice(&content[block..block + 4096]);
        direct.write_all_at(&aligned.bytes()[..4096], block as u64).unwrap();
        let mut seen = vec![0; 4096];
        buffered.read_exact_at(&mut seen, block as u64).unwrap();
        assert!(seen == content[block..block + 4096]);
        drop((buffered, direct));
        if round == 0 {
            mount.seal();
        } else {
            mount.remount();
        }
    }
}

/// A buffer that begins at a page, as direct I/O wants it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

in_modes!(two_processes_append_without_loss: passthrough, cached, unprivileged);

fn two_processes_append_without_loss(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    let path = mount.path("journal");
    fs::write(&path, "").unwrap();
    let script = r#"
for index in range(2000):
    # Opened anew now and then: sealing must not come in between.
    if index % 200 == 0:
        fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    assert os.write(fd, f'{sys.argv[2]} {index:08}\n'.encode()) == 11
    if index % 200 == 199:
        os.close(fd)
"#;
    let writers = ["a", "b"].map(|name| Python::script(script).arg(&path).arg(name).start());
    for writer in writers {
        writer.ok();
    }
    for remounted in [false, true] {
        let text = fs::read_to_string(&path).unwrap();
        for name in ["a", "b"] {
            let seen: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
            let expected: Vec<String> =
                (0..2000).map(|index| format!("{name} {index:08}")).collect();
            assert_eq!(seen, expected, "remounted: {remounted}");
        }
        assert_eq!(text.lines().count(), 4000);
        mount.remount();
    }
}

in_modes!(a_mapping_outlives_its_descriptor: passthrough, cached, unprivileged);

/// A file is mapped and closed; then it is sealed, its duplicates are given back, it is removed, and
/// others are made. The mapping shows what it showed; and what is stored through one that can write
/// is in the file.
fn a_mapping_outlives_its_descriptor(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    // Inline, packed, and one whose middle is stored already.
    let common = bytes(9, 6 << 20);
    fs::write(mount.path("common"), &common).unwrap();
    let big = [&bytes(1, 3 << 20)[..], &common, &bytes(2, 3 << 20)].concat();
    for (name, content) in [
        ("inline", bytes(3, 3000)),
        ("packed", bytes(4, 40_000)),
        ("big", big),
        ("gone", bytes(5, 9000)),
    ] {
        fs::write(mount.path(name), &content).unwrap();
        fs::set_permissions(mount.path(name), PermissionsExt::from_mode(0o666)).unwrap();
    }
    let answer = "def answer(word):\n\
                  \x20   print(word, flush=True); sys.stdin.readline()\n";
    // Python keeps a copy of a descriptor that it maps, so the mapping is made by libc.
    let script = format!(
        "{answer}libc = ctypes.CDLL(None, use_errno=True)\n\
         libc.mmap.restype = ctypes.c_void_p\n\
         libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n\
         def mapped(path, writable):\n\
         \x20   fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)\n\
         \x20   size = os.fstat(fd).st_size\n\
         \x20   at = libc.mmap(None, size, 3 if writable else 1, 1, fd, 0)\n\
         \x20   assert at != ctypes.c_void_p(-1).value\n\
         \x20   os.close(fd)\n\
         \x20   return (ctypes.c_char * size).from_address(at)\n\
         root = sys.argv[1]\n\
         names = ['inline', 'packed', 'big', 'gone']\n\
         expected = {{name: open(root + '/' + name, 'rb').read() for name in names}}\n\
         maps = {{name: mapped(root + '/' + name, False) for name in names}}\n\
         writing = mapped(root + '/packed', True)\n\
         os.unlink(root + '/gone')\n\
         answer('mapped')\n\
         writing[100:107] = b'changed'\n\
         expected['packed'] = expected['packed'][:100] + b'changed' + expected['packed'][107:]\n\
         for name in names:\n\
         \x20   assert maps[name].raw == expected[name], name\n\
         answer('same')\n"
    );
    let mut command = match mode {
        Mode::Unprivileged => Python::script_as_nobody(&script),
        Mode::Passthrough | Mode::Cached => Python::script(&script),
    };
    let mut child =
        command.arg(mount.root()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap());
    let mut hear = |word: &str| {
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    };
    hear("mapped");
    // Time for everything that happens behind a close: sealed, given back, emptied, used again.
    for round in 0..5 {
        mount.seal();
        for index in 0..400 {
            let name = mount.path(&format!("other-{index}"));
            fs::write(&name, bytes(100 + index, 5000)).unwrap();
            if round % 2 == 1 {
                fs::remove_file(&name).unwrap();
            }
        }
        rustix::fs::fsync(File::open(mount.root()).unwrap()).unwrap();
        librorum_sys::clock::sleep(Duration::from_millis(600));
    }
    writeln!(child.stdin.as_mut().unwrap(), "go").unwrap();
    hear("same");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    // Nobody uses them any more: sealed at last.
    mount.seal_everything();
    mount.remount();
    let mut packed = bytes(4, 40_000);
    packed[100..107].copy_from_slice(b"changed");
    assert!(fs::read(mount.path("packed")).unwrap() == packed);
    assert!(fs::read(mount.path("inline")).unwrap() == bytes(3, 3000));
}
