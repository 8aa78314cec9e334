//! The test suites that others wrote: `pjdfstest` (POSIX calls) and `fsx` (random file operations).
//!
//! `./test` installs both into `target/tools`. pjdfstest 0.2.2 computes the longest possible path
//! from the length of its own; for some lengths that overflows ("capacity overflow" in the tests
//! named `enametoolong_path`), so it runs in a path of 20 bytes, `/tmp/lb-XXXXXX/mnt12`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::harness::{Mode, Mount, Run, program, temp_dir};

/// A suite's program, from `LIBRORUM_TOOLS` or `target/tools/bin`.
fn tool(name: &str) -> PathBuf {
    let dir = std::env::var_os("LIBRORUM_TOOLS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin"),
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: ./test installs it", path.display());
    path
}

/// A nap must be longer than the native clock may lag behind: it ticks every few milliseconds, and
/// late on a busy machine.
const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.1
allow_remount = false
[dummy_auth]
entries = [ ["nobody", "nogroup"], ["games", "games"] ]
"#;

/// Each test's verdict.
fn pjdfstest(root: &Path, config: &Path) -> BTreeMap<String, String> {
    assert_eq!(root.as_os_str().len(), 20, "see the top of this file");
    fs::set_permissions(root, PermissionsExt::from_mode(0o777)).unwrap();
    let mut command = program(tool("pjdfstest"));
    // Another file system, to try links and renames between the two.
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::set_permissions(other.path(), PermissionsExt::from_mode(0o777)).unwrap();
    command.arg("-c").arg(config).arg("-p").arg(root).arg("-s").arg(other.path());
    let output = command.current_dir(root).run();
    let verdicts: BTreeMap<String, String> = output
        .stdout
        .lines()
        .filter_map(|line| {
            let (name, verdict) = line.split_once(char::is_whitespace)?;
            let is_test = name.contains("::") && !line.starts_with(char::is_whitespace);
            is_test.then(|| (name.to_owned(), verdict.trim().to_owned()))
        })
        .collect();
    assert!(verdicts.len() > 350, "{output}");
    let odd = odd_ones(&output.stdout);
    assert!(odd.is_empty(), "on {}:\n{odd}--- stderr\n{}", root.display(), output.stderr);
    verdicts
}

/// What the suite printed of the tests that neither passed nor were skipped: each with its reason.
fn odd_ones(stdout: &str) -> String {
    let mut is_odd = false;
    let mut odd = String::new();
    for line in stdout.lines() {
        if let Some((name, verdict)) = line.split_once(char::is_whitespace)
            && name.contains("::")
        {
            is_odd = !matches!(verdict.trim(), "ok" | "skipped");
        }
        if is_odd {
            odd.push_str(line);
            odd.push('\n');
        }
    }
    odd
}

/// What the public list excludes.
fn exclusions() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pjdfstest-exclusions.md");
    let listed: BTreeMap<String, String> = fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("| `")?.split_once('`')?;
            Some((name.to_owned(), rest.trim_matches(['|', ' ']).to_owned()))
        })
        .collect();
    for (name, reason) in &listed {
        assert!(reason.len() > 10, "{name} is excluded without a reason");
    }
    listed.into_keys().collect()
}

#[test]
fn pjdfstest_passes_as_on_ext4() {
    let native = temp_dir();
    let config = native.path().join("config.toml");
    fs::write(&config, PJDFSTEST_CONFIG).unwrap();
    let root = native.path().join("ext4-");
    fs::create_dir(&root).unwrap();
    let on_ext4 = pjdfstest(&root, &config);
    let skipped = |verdicts: &BTreeMap<String, String>| -> BTreeSet<String> {
        let skipped = verdicts.iter().filter(|(_, verdict)| *verdict == "skipped");
        skipped.map(|(name, _)| name.clone()).collect()
    };
    let listed = exclusions();
    for mode in [Mode::Passthrough, Mode::Cached] {
        let mount = Mount::with(mode, &["seal_after=1"]);
        let on_mount = pjdfstest(mount.root(), &config);
        assert_eq!(on_mount.len(), on_ext4.len());
        let more: Vec<_> = skipped(&on_mount).difference(&skipped(&on_ext4)).cloned().collect();
        println!("{mode:?}: {} tests; skipped beyond ext4's: {more:?}", on_mount.len());
        assert_eq!(skipped(&on_mount), listed, "docs/pjdfstest-exclusions.md says what is skipped");
    }
}

/// Small files change their state often; big ones have all states.
const FSX_SIZES: [(u64, u64, u64); 2] = [(1 << 20, 128 << 10, 4000), (12 << 20, 1 << 20, 1500)];

fn fsx(mode: Mode) {
    // Sealed after each close; and left alone.
    for options in [&["seal_after=1"][..], &[]] {
        let mount = Mount::with(mode, options);
        let artifacts = mount.outside("artifacts");
        for (len, op_len, count) in FSX_SIZES {
            let config = artifacts.join("config.toml");
            let text = format!(
                "flen = {len}\n[opsize]\nmax = {op_len}\n[weights]\nclose_open = 8\nread = 10\n\
                 write = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\ntruncate = 5\nfsync = 1\n\
                 fdatasync = 1\nposix_fallocate = 2\npunch_hole = 3\nsendfile = 2\n\
                 posix_fadvise = 1\ncopy_file_range = 3\n"
            );
            fs::write(&config, text).unwrap();
            for seed in 1..=3 {
                let mut command = program(tool("fsx"));
                command.arg("-f").arg(&config).arg("-S").arg(format!("{seed}"));
                command.arg("-N").arg(format!("{count}")).arg("-P").arg(&artifacts);
                command.arg(mount.path(&format!("fsx-{len}-{seed}"))).ok();
            }
        }
    }
}

#[test]
fn fsx_finds_nothing_with_passthrough() {
    fsx(Mode::Passthrough);
}

#[test]
fn fsx_finds_nothing_behind_the_page_cache() {
    fsx(Mode::Cached);
}

#[test]
fn fsx_finds_nothing_unprivileged() {
    fsx(Mode::Unprivileged);
}
