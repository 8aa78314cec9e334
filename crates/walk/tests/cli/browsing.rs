//! `fdu -i` in a terminal, which `script` provides.

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::{FDU, Folder, code, exists, has, stderr};

/// Reads until a text has come; fails at the end of the output.
pub(crate) fn read_until(stdout: &mut ChildStdout, text: &str) -> String {
    let mut seen = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let len = stdout.read(&mut bytes).unwrap();
        seen.extend_from_slice(&bytes[..len]);
        let shown = String::from_utf8_lossy(&seen).into_owned();
        if shown.contains(text) {
            return shown;
        }
        assert!(len > 0, "ended without {text:?}: {shown}");
    }
}

/// A screen without colours and movements of the cursor.
pub(crate) fn without_escapes(screen: &str) -> String {
    let mut parts = screen.split('\x1b');
    let first = parts.next().unwrap_or("").to_owned();
    parts.fold(first, |text, part| {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |end| end + 1);
        text + &part[end..]
    })
}

struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Session {
    fn start(folder: &Folder, arguments: &str) -> Self {
        let command = format!("stty rows 20 cols 70; {FDU} -i {arguments}; echo exit code $?");
        let mut child = Command::new("timeout")
            .args(["30", "script", "-qefc", &command, "/dev/null"])
            .current_dir(folder.path(""))
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    fn expect(&mut self, text: &str) -> String {
        read_until(&mut self.stdout, text)
    }

    fn press(&mut self, keys: &str) {
        self.stdin.write_all(keys.as_bytes()).unwrap();
    }

    fn quit(mut self) {
        self.press("q");
        let end = self.expect("exit code ");
        // The screen and the cursor are given back.
        assert!(end.contains("\x1b[?25h\x1b[?1049l"), "{end:?}");
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn directories_are_entered_left_and_sorted() {
    if !has("script") {
        return;
    }
    let folder = Folder::with_tree();
    let mut session = Session::start(&folder, "tree");
    let screen = session.expect("? for help");
    assert!(
        screen.contains(" tree ") && screen.contains("a/") && screen.contains("d/"),
        "{screen}"
    );
    session.press("\r");
    session.expect("two.rs");
    session.press("\x1b[D");
    session.expect("empty/");
    session.press("nG");
    session.expect("\x1b[7m");
    session.press("?");
    session.expect("sort by name");
    session.press("x");
    session.press("z");
    session.expect("? lists the keys.");
    session.quit();
}

#[test]
fn deletion_needs_a_yes_and_spares_what_links_lead_to() {
    if !has("script") {
        return;
    }
    let folder = Folder::with_tree();
    folder.write("kept/file", b"x");
    symlink(folder.path("kept"), folder.path("tree/a/link")).unwrap();
    let mut session = Session::start(&folder, "tree");
    session.expect("? for help");
    // The largest is first: a.
    session.press("d");
    session.expect("Delete? y/N");
    session.press("n");
    session.expect("Not deleted.");
    assert!(exists(&folder.path("tree/a")));
    session.press("d");
    session.expect("Delete? y/N");
    session.press("y");
    session.expect("Deleted tree/a:");
    assert!(!exists(&folder.path("tree/a")));
    assert!(exists(&folder.path("kept/file")));
    assert!(exists(&folder.path("tree/d/sparse")));
    let screen = {
        session.press("R");
        session.expect("? for help")
    };
    assert!(!screen.contains(" a/"), "{screen}");
    session.quit();
}

#[test]
fn what_is_typed_before_the_question_is_no_answer() {
    if !has("script") {
        return;
    }
    let folder = Folder::with_tree();
    let mut session = Session::start(&folder, "tree");
    session.expect("? for help");
    session.press("dydy");
    session.expect("Delete? y/N");
    session.press("n");
    session.expect("Not deleted.");
    session.quit();
    assert!(exists(&folder.path("tree/a")) && exists(&folder.path("tree/d")));
}

#[test]
fn directories_with_what_was_left_out_stay() {
    if !has("script") {
        return;
    }
    let folder = Folder::with_tree();
    let mut session = Session::start(&folder, "--exclude '*.rs' tree");
    session.expect("? for help");
    session.press("d");
    session.expect("directories are not deleted");
    session.quit();
    assert!(exists(&folder.path("tree/a/two.rs")));
}

#[test]
fn imports_are_only_looked_at() {
    if !has("script") {
        return;
    }
    let folder = Folder::with_tree();
    folder.stdout(&["--save", "scan", "-s", "tree"]);
    let mut session = Session::start(&folder, "--import - < scan");
    session.expect("? for help");
    session.press("d");
    session.expect("nothing is deleted");
    session.quit();
    assert!(exists(&folder.path("tree/a")));
}

#[test]
fn a_terminal_is_needed() {
    if !has("setsid") {
        return;
    }
    let folder = Folder::with_tree();
    let output = folder.command("setsid", &["-w", FDU, "-i", "tree"]).output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("-i needs a terminal"), "{output:?}");
}
