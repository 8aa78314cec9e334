//! What can be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};

use super::size::{SizeFormat, Threshold, parse_block_size, parse_threshold};

const EXAMPLES: &str = "\
Examples:
  fdu                               directories below the current one, as du -h lists them
  fdu -s -c /home/*                 one line each, and the sum
  fdu -o tree -L 2 -t 100M          two levels with bars, nothing below 100 MiB
  fdu --top 20 /var                 the largest files and directories
  fdu --by ext ~/src                which kinds of file occupy it; also owner, age
  fdu -a --exclude '*.o' --exclude 're:/target/' ~/src
  fdu --gitignore -S size           without what git ignores, largest first
  fdu -i                            browse, and delete
  fdu --save monday.json /srv       keep a scan, which ncdu -f opens too
  fdu diff monday.json /srv         and see what has changed since

Exit codes:
  0  done
  1  something could not be read or written; the rest was counted and shown
  2  wrong usage

What differs from du:
  -d is --dirs-only, for du's -d use -L; -S sorts, for du's -S use --separate-dirs; -L is
  --max-depth and -H follows every symlink, for du's -H use -D. Sizes are for people unless
  -k, -m, -b, -B or -F say otherwise; --help has no short form, because -h is du's.";

/// What `fdu` and `librorum du` are given.
#[derive(Debug, Parser)]
#[command(
    name = "fdu",
    version,
    about = "Says what directory trees occupy, as du does, with all CPUs",
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    disable_help_flag = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) usage: UsageArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compare two scans: files that --save or ncdu -o wrote, or directories, scanned now.
    ///
    /// For a directory that is itself called diff, write ./diff.
    Diff(DiffArguments),
}

#[derive(Debug, Args)]
pub(crate) struct UsageArguments {
    /// What to measure; the current directory if nothing is given.
    // The parser of paths refuses an empty one, which is for the system to refuse.
    pub(crate) paths: Vec<OsString>,
    /// Take the paths from FILE, each ended by a zero byte; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "paths")]
    pub(crate) files0_from: Option<PathBuf>,
    /// Measure nothing: show a scan that --save or ncdu -o wrote; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["paths", "files0_from", "save", "Walking"])]
    pub(crate) import: Option<PathBuf>,
    /// Also write the scan to FILE, in ncdu's format.
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    pub(crate) walking: Walking,
    #[command(flatten)]
    pub(crate) counting: Counting,
    #[command(flatten)]
    pub(crate) shown: Shown,
    #[command(flatten)]
    pub(crate) written: Written,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// What is walked.
#[derive(Debug, Args)]
#[group(id = "Walking", multiple = true)]
#[command(next_help_heading = "What is counted")]
pub(crate) struct Walking {
    /// Follow all symlinks (du: -L).
    #[arg(short = 'H', long, overrides_with_all = ["dereference_args", "no_dereference"])]
    pub(crate) dereference: bool,
    /// Follow symlinks that are given as paths (du: -D, -H).
    #[arg(short = 'D', long, overrides_with_all = ["dereference", "no_dereference"])]
    pub(crate) dereference_args: bool,
    /// Follow no symlinks: the default.
    #[arg(short = 'P', long, overrides_with_all = ["dereference", "dereference_args"])]
    pub(crate) no_dereference: bool,
    /// Stay on the file system of each path; mount points are left out.
    #[arg(short = 'x', long)]
    pub(crate) one_file_system: bool,
    /// Count a file once for each of its names.
    #[arg(short = 'l', long)]
    pub(crate) count_links: bool,
    /// Count only files that match, and directories. A pattern without a slash is compared with
    /// the name; one with a slash with the path and its ends; re:REGEX is searched in the path.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<OsString>,
    /// Leave out what matches, with everything below it. As in du, a pattern is compared with the
    /// path and its ends, and * matches slashes too; re:REGEX is searched in the path.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<OsString>,
    /// Leave out what matches a pattern in FILE, one a line; - is standard input.
    #[arg(short = 'X', long, value_name = "FILE")]
    pub(crate) exclude_from: Vec<PathBuf>,
    /// Leave out directories with a CACHEDIR.TAG.
    #[arg(long)]
    pub(crate) exclude_caches: bool,
    /// Leave out what git ignores: .gitignore, .git/info/exclude and the user's, in repositories.
    #[arg(long)]
    pub(crate) gitignore: bool,
}

/// Which number is counted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Numbers")]
pub(crate) struct Counting {
    /// Lengths of files and symlinks instead of what they occupy.
    #[arg(long)]
    pub(crate) apparent_size: bool,
    /// Numbers of inodes instead of sizes.
    #[arg(long, conflicts_with_all = ["apparent_size", "bytes"])]
    pub(crate) inodes: bool,
    /// How sizes are written [default: human; with --inodes: bytes, which is the plain number].
    #[arg(short = 'F', long, value_enum, overrides_with_all = ["block_size", "human", "si", "kilo", "mega", "format"])]
    pub(crate) format: Option<Format>,
    /// In units of SIZE, rounded up; a unit alone (-B M) is written behind each number.
    #[arg(short = 'B', long, value_name = "SIZE", value_parser = parse_block_size, overrides_with_all = ["format", "human", "si", "kilo", "mega", "block_size"])]
    pub(crate) block_size: Option<SizeFormat>,
    /// Like -F human: the default, after one of the others.
    #[arg(short = 'h', long = "human-readable", overrides_with_all = ["format", "block_size", "si", "kilo", "mega"])]
    pub(crate) human: bool,
    /// Like -F si: powers of 1000.
    #[arg(long, overrides_with_all = ["format", "block_size", "human", "kilo", "mega"])]
    pub(crate) si: bool,
    /// Like -F kilo.
    #[arg(short = 'k', overrides_with_all = ["format", "block_size", "human", "si", "mega"])]
    pub(crate) kilo: bool,
    /// Like -F mega.
    #[arg(short = 'm', overrides_with_all = ["format", "block_size", "human", "si", "kilo"])]
    pub(crate) mega: bool,
    /// Like --apparent-size -F bytes; with another unit behind it, like --apparent-size alone.
    #[arg(short = 'b', long)]
    pub(crate) bytes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// With the unit that fits, powers of 1024: 4.0K
    Human,
    /// The same with powers of 1000: 4.1k
    Si,
    /// Blocks of 512 bytes
    Blocks,
    /// Bytes
    Bytes,
    /// As human, with the units' full names: 4.0KiB
    Binary,
    /// Bytes in hexadecimal: 0x1000
    Hex,
    /// Blocks of 1024 bytes
    Kilo,
    /// Blocks of 1024² bytes
    Mega,
    /// Blocks of 1024³ bytes
    Giga,
}

impl Format {
    pub(crate) fn size_format(self) -> SizeFormat {
        match self {
            Self::Human => SizeFormat::Human,
            Self::Si => SizeFormat::Si,
            Self::Blocks => SizeFormat::unit(512),
            Self::Bytes => SizeFormat::unit(1),
            Self::Binary => SizeFormat::Binary,
            Self::Hex => SizeFormat::Hex,
            Self::Kilo => SizeFormat::unit(1 << 10),
            Self::Mega => SizeFormat::unit(1 << 20),
            Self::Giga => SizeFormat::unit(1 << 30),
        }
    }
}

/// Which lines are shown, in which order.
#[derive(Debug, Args)]
#[command(next_help_heading = "Lines")]
pub(crate) struct Shown {
    /// Files too, not only directories.
    #[arg(short, long, conflicts_with_all = ["dirs_only", "files_only", "summarize"])]
    pub(crate) all: bool,
    /// Only directories, not even files that are given as paths.
    #[arg(short, long, conflicts_with = "files_only")]
    pub(crate) dirs_only: bool,
    /// Only files (anything that is not a directory).
    #[arg(short, long, conflicts_with = "summarize")]
    pub(crate) files_only: bool,
    /// Only the paths that are given.
    #[arg(short, long, conflicts_with_all = ["max_depth", "min_depth"])]
    pub(crate) summarize: bool,
    /// A line with the sum at the end.
    #[arg(short = 'c', long)]
    pub(crate) total: bool,
    /// Without what is in subdirectories (du: -S).
    #[arg(long)]
    pub(crate) separate_dirs: bool,
    /// Show no deeper than this below the paths; what is deeper counts all the same (du: -d).
    #[arg(short = 'L', long, value_name = "DEPTH")]
    pub(crate) max_depth: Option<u32>,
    /// Show only from this depth on; the paths have depth 0.
    #[arg(long, value_name = "DEPTH")]
    pub(crate) min_depth: Option<u32>,
    /// Show only what is at least SIZE, or, with a minus sign, at most: 10M, 1.5GB, -4K. With
    /// --inodes, numbers of inodes.
    #[arg(short, long, value_name = "SIZE", value_parser = parse_threshold, allow_hyphen_values = true)]
    pub(crate) threshold: Option<Threshold>,
    /// Sort: name A to Z, the others largest or newest first; ties by name. Without it, directories
    /// come after what is in them.
    #[arg(short = 'S', long, value_enum, value_name = "KEY")]
    pub(crate) sort: Option<SortKey>,
    /// The other way round.
    #[arg(short, long, requires = "sort")]
    pub(crate) reverse: bool,
    /// The time of the newest file in each line: mtime, atime or ctime.
    #[arg(long, value_enum, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "mtime")]
    pub(crate) time: Option<TimeKind>,
    /// How times are written: full-iso, long-iso (the default), iso.
    #[arg(long, value_enum, value_name = "STYLE", requires = "time")]
    pub(crate) time_style: Option<TimeStyle>,
    /// The N largest files and the N largest directories.
    #[arg(long, value_name = "N", conflicts_with_all = ["by", "all", "summarize", "sort", "reverse", "max_depth", "min_depth", "total", "time"])]
    pub(crate) top: Option<u32>,
    /// Sums by the files' extension, owner, or time since the last change.
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with_all = ["all", "dirs_only", "files_only", "summarize", "max_depth", "min_depth", "separate_dirs", "time"])]
    pub(crate) by: Option<GroupBy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortKey {
    Name,
    Size,
    Count,
    Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TimeKind {
    #[value(alias = "modification", alias = "modified")]
    Mtime,
    #[value(alias = "access", alias = "use")]
    Atime,
    #[value(alias = "status")]
    Ctime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TimeStyle {
    FullIso,
    LongIso,
    Iso,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupBy {
    Ext,
    Owner,
    Age,
}

/// The form of the output.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Written {
    /// The form of the output.
    #[arg(short, long, value_enum, default_value = "table", overrides_with = "json")]
    pub(crate) output: Output,
    /// Like -o json.
    #[arg(long, overrides_with = "output")]
    pub(crate) json: bool,
    /// End lines with a zero byte, so that no name can be taken for two.
    #[arg(short = '0', long)]
    pub(crate) null: bool,
    /// Browse in the terminal: sizes, sorting, deletion.
    #[arg(short, long, conflicts_with_all = ["output", "json", "null", "top", "by", "all", "dirs_only", "files_only", "summarize", "total", "separate_dirs", "max_depth", "min_depth", "threshold", "time", "inodes"])]
    pub(crate) interactive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A line each: size, tabulator, path, as du
    Table,
    /// A tree with bars
    Tree,
    /// A JSON object a line; paths that are not UTF-8 come as path_hex too
    Json,
    /// Comma-separated values with a heading
    Csv,
    /// What ncdu -f opens, with everything that was counted
    Ncdu,
    /// For programs: bytes on disk, apparent bytes, inodes, newest time, kind, path
    Raw,
}

/// How the work is done.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct Running {
    /// At most this many threads; 0, the default, is for as many as help.
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub(crate) jobs: u16,
    /// Progress on standard error even if it is no terminal, a line a second; on a terminal it is
    /// shown anyway, after a second.
    #[arg(long)]
    pub(crate) progress: bool,
    /// Keep every error message and print all at the end; without it the first 20 and their number.
    #[arg(long)]
    pub(crate) buffer_errors: bool,
    /// What each thread did, on standard error.
    #[arg(long)]
    pub(crate) statistics: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fdu diff monday.json tuesday.json     what grew and what shrank, largest change first\n  fdu diff -a -L 3 monday.json /srv     with files, against how it is now\n\nExit codes: 0 compared, 1 something could not be read, 2 wrong usage.",
    disable_help_flag = true
)]
pub(crate) struct DiffArguments {
    /// How it was.
    pub(crate) before: PathBuf,
    /// How it is.
    pub(crate) after: PathBuf,
    /// Files too, not only directories.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Show no deeper than this.
    #[arg(short = 'L', long, value_name = "DEPTH")]
    pub(crate) max_depth: Option<u32>,
    /// Show only what has changed by at least SIZE, or, with a minus sign, at most.
    #[arg(short, long, value_name = "SIZE", value_parser = parse_threshold, allow_hyphen_values = true)]
    pub(crate) threshold: Option<Threshold>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value = "table", overrides_with = "json")]
    pub(crate) output: DiffOutput,
    /// Like -o json.
    #[arg(long, overrides_with = "output")]
    pub(crate) json: bool,
    /// End lines with a zero byte.
    #[arg(short = '0', long)]
    pub(crate) null: bool,
    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    pub(crate) counting: Counting,
    #[command(flatten)]
    pub(crate) walking: Walking,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiffOutput {
    /// A line each: change, before, after, path
    Table,
    /// A JSON object a line
    Json,
    /// Comma-separated values with a heading
    Csv,
}

impl Counting {
    /// Of -b and the units the last holds, but what -b says about lengths stays: du -bh.
    pub(crate) fn settle(&mut self, matches: &ArgMatches) {
        let place = |id: &str| {
            let is_given = matches.value_source(id) == Some(ValueSource::CommandLine);
            is_given.then(|| matches.indices_of(id)?.next_back()).flatten()
        };
        let bytes = place("bytes");
        let units = ["format", "block_size", "human", "si", "kilo", "mega"];
        if bytes.is_some() && bytes > units.into_iter().filter_map(place).max() {
            (self.format, self.block_size) = (None, None);
            (self.human, self.si, self.kilo, self.mega) = (false, false, false, false);
        }
    }

    /// Whether sizes are wanted in anything but bytes.
    pub(crate) fn has_unit(&self) -> bool {
        self.chosen().is_some_and(|format| !self.bytes || format != SizeFormat::unit(1))
    }

    /// How numbers are written, if anything was said about it.
    pub(crate) fn chosen(&self) -> Option<SizeFormat> {
        let flags = [
            (self.human, Format::Human),
            (self.si, Format::Si),
            (self.kilo, Format::Kilo),
            (self.mega, Format::Mega),
            (self.bytes, Format::Bytes),
        ];
        let by_flag = flags.iter().find(|(given, _)| *given).map(|(_, format)| *format);
        self.block_size.clone().or_else(|| self.format.or(by_flag).map(Format::size_format))
    }

    pub(crate) fn size_format(&self) -> SizeFormat {
        let default = if self.inodes { SizeFormat::unit(1) } else { SizeFormat::Human };
        self.chosen().unwrap_or(default)
    }
}

impl DiffArguments {
    pub(crate) fn output(&self) -> DiffOutput {
        if self.json { DiffOutput::Json } else { self.output }
    }
}

impl Written {
    pub(crate) fn output(&self) -> Output {
        if self.json { Output::Json } else { self.output }
    }
}
