//! The commands: help, JSON, exit codes, and what they say to wrong input.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Mode, Mount, Output, Run, bytes, temp_dir, within};

const COMMANDS: [&str; 9] =
    ["format", "mount", "umount", "status", "fsck", "scrub", "sweep", "bench", "du"];

fn librorum(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_librorum")).args(arguments).env_remove("LIBRORUM_LOG").run()
}

/// Unmounts what a test mounted in the background, also if it fails.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// What `status` of everything mounted tells of one volume. Those of other tests come, go and die
/// meanwhile, so what it tells of them, and its exit code, are theirs.
fn told_among_all(volume: &str) -> Option<Value> {
    let output = librorum(&["status", "--json"]);
    assert!(matches!(output.code, Some(0 | 1)), "{output}");
    let told = json(&output);
    let mut own = told.as_array().unwrap().iter().filter(|status| status["volume"] == *volume);
    let first = own.next().cloned();
    assert!(own.next().is_none(), "told twice: {output}");
    first
}

/// An empty volume in `dir`.
fn format(dir: &Path) -> String {
    let volume = dir.join("volume").to_str().unwrap().to_owned();
    let output = librorum(&["format", &volume]);
    assert_eq!(output.code, Some(0), "{output}");
    volume
}

/// Fails with `code`, in words that contain `words`, with and without `--json`.
fn refused(arguments: &[&str], code: i32, words: &str) {
    let output = librorum(arguments);
    assert_eq!(output.code, Some(code), "{arguments:?}: {output}");
    assert!(output.stderr.contains(words), "{arguments:?} does not say '{words}': {output}");
    assert!(!output.stderr.contains("panicked"), "{output}");
    if code == 2 {
        return;
    }
    let output = librorum(&[&["--json"], arguments].concat());
    assert_eq!(output.code, Some(code), "{arguments:?} as JSON: {output}");
    let error = json(&output)["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains(words), "{arguments:?} as JSON does not say '{words}': {output}");
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in COMMANDS {
        let output = librorum(&[command, "--help"]);
        assert_eq!(output.code, Some(0), "{output}");
        assert!(output.stdout.contains("Example"), "{command}: {}", output.stdout);
        assert!(output.stdout.contains(&format!("librorum {command}")), "{}", output.stdout);
    }
    let output = librorum(&["--help"]);
    for command in COMMANDS {
        assert!(output.stdout.contains(&format!("\n  {command} ")), "{}", output.stdout);
    }
    assert!(output.stdout.contains("Example"), "{}", output.stdout);
    assert_eq!(librorum(&[]).code, Some(2));
    assert_eq!(librorum(&["nonsense"]).code, Some(2));
    assert_eq!(librorum(&["--version"]).code, Some(0));
}

#[test]
fn every_command_speaks_json() {
    let dir = temp_dir();
    let volume = dir.path().join("volume");
    let volume = volume.to_str().unwrap();
    let root = dir.path().join("mnt");
    let _mounted = Mounted(&root);
    let root = root.to_str().unwrap();
    let ok = |arguments: &[&str]| {
        let output = librorum(&[arguments, &["--json"]].concat());
        assert_eq!(output.code, Some(0), "{arguments:?}: {output}");
        json(&output)
    };
    let options = ["--chunking", "fixed:64K", "--compression", "lz4", "--inline-limit", "1K"];
    let formatted = ok(&[&["format", volume][..], &options].concat());
    assert_eq!(formatted["config"]["inline_max_bytes"], 1024);
    assert_eq!(ok(&["status", volume])[0]["mounts"], serde_json::json!([]));
    let mounted = ok(&["mount", "--background", volume, root]);
    assert_eq!(mounted["mountpoint"], root);
    fs::write(Path::new(root).join("file"), bytes(1, 1 << 20)).unwrap();
    // The mount's process hears of the close a moment later.
    let status = within("the file to be sealed", || {
        let status = ok(&["status", root, "--seal"]);
        (status[0]["staged_file_count"] == 0).then_some(status)
    });
    assert_eq!(status[0]["mounts"][0], root);
    assert_eq!(status[0]["logical_bytes"], 1 << 20);
    assert_eq!(status[0]["staged_bytes"], 0);
    let own = told_among_all(volume).expect("it is mounted");
    assert_eq!(own["mounts"][0], root);
    assert_eq!(ok(&["scrub", root])["findings"], serde_json::json!([]));
    let unmounted = ok(&["umount", root]);
    assert_eq!(unmounted["closed"], true);
    assert_eq!(ok(&["fsck", volume])["left"], 0);
    assert_eq!(ok(&["fsck", volume, "--repair", "--read-data"])["left"], 0);
    assert_eq!(ok(&["scrub", volume])["findings"], serde_json::json!([]));
    assert_eq!(ok(&["sweep", volume, "--dry-run"])["deleted"], false);
    assert_eq!(ok(&["sweep", volume])["deleted"], true);
}

/// Of host paths and of what is mounted alike, with the walker's own options.
#[test]
fn du_counts_as_du_does() {
    let mount = Mount::new(Mode::Passthrough);
    for index in 0..20 {
        fs::create_dir_all(mount.path(&format!("{}", index % 3))).unwrap();
        let path = mount.path(&format!("{}/{index}", index % 3));
        fs::write(path, bytes(index, 1000 * usize::try_from(index).unwrap())).unwrap();
    }
    mount.seal_everything();
    let root = mount.root().to_str().unwrap();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let theirs = crate::harness::program("du").args(["-a", "-B1", root]).run();
    let ours = librorum(&["du", "-a", "-B1", root]);
    assert_eq!(ours.code, Some(0), "{ours}");
    assert_eq!(sorted(&ours.stdout), sorted(&theirs.stdout));
    let missing = librorum(&["du", &format!("{root}/missing")]);
    assert_eq!(missing.code, Some(1), "{missing}");
    assert_eq!(librorum(&["--log", "info", "du", "-s", root]).code, Some(0));
}

/// A mount is in the tree before it answers and until it has ended; one that was killed stays there.
#[test]
fn status_waits_for_mounts_that_begin_or_end_and_tells_of_dead_ones() {
    let mut mount = Mount::new(Mode::Passthrough);
    let volume = mount.volume().to_str().unwrap().to_owned();
    let (socket, aside) = (mount.volume().join("control"), mount.volume().join("control.aside"));
    let moment = Duration::from_millis(300);

    // As while it begins.
    fs::rename(&socket, &aside).unwrap();
    let told = std::thread::scope(|scope| {
        scope.spawn(|| {
            librorum_sys::clock::sleep(moment);
            fs::rename(&aside, &socket).unwrap();
        });
        told_among_all(&volume).unwrap()
    });
    assert_eq!(told["error"], Value::Null, "{told}");
    assert_eq!(told["mounts"][0], *mount.root().to_str().unwrap());

    // One that does not answer for long is an error, by whatever it is asked for.
    fs::rename(&socket, &aside).unwrap();
    let told = told_among_all(&volume).unwrap();
    assert!(told["error"].as_str().unwrap().contains("does not answer"), "{told}");
    refused(&["status", &volume], 1, "does not answer");

    // As while it ends.
    let told = std::thread::scope(|scope| {
        let telling = scope.spawn(|| told_among_all(&volume));
        librorum_sys::clock::sleep(moment);
        mount.unmount();
        telling.join().unwrap()
    });
    assert_eq!(told, None, "it is not mounted any more");

    mount.mount();
    mount.kill();
    let told = told_among_all(&volume).unwrap();
    assert!(told["error"].as_str().unwrap().contains("librorum umount"), "{told}");
    let one = librorum(&["status", "--json", &volume]);
    assert_eq!(json(&one)[0]["holder"], Value::Null, "by its name it is opened: {one}");
    mount.librorum(&["umount", "--lazy"]).arg(mount.root()).ok();
    assert_eq!(told_among_all(&volume), None);
}

#[test]
fn wrong_input_is_refused_in_words() {
    let dir = temp_dir();
    let volume = format(dir.path());
    let below = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (missing, root) = (below("missing"), below("mnt"));
    fs::create_dir(&root).unwrap();
    fs::write(below("file"), "x").unwrap();
    fs::create_dir(below("full")).unwrap();
    fs::write(below("full/something"), "x").unwrap();

    refused(&["mount", "-o", "nosuch", &volume, &root], 1, "nosuch");
    refused(&["mount", "-o", "ro,seal_after=soon", &volume, &root], 1, "soon");
    refused(&["mount", "-o", "unsealed=much", &volume, &root], 1, "much");
    refused(&["mount", "-o", "ro", &missing, &root], 1, &missing);
    refused(&["mount", "-o", "nocreate", &missing, &root], 1, &missing);
    refused(&["mount", &volume, &below("file")], 1, "not a directory");
    refused(&["mount"], 2, "PATH");
    refused(&["mount", "a", "b", "c"], 2, "PATH");
    refused(&["mount", &volume, dir.path().to_str().unwrap()], 1, "hide its own volume");
    refused(&["mount", &below("full"), &root], 1, "not empty");
    refused(&["mount", &below("file"), &root], 1, &below("file"));
    assert!(!Path::new(&missing).exists(), "a refused mount made a volume");

    refused(&["format", &volume], 1, "is a volume already");
    refused(&["format", &below("full")], 1, "not empty");
    refused(&["format", &below("new"), "--chunking", "cdc:nonsense"], 2, "nonsense");
    refused(&["format", &below("new"), "--chunking", "cdc:1"], 2, "--chunking");
    refused(&["format", &below("new"), "--compression", "rar"], 2, "rar");
    refused(&["format", &below("new"), "--inline-limit", "1G"], 1, "inline limit");
    assert!(!Path::new(&below("new")).exists(), "a refused format left something");

    refused(&["umount", &root], 1, "no volume is mounted");
    refused(&["umount", &missing], 1, "no volume is mounted");
    refused(&["status", &missing], 1, &missing);
    refused(&["scrub", &missing], 1, &missing);
    refused(&["sweep", &missing], 1, "not a volume");
    refused(&["fsck", &missing], 8, "not a volume");
    refused(&["fsck", &root], 8, "not a volume");
}

#[test]
fn a_volume_of_a_newer_format_or_with_a_damaged_description_is_left_alone() {
    let dir = temp_dir();
    let volume = format(dir.path());
    let root = dir.path().join("mnt").to_str().unwrap().to_owned();
    let description = Path::new(&volume).join("volume.json");
    let good = fs::read_to_string(&description).unwrap();
    let newer: String = {
        let mut value: Value = serde_json::from_str(&good).unwrap();
        value["format_version"] = 1_000_000.into();
        value.to_string()
    };
    let words = |text: &str| if text == newer { "1000000" } else { "volume.json" };
    for text in
        [newer.as_str(), "{", "", "[]", &good.replace("cdc", "cut"), "{\"format_version\":1}"]
    {
        fs::write(&description, text).unwrap();
        for command in ["mount", "status", "sweep", "scrub"] {
            let mut arguments = vec![command, &volume];
            if command == "mount" {
                arguments.push(&root);
            }
            refused(&arguments, 1, words(text));
        }
        refused(&["fsck", &volume], 8, words(text));
        refused(&["fsck", "--repair", &volume], 8, words(text));
        assert_eq!(fs::read_to_string(&description).unwrap(), text, "nobody touched it");
    }
    fs::write(&description, good).unwrap();
    assert_eq!(librorum(&["fsck", &volume]).code, Some(0));
}

/// Damage that fsck must see: a byte of a sealed file that changed on the disk.
#[test]
fn changed_bytes_are_found_and_never_served() {
    let mut mount = Mount::with(Mode::Cached, &["verify=always"]);
    let content = bytes(1, 3 << 20);
    fs::write(mount.path("file"), &content).unwrap();
    fs::write(mount.path("other"), bytes(2, 100_000)).unwrap();
    mount.seal_everything();
    mount.unmount();
    let needle = &content[1_500_000..1_500_064];
    let mut hit = None;
    let mut waiting = vec![mount.volume().join("data")];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(bytes) = fs::read(&path)
            && let Some(at) = bytes.windows(needle.len()).position(|window| window == needle)
        {
            hit = Some((path, at as u64));
        }
    }
    let (path, at) = hit.expect("the bytes of the file lie in a segment as they are");
    let change = |byte: u8| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[byte], at).unwrap();
    };
    change(needle[0] ^ 1);
    let volume = mount.volume().to_str().unwrap().to_owned();
    let fsck = librorum(&["fsck", "--read-data", "--json", &volume]);
    assert_eq!(fsck.code, Some(4), "{fsck}");
    assert!(json(&fsck)["left"].as_u64() > Some(0), "{fsck}");
    let scrub = librorum(&["scrub", "--json", &volume]);
    assert_eq!(scrub.code, Some(1), "{scrub}");
    mount.mount();
    let read = fs::read(mount.path("file"));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(5), "EIO, not wrong bytes");
    assert_eq!(fs::read(mount.path("other")).unwrap(), bytes(2, 100_000));
    assert!(mount.log().contains("segment"), "the log says where: {}", mount.log());
    mount.unmount();
    change(needle[0]);
    assert_eq!(librorum(&["fsck", "--read-data", &volume]).code, Some(0));
    mount.mount();
    assert!(fs::read(mount.path("file")).unwrap() == content);
}

#[test]
fn mount_8_finds_its_helper() {
    let dir = temp_dir();
    let volume = format(dir.path());
    let root = dir.path().join("mnt");
    fs::create_dir(&root).unwrap();
    let helper = dir.path().join("mount.librorum");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_librorum"), &helper).unwrap();
    let _mounted = Mounted(&root);
    let mut command = crate::harness::program(&helper);
    command.arg(&volume).arg(&root).args(["-n", "-o", "rw,noatime,nosuid"]).ok();
    fs::write(root.join("file"), "x").unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(root.to_str().unwrap())).unwrap();
    assert!(line.contains("fuse.librorum") && line.contains("nosuid"), "{line}");
    assert!(line.contains("noatime"), "{line}");
    let read_only = root.join("new");
    let file = root.join("file");
    let root = root.to_str().unwrap();
    assert_eq!(librorum(&["umount", root]).code, Some(0));
    assert_eq!(librorum(&["mount", "--background", "-o", "ro", &volume, root]).code, Some(0));
    let refused = fs::write(&read_only, "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    assert_eq!(librorum(&["umount", root]).code, Some(0));
    // A typing error in fstab makes no volume.
    let typo = dir.path().join("volmue");
    let output = crate::harness::program(&helper).arg(&typo).arg(root).run();
    assert_ne!(output.code, Some(0));
    assert!(!typo.exists());
}

/// Who waits for the end of a command's output must not wait for the end of the mount.
#[test]
fn a_background_mount_lets_go_of_its_callers_output() {
    let dir = temp_dir();
    let volume = format(dir.path());
    let root = dir.path().join("mnt");
    let _mounted = Mounted(&root);
    let mut command = Command::new(env!("CARGO_BIN_EXE_librorum"));
    command.args(["mount", "--background", &volume]).arg(&root);
    let mut mounting =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let outputs: [Box<dyn Read + Send>; 2] =
        [Box::new(mounting.stdout.take().unwrap()), Box::new(mounting.stderr.take().unwrap())];
    let status = within("the mount", || mounting.try_wait().unwrap());
    assert!(status.success(), "{status}");
    for mut output in outputs {
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).unwrap();
            ended.send(text).ok();
        });
        let ended = end.recv_timeout(Duration::from_secs(10));
        assert!(ended.is_ok(), "the mount still holds its caller's output");
    }
    assert_eq!(librorum(&["umount", root.to_str().unwrap()]).code, Some(0));
}
