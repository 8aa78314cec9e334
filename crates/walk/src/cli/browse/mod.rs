//! `fdu -i`: browse a scan in the terminal.
//!
//! [`view`] knows what is shown and what keys do to it; [`terminal`] draws and reads keys;
//! [`remove`] deletes. Here they are put together.
//!
//! Deletion asks first, and only a `y` confirms. A given path itself is never deleted, nor is
//! anything when the scan was imported or symlinks were followed, nor directories when something was
//! left out: then what is shown may not be what would be deleted.

mod remove;
mod terminal;
mod view;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::names;
use super::options::UsageArguments;
use super::rules::Selection;
use super::scan::{Failures, Scan, Walked, Walker};
use crate::Kind;
use crate::du::Detail;

use terminal::{Key, Terminal};
use view::{View, Wish};

/// What is browsed.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) arguments: &'a UsageArguments,
    pub(crate) selection: &'a Selection,
    pub(crate) paths: &'a [PathBuf],
    pub(crate) imported: Option<Scan>,
}

impl Subject<'_> {
    /// Walks; returns the scan and what failed.
    fn walk(&self, paths: Vec<PathBuf>) -> (Scan, Failures) {
        let walker = Walker {
            paths,
            from_list: self.arguments.files0_from.is_some(),
            walking: &self.arguments.walking,
            selection: self.selection,
            running: &self.arguments.running,
            detail: Detail::Files { max_depth: u32::MAX },
            time: None,
        };
        let Walked { scan, failures, .. } = walker.walk(|_worker| ());
        (scan, failures)
    }

    /// Why this may not be deleted.
    fn refusal(&self, kind: Kind) -> Option<&'static str> {
        if self.arguments.import.is_some() {
            return Some("an imported scan may be of another machine: nothing is deleted");
        }
        if self.arguments.walking.dereference || self.arguments.walking.dereference_args {
            return Some("symlinks were followed: nothing is deleted");
        }
        if kind == Kind::Directory && self.selection.leaves_out() {
            return Some("what was left out would go with it: directories are not deleted");
        }
        None
    }
}

/// Browses until the user has had enough. Returns whether everything could be read.
///
/// # Errors
///
/// If there is no terminal.
pub(crate) fn run(mut subject: Subject<'_>) -> io::Result<bool> {
    // Before the walk, which may take long.
    Terminal::check()?;
    let (scan, mut failures) = match subject.imported.take() {
        Some(scan) => (scan, Failures::default()),
        None => subject.walk(subject.paths.to_vec()),
    };
    if let Some(path) = &subject.arguments.save {
        super::save_to(path, &scan).map_err(|error| {
            let path = names::escaped(path.as_os_str().as_encoded_bytes());
            io::Error::new(error.kind(), format!("cannot save to '{path}': {error}"))
        })?;
    }
    let shown = &subject.arguments.shown;
    let mut view = View::new(scan, &subject.arguments.counting, shown.sort, shown.reverse);
    if failures.any() {
        view.say("Not everything could be read: ! marks where.");
    }
    let mut terminal = Terminal::open()?;
    loop {
        let (columns, rows) = terminal.size();
        terminal.draw(&view.screen(columns, rows))?;
        let key = match terminal.key()? {
            Some(Key::End) => break,
            Some(key) => key,
            // The window may have another size.
            None => continue,
        };
        match view.press(key) {
            None => {}
            Some(Wish::Quit) => break,
            Some(Wish::Delete) => {
                let selected = view.selected_for_deletion();
                let kind = selected.map_or(Kind::Unknown, |item| view.scan().items[item].kind);
                match (subject.refusal(kind), selected) {
                    (Some(refusal), _) => view.say(refusal),
                    (None, None) => view.say("A given path is not deleted."),
                    (None, Some(_)) => {
                        // What was typed before the question is no answer to it.
                        terminal.forget_keys();
                        view.ask();
                    }
                }
            }
            Some(Wish::DeleteConfirmed(item)) => {
                // As it was before meanwhile, so that control-C ends what takes too long.
                drop(terminal);
                delete(&subject, &mut view, item);
                terminal = Terminal::open()?;
            }
            Some(Wish::Again) => {
                if subject.arguments.import.is_some() {
                    view.say("An imported scan cannot be made again.");
                } else {
                    drop(terminal);
                    let (scan, failed) = subject.walk(subject.paths.to_vec());
                    failures = failed;
                    view.replace(scan);
                    terminal = Terminal::open()?;
                }
            }
        }
    }
    drop(terminal);
    // Of the last walk of everything; what is left after a deletion shows on the screen.
    failures.print(&subject.arguments.running);
    Ok(!failures.any())
}

/// Deletes an item and looks at what is left of it.
fn delete(subject: &Subject<'_>, view: &mut View, item: usize) {
    let scan = view.scan();
    let path = scan.path_of(item);
    let mut names: Vec<&OsString> =
        std::iter::successors(Some(item), |item| scan.items[*item].parent)
            .map(|item| &scan.items[item].name)
            .collect();
    names.reverse();
    let is_directory = scan.items[item].kind == Kind::Directory;
    let outcome = remove::remove(&names, is_directory);
    let shown = names::escaped(&path);
    view.say(&match outcome {
        Ok(removed) => format!("Deleted {shown}: {removed} entries."),
        Err(error) => format!("{shown}: {error}"),
    });
    let path = PathBuf::from(OsString::from_vec(path));
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            view.graft(item, Scan::default());
        }
        // What is too deep for a path is looked at from its root.
        Err(_) => view.replace(subject.walk(subject.paths.to_vec()).0),
        Ok(_) => view.graft(item, subject.walk(vec![path]).0),
    }
}
