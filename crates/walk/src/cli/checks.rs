//! Combinations of options that cannot all have an effect, beyond those that the parser knows: an option
//! that is accepted does something.

use super::options::{
    DiffArguments, DiffOutput, GroupBy, Output, Running, Shown, SortKey, TimeKind, UsageArguments,
    Walking,
};
use super::size::SizeFormat;

impl UsageArguments {
    /// What is wrong with a report, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let output = self.written.output();
        let Shown { top, by, sort, time, .. } = &self.shown;
        let refuse = |message: &str| Err(message.to_owned());
        let only_bytes = matches!(output, Output::Json | Output::Csv | Output::Ncdu | Output::Raw);
        if only_bytes && self.counting.has_unit() {
            return refuse("this form of output has sizes in bytes: it takes no size format");
        }
        if self.written.null && !matches!(output, Output::Table | Output::Raw) {
            return refuse("--null is for the output forms table and raw");
        }
        if self.counting.inodes
            && matches!(self.counting.chosen(), Some(SizeFormat::Unit { bytes, .. }) if bytes != 1)
        {
            return refuse("inodes are not counted in blocks: --inodes takes no block size");
        }
        if (top.is_some() || by.is_some())
            && matches!(output, Output::Tree | Output::Ncdu | Output::Raw)
        {
            return refuse("--top and --by are for the output forms table, json and csv");
        }
        if time.is_some() && output == Output::Tree {
            return refuse("the tree shows no times: use --sort=time, or another form of output");
        }
        if by.is_some() && *sort == Some(SortKey::Time) {
            return refuse("groups have no time to be sorted by");
        }
        if *by == Some(GroupBy::Owner) && self.import.is_some() {
            return refuse("a saved scan does not say who owns what");
        }
        if output == Output::Ncdu {
            let shown = &self.shown;
            let selects = shown.all
                || shown.dirs_only
                || shown.files_only
                || shown.summarize
                || shown.total
                || shown.separate_dirs
                || shown.max_depth.is_some()
                || shown.min_depth.is_some()
                || shown.threshold.is_some()
                || shown.sort.is_some()
                || self.counting.inodes
                || self.counting.apparent_size
                || self.counting.bytes;
            if selects {
                return refuse("ncdu's format holds everything: it takes no choice of lines");
            }
        }
        if self.import.is_some() {
            if !self.running.is_default() {
                return refuse(
                    "an import does not walk: nothing can be said about threads, progress or errors",
                );
            }
            if self.shown.time.is_some_and(|time| time != TimeKind::Mtime) {
                return refuse("a saved scan has only the times of the last change of content");
            }
        }
        if let (Some(max), Some(min)) = (self.shown.max_depth, self.shown.min_depth)
            && min > max
        {
            return refuse("--min-depth is deeper than --max-depth: nothing would be shown");
        }
        Ok(())
    }
}

impl Walking {
    fn is_default(&self) -> bool {
        let flags = [
            self.dereference,
            self.dereference_args,
            self.no_dereference,
            self.one_file_system,
            self.count_links,
            self.exclude_caches,
            self.gitignore,
        ];
        let lists = [self.include.len(), self.exclude.len(), self.exclude_from.len()];
        !flags.contains(&true) && lists == [0; 3]
    }
}

impl Running {
    fn is_default(&self) -> bool {
        let Self { jobs, progress, buffer_errors, statistics } = self;
        *jobs == 0 && !progress && !buffer_errors && !statistics
    }
}

impl DiffArguments {
    /// What is wrong with a comparison, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let is_table = self.output() == DiffOutput::Table;
        let refuse = |message: &str| Err(message.to_owned());
        if !is_table && self.null {
            return refuse("--null is for the output form table");
        }
        if !is_table && self.counting.has_unit() {
            return refuse("this form of output has sizes in bytes: it takes no size format");
        }
        if self.counting.inodes
            && matches!(self.counting.chosen(), Some(SizeFormat::Unit { bytes, .. }) if bytes != 1)
        {
            return refuse("inodes are not counted in blocks: --inodes takes no block size");
        }
        let walks = self.before.is_dir() || self.after.is_dir();
        let is_default = self.walking.is_default() && self.running.is_default();
        if !(walks || is_default) {
            return refuse("two saved scans are compared as they are: there is nothing to walk");
        }
        Ok(())
    }
}
