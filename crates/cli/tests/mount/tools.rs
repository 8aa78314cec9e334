//! What people do in a directory, by the programs they do it with.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Mode, Mount, Output, Rng, Run, bytes, in_modes, program, snapshot};

in_modes!(git_clones_commits_and_collects: passthrough, cached, unprivileged);

fn git_clones_commits_and_collects(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=20"]);
    let origin = mount.outside("origin");
    git(&origin, &["init", "-q", "-b", "main"]);
    for commit in 0..8 {
        write_sources(&origin, commit);
        git(&origin, &["add", "-A"]);
        git(&origin, &["commit", "-q", "-m", &format!("commit {commit}")]);
    }
    let clone = mount.path("clone");
    // Without --no-local git would make hard links, which end at the file system's border.
    git(mount.root(), &["clone", "-q", "--no-local", origin.to_str().unwrap(), "clone"]);
    assert_eq!(git(&clone, &["status", "--porcelain"]).stdout, "");
    write_sources(&clone, 100);
    git(&clone, &["add", "-A"]);
    git(&clone, &["commit", "-q", "-m", "on the mount"]);
    git(&clone, &["checkout", "-q", "HEAD~4"]);
    git(&clone, &["checkout", "-q", "main"]);
    git(&clone, &["gc", "-q", "--prune=now"]);
    mount.seal();
    mount.remount();
    git(&clone, &["fsck", "--full", "--strict"]);
    assert_eq!(git(&clone, &["status", "--porcelain"]).stdout, "");
    assert_eq!(git(&clone, &["rev-list", "--count", "HEAD"]).stdout.trim(), "9");
    // A local clone within the volume shares objects by hard link.
    git(mount.root(), &["clone", "-q", "clone", "second"]);
    git(&mount.path("second"), &["fsck", "--full"]);
}

fn git(dir: &Path, arguments: &[&str]) -> Output {
    let who = [("NAME", "Test"), ("EMAIL", "test@example.org")];
    let mut command = program("git");
    // Unprivileged mounts belong to another user than the test.
    command.args(["-c", "safe.directory=*"]).args(arguments).current_dir(dir);
    command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory");
    command.env("GIT_CONFIG_VALUE_0", "*").env("GIT_CONFIG_NOSYSTEM", "1");
    for (key, value) in who {
        command.env(format!("GIT_AUTHOR_{key}"), value).env(format!("GIT_COMMITTER_{key}"), value);
    }
    command.ok()
}

fn write_sources(root: &Path, seed: u64) {
    let mut rng = Rng::new(seed);
    for _ in 0..60 {
        let dir = root.join(format!("module-{}", rng.below(12)));
        fs::create_dir_all(&dir).unwrap();
        let len = usize::try_from(rng.below(30_000)).unwrap();
        fs::write(dir.join(format!("file-{}", rng.below(30))), bytes(rng.next(), len)).unwrap();
    }
    fs::write(root.join("big"), bytes(seed, 3 << 20)).unwrap();
}

in_modes!(tar_and_rsync_bring_a_tree_there_and_back: passthrough, cached, unprivileged);

fn tar_and_rsync_bring_a_tree_there_and_back(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    let source = mount.outside("source");
    write_sources(&source, 5);
    fs::hard_link(source.join("big"), source.join("big again")).unwrap();
    let expected = snapshot(&source);
    let (archive, back) = (mount.path("tree.tar"), mount.outside("back"));
    let tar = |flags: &str, archive: &Path, dir: &Path| {
        program("tar")
            .arg(flags)
            .arg(archive)
            .args(["--numeric-owner", "--format=posix", "-C"])
            .arg(dir)
            .arg(".")
            .ok()
    };
    tar("cf", &archive, &source);
    let unpacked = mount.path("unpacked");
    fs::create_dir(&unpacked).unwrap();
    tar("xpf", &archive, &unpacked);
    // The root's own time is that of the unpacking.
    tar("cf", &mount.path("again.tar"), &unpacked);
    tar("xpf", &mount.path("again.tar"), &back);
    expected.assert_same(&snapshot(&back), "through two archives");
    let synced = mount.path("synced/");
    let rsync = || {
        let mut command = program("rsync");
        // (Times are compared by the nanosecond.)
        command
            .args(["-aHX", "--checksum", "--itemize-changes", "--modify-window=-1"])
            .arg(source.join(""));
        command.arg(&synced).ok().stdout
    };
    assert_ne!(rsync(), "");
    assert_eq!(rsync(), "", "a second transfer finds nothing to do");
    mount.seal();
    mount.remount();
    assert_eq!(rsync(), "", "nor does one after sealing and a remount");
    expected.assert_same(&snapshot(&synced), "rsync");
}

in_modes!(cargo_builds_and_rebuilds: passthrough, cached, unprivileged);

fn cargo_builds_and_rebuilds(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=50"]);
    let project = mount.path("hello");
    fs::create_dir_all(project.join("src")).unwrap();
    let manifest =
        "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(project.join("Cargo.toml"), manifest).unwrap();
    let main = |text: &str| {
        fs::write(project.join("src/main.rs"), format!("fn main() {{ println!(\"{text}\"); }}\n"))
            .unwrap();
    };
    let run = || {
        // The toolchain is the user's, so its environment is needed; the target is not.
        let mut command = Command::new(env!("CARGO"));
        command.args(["run", "-q", "--offline"]).current_dir(&project);
        for variable in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "RUSTFLAGS", "RUSTC_WRAPPER"] {
            command.env_remove(variable);
        }
        command.ok().stdout
    };
    main("one");
    assert_eq!(run(), "one\n");
    main("two");
    assert_eq!(run(), "two\n", "an incremental build");
    mount.seal();
    mount.remount();
    // Started from sealed bytes.
    let built = project.join("target/debug/hello");
    assert_eq!(program(&built).ok().stdout, "two\n");
    main("three");
    assert_eq!(run(), "three\n", "cargo saw by the times what is newer");
}
