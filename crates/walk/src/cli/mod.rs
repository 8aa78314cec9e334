//! The command `fdu`, as a function: the binary and `librorum du` call it.
//!
//! A run is: arguments are read and checked ([`options`], [`checks`]), trees are measured or a saved scan is read
//! ([`scan`], [`import`]), items become lines ([`lines`]) and lines text ([`render`], [`groups`],
//! [`top`], [`ncdu`], [`diff`]), or a screen ([`browse`]). What failed is told at the end, by path.

mod browse;
mod checks;
mod diff;
mod gitignore;
mod glob;
mod groups;
mod import;
mod json;
mod lines;
mod names;
mod ncdu;
mod options;
mod patterns;
mod render;
mod rules;
mod scan;
mod size;
mod top;
mod zone;

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use librorum_sys::clock;

use diff::{DiffError, Sides};
use groups::Groups;
use lines::{Choice, Kinds, Measure};
use options::{Arguments, Command, DiffArguments, Output, Shown, TimeStyle, UsageArguments};
use render::{Drawing, TableStyle};
use rules::{SelectError, Selection};
use scan::{Failures, Scan, Walked, Walker, complain};
use top::Largest;

use crate::du::{Detail, Observer};

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// Runs the command. The first argument is the name that help shows, such as `fdu` or `librorum du`.
///
/// Results go to standard output, everything else to standard error. The exit code is 0 if all went
/// well, 1 if something could not be read or written, and 2 for wrong usage.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut command = Arguments::command().args_override_self(true);
    if let Some(name) = arguments.first().and_then(|name| name.to_str())
        && name.contains(' ')
    {
        command = command.bin_name(name);
    }
    let parsed = command.try_get_matches_from_mut(arguments).and_then(|matches| {
        let mut arguments = Arguments::from_arg_matches(&matches)?;
        match (&mut arguments.command, matches.subcommand()) {
            (Some(Command::Diff(diff)), Some((_, matches))) => diff.counting.settle(matches),
            _ => arguments.usage.counting.settle(&matches),
        }
        let checked = match &arguments.command {
            Some(Command::Diff(diff)) => diff.check(),
            None => arguments.usage.check(),
        };
        match checked {
            Ok(()) => Ok(arguments),
            Err(message) => Err(command.error(ErrorKind::ArgumentConflict, message)),
        }
    });
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            let mut trouble = Trouble::default();
            trouble.written(error.print().and_then(|()| io::stdout().flush()));
            // Help is no error, unless it cannot be written.
            return match u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE) {
                0 => trouble.exit_code(),
                code => ExitCode::from(code),
            };
        }
    };
    match &arguments.command {
        Some(Command::Diff(arguments)) => compare(arguments),
        None => usage(&arguments.usage),
    }
}

/// Whether something failed; a line on standard error says what.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble(bool);

impl Trouble {
    fn tell(&mut self, message: &str) {
        complain(message);
        self.0 = true;
    }

    /// What became of output. A reader that has gone away, as `head` does, has had enough.
    fn written(&mut self, result: io::Result<()>) {
        match result {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.tell(&format!("write error: {error}"));
            }
            _ => {}
        }
    }

    fn exit_code(self) -> ExitCode {
        ExitCode::from(if self.0 { EXIT_FAILED } else { 0 })
    }
}

fn refuse_selection(error: &SelectError) -> ExitCode {
    let (SelectError::Pattern(message) | SelectError::File(message)) = error;
    complain(message);
    ExitCode::from(match error {
        SelectError::Pattern(_) => EXIT_USAGE,
        SelectError::File(_) => EXIT_FAILED,
    })
}

fn usage(arguments: &UsageArguments) -> ExitCode {
    let mut trouble = Trouble::default();
    let selection = match Selection::new(&arguments.walking) {
        Ok(selection) => selection,
        Err(error) => return refuse_selection(&error),
    };
    let mut paths: Vec<PathBuf> = arguments.paths.iter().map(PathBuf::from).collect();
    if let Some(list) = &arguments.files0_from {
        match rules::read_files0(list, |complaint| trouble.tell(complaint)) {
            Ok(listed) => paths = listed,
            Err(error) => {
                let list = names::escaped(list.as_os_str().as_encoded_bytes());
                complain(&format!("cannot read file names from '{list}': {error}"));
                return ExitCode::from(EXIT_FAILED);
            }
        }
    } else if paths.is_empty() {
        paths.push(PathBuf::from("."));
    }
    let imported = match arguments.import.as_deref().map(diff::load_file) {
        None => None,
        Some(Ok(scan)) => Some(scan),
        Some(Err(message)) => {
            complain(&message);
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let run = Run {
        arguments,
        selection: &selection,
        paths,
        choice: Choice::new(&arguments.shown, &arguments.counting),
    };
    if arguments.written.interactive {
        match browse::run(run.subject(imported)) {
            Ok(is_complete) => trouble.0 |= !is_complete,
            Err(error) => trouble.tell(&error.to_string()),
        }
        return trouble.exit_code();
    }
    let (result, failures) = run.report(imported, &mut trouble);
    trouble.written(result);
    failures.print(&arguments.running);
    trouble.0 |= failures.any();
    trouble.exit_code()
}

/// A run that reports on trees.
struct Run<'a> {
    arguments: &'a UsageArguments,
    selection: &'a Selection,
    paths: Vec<PathBuf>,
    choice: Choice,
}

impl Run<'_> {
    fn walk<O: Observer>(&self, detail: Detail, observe: impl Fn(usize) -> O + Sync) -> Walked<O> {
        let walker = Walker {
            paths: self.paths.clone(),
            from_list: self.arguments.files0_from.is_some(),
            walking: &self.arguments.walking,
            selection: self.selection,
            running: &self.arguments.running,
            detail,
            time: self.arguments.shown.time,
        };
        walker.walk(observe)
    }

    /// What has to be known of what is below the paths.
    fn detail(&self) -> Detail {
        let Choice { kinds, max_depth, separate, .. } = self.choice;
        if self.arguments.save.is_some() || self.arguments.written.output() == Output::Ncdu {
            return Detail::Files { max_depth: u32::MAX };
        }
        match kinds {
            Kinds::All | Kinds::Files => Detail::Files { max_depth },
            Kinds::Directories | Kinds::DirectoriesAndRoots if max_depth == 0 && !separate => {
                Detail::Totals
            }
            Kinds::Directories | Kinds::DirectoriesAndRoots => Detail::Directories { max_depth },
        }
    }

    fn report(&self, imported: Option<Scan>, trouble: &mut Trouble) -> (io::Result<()>, Failures) {
        let shown = &self.arguments.shown;
        let mut out = BufWriter::new(io::stdout().lock());
        if let Some(by) = shown.by {
            let (groups, scan, failures) = match imported {
                Some(scan) => (Groups::of_scan(by, &scan), scan, Failures::default()),
                None => {
                    let detail = match self.arguments.save {
                        Some(_) => Detail::Files { max_depth: u32::MAX },
                        None => Detail::Totals,
                    };
                    let Walked { scan, observers, failures } =
                        self.walk(detail, |_worker| Groups::new(by));
                    let mut groups = Groups::new(by);
                    observers.into_iter().for_each(|part| groups.merge(part));
                    (groups, scan, failures)
                }
            };
            self.save(&scan, trouble);
            let (output, total) =
                (self.arguments.written.output(), shown.total.then_some(&scan.total));
            let written = groups.write(&mut out, &self.choice, output, total, &self.table_style());
            return (written.and_then(|()| out.flush()), failures);
        }
        if let Some(count) = shown.top {
            let (files, directories, scan, failures) = self.largest(count, imported);
            self.save(&scan, trouble);
            let output = self.arguments.written.output();
            let written = top::write(&mut out, files, directories, output, &self.table_style());
            return (written.and_then(|()| out.flush()), failures);
        }
        let (scan, failures) = match imported {
            Some(scan) => (scan, Failures::default()),
            None => {
                let Walked { scan, failures, .. } = self.walk(self.detail(), |_worker| ());
                (scan, failures)
            }
        };
        self.save(&scan, trouble);
        (self.write(&mut out, &scan).and_then(|()| out.flush()), failures)
    }

    /// The largest files and directories, as far as they are wanted.
    fn largest(
        &self,
        count: u32,
        imported: Option<Scan>,
    ) -> (Option<Largest>, Option<Largest>, Scan, Failures) {
        let choice = &self.choice;
        // Of files there is one inode each: there is nothing to compare.
        let wants_files = choice.kinds != Kinds::Directories && choice.measure != Measure::Inodes;
        let wants_directories = choice.kinds != Kinds::Files;
        let (files, scan, failures) = match imported {
            Some(scan) => {
                (Largest::of_scan(count, choice, &scan, Kinds::Files), scan, Failures::default())
            }
            None => {
                let detail = match (&self.arguments.save, wants_directories) {
                    (Some(_), _) => Detail::Files { max_depth: u32::MAX },
                    (None, true) => Detail::Directories { max_depth: u32::MAX },
                    (None, false) => Detail::Totals,
                };
                let Walked { scan, observers, failures } =
                    self.walk(detail, |_worker| Largest::new(count, choice));
                let mut files = Largest::new(count, choice);
                observers.into_iter().for_each(|part| files.merge(part));
                (files, scan, failures)
            }
        };
        let directories =
            wants_directories.then(|| Largest::of_scan(count, choice, &scan, Kinds::Directories));
        (wants_files.then_some(files), directories, scan, failures)
    }

    fn table_style(&self) -> TableStyle {
        let Shown { time, time_style, .. } = &self.arguments.shown;
        TableStyle {
            format: self.arguments.counting.size_format(),
            time: time
                .map(|_which| (zone::Zone::local(), time_style.unwrap_or(TimeStyle::LongIso))),
            escaped: is_for_people(self.arguments.written.null),
            end: if self.arguments.written.null { 0 } else { b'\n' },
        }
    }

    fn write(&self, out: &mut dyn Write, scan: &Scan) -> io::Result<()> {
        let (choice, with_total) = (&self.choice, self.arguments.shown.total);
        let style = self.table_style();
        match self.arguments.written.output() {
            Output::Table => render::table(out, scan, choice, with_total, &style),
            Output::Tree => {
                render::tree(out, scan, choice, with_total, &style.format, Drawing::of_locale())
            }
            Output::Json => render::json(out, scan, choice, with_total),
            Output::Csv => render::csv(out, scan, choice, with_total),
            Output::Ncdu => ncdu::export(out, scan, clock::now().secs),
            Output::Raw => render::raw(out, scan, choice, with_total, style.end),
        }
    }

    fn save(&self, scan: &Scan, trouble: &mut Trouble) {
        let Some(path) = &self.arguments.save else { return };
        if let Err(error) = save_to(path, scan) {
            let path = names::escaped(path.as_os_str().as_encoded_bytes());
            trouble.tell(&format!("cannot save to '{path}': {error}"));
        }
    }

    fn subject(&self, imported: Option<Scan>) -> browse::Subject<'_> {
        browse::Subject {
            arguments: self.arguments,
            selection: self.selection,
            paths: &self.paths,
            imported,
        }
    }
}

/// A terminal shows names, and control characters in them would control it.
fn is_for_people(null: bool) -> bool {
    !null && io::stdout().is_terminal()
}

fn save_to(path: &Path, scan: &Scan) -> io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    ncdu::export(&mut file, scan, clock::now().secs)?;
    file.flush()
}

fn compare(arguments: &DiffArguments) -> ExitCode {
    let mut trouble = Trouble::default();
    let sides = match Sides::load(arguments) {
        Ok(sides) => sides,
        Err(DiffError::Select(error)) => return refuse_selection(&error),
        Err(DiffError::Load(message)) => {
            complain(&message);
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let style = TableStyle {
        format: arguments.counting.size_format(),
        time: None,
        escaped: is_for_people(arguments.null),
        end: if arguments.null { 0 } else { b'\n' },
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let written = sides.write(&mut out, arguments, &style);
    trouble.written(written.and_then(|()| out.flush()));
    for failures in &sides.failures {
        failures.print(&arguments.running);
        trouble.0 |= failures.any();
    }
    trouble.exit_code()
}
