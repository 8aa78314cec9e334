//! What the browser shows, and what keys do.

use super::super::lines::{Choice, Kinds, Measure};
use super::super::names;
use super::super::options::{Counting, SortKey};
use super::super::render::{Drawing, percent};
use super::super::scan::Scan;
use super::super::size::SizeFormat;
use super::terminal::Key;
use crate::Kind;
use crate::du::{Item, RootState, Totals};

/// What a key asks for that the view cannot do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    /// To be asked about first.
    Delete,
    DeleteConfirmed(usize),
    Again,
}

const HELP: &[&str] = &[
    "up, down, k, j      select",
    "enter, right, l     open a directory",
    "left, h, backspace  go back up",
    "g, G                first, last",
    "n, s, c, t          sort by name, size, count of entries, time; again: reversed",
    "a                   apparent sizes, or what is occupied",
    "d                   delete what is selected; asks first",
    "R                   scan again",
    "q                   quit",
];

/// A scan, and where the user is in it.
#[derive(Debug)]
pub(super) struct View {
    scan: Scan,
    format: SizeFormat,
    drawing: Drawing,
    choice: Choice,
    /// The directory that is shown; `None` shows the roots.
    here: Option<usize>,
    rows: Vec<usize>,
    selected: usize,
    /// The row at the top.
    scroll: usize,
    page: usize,
    message: Option<String>,
    /// Waiting for an answer whether to delete this.
    question: Option<usize>,
    help: bool,
}

impl View {
    pub(super) fn new(
        scan: Scan,
        counting: &Counting,
        sort: Option<SortKey>,
        reverse: bool,
    ) -> Self {
        let choice = Choice {
            kinds: Kinds::All,
            min_depth: 0,
            max_depth: u32::MAX,
            threshold: None,
            measure: Measure::new(counting),
            separate: false,
            sort: Some(sort.unwrap_or(SortKey::Size)),
            reverse,
        };
        let mut view = Self {
            scan: Scan::default(),
            format: counting.size_format(),
            drawing: Drawing::of_locale(),
            choice,
            here: None,
            rows: Vec::new(),
            selected: 0,
            scroll: 0,
            page: 1,
            message: None,
            question: None,
            help: false,
        };
        view.replace(scan);
        view
    }

    pub(super) fn scan(&self) -> &Scan {
        &self.scan
    }

    /// Shows another scan, from its top.
    pub(super) fn replace(&mut self, scan: Scan) {
        self.scan = scan;
        let mut roots = (0..self.scan.items.len()).filter(|item| self.scan.items[*item].depth == 0);
        // One root is opened at once.
        let only = roots.next().filter(|_first| roots.next().is_none());
        self.here = only.filter(|root| self.scan.items[*root].kind == Kind::Directory);
        self.selected = 0;
        self.fill();
    }

    fn fill(&mut self) {
        self.rows = (0..self.scan.items.len())
            .filter(|item| self.scan.items[*item].parent == self.here)
            .collect();
        let (choice, scan) = (&self.choice, &self.scan);
        self.rows.sort_by(|one, other| choice.compare(scan, *one, *other));
        self.selected = self.selected.min(self.rows.len().saturating_sub(1));
        self.scroll = 0;
    }

    pub(super) fn say(&mut self, message: &str) {
        self.message = Some(message.to_owned());
    }

    /// The selected item, if it is below a root.
    pub(super) fn selected_for_deletion(&self) -> Option<usize> {
        let item = self.rows.get(self.selected).copied();
        item.filter(|item| self.scan.items[*item].depth > 0)
    }

    pub(super) fn ask(&mut self) {
        self.question = self.selected_for_deletion();
    }

    pub(super) fn press(&mut self, key: Key) -> Option<Wish> {
        self.message = None;
        if std::mem::take(&mut self.help) {
            return None;
        }
        if let Some(item) = self.question.take() {
            if matches!(key, Key::Character('y' | 'Y')) {
                return Some(Wish::DeleteConfirmed(item));
            }
            self.say("Not deleted.");
            return None;
        }
        let last = self.rows.len().saturating_sub(1);
        match key {
            Key::Up | Key::Character('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Character('j') => self.selected = (self.selected + 1).min(last),
            Key::PageUp => self.selected = self.selected.saturating_sub(self.page),
            Key::PageDown => self.selected = (self.selected + self.page).min(last),
            Key::First | Key::Character('g') => self.selected = 0,
            Key::Last | Key::Character('G') => self.selected = last,
            Key::Enter | Key::Right | Key::Character('l') => self.open(),
            Key::Left | Key::Backspace | Key::Character('h') => self.leave(),
            Key::Character('n') => self.sort(SortKey::Name),
            Key::Character('s') => self.sort(SortKey::Size),
            Key::Character('c') => self.sort(SortKey::Count),
            Key::Character('t') => self.sort(SortKey::Time),
            Key::Character('a') => {
                self.choice.measure = match self.choice.measure {
                    Measure::Disk => Measure::Apparent,
                    Measure::Apparent | Measure::Inodes => Measure::Disk,
                };
                self.refill_at_selected();
            }
            Key::Character('d') => return Some(Wish::Delete),
            Key::Character('R') => return Some(Wish::Again),
            Key::Character('?') => self.help = true,
            Key::Character('q') | Key::End => return Some(Wish::Quit),
            Key::Character(_) | Key::Escape => self.say("? lists the keys."),
        }
        None
    }

    fn open(&mut self) {
        let Some(item) = self.rows.get(self.selected).copied() else { return };
        if self.scan.items[item].kind == Kind::Directory {
            self.here = Some(item);
            self.selected = 0;
            self.fill();
        }
    }

    fn leave(&mut self) {
        let Some(here) = self.here else { return };
        let parent = self.scan.items[here].parent;
        if parent.is_none() && self.scan.roots.len() < 2 {
            return;
        }
        self.here = parent;
        self.fill();
        self.select(here);
    }

    fn select(&mut self, item: usize) {
        self.selected = self.rows.iter().position(|row| *row == item).unwrap_or(0);
    }

    fn sort(&mut self, key: SortKey) {
        self.choice.reverse = self.choice.sort == Some(key) && !self.choice.reverse;
        self.choice.sort = Some(key);
        self.refill_at_selected();
    }

    fn refill_at_selected(&mut self) {
        let item = self.rows.get(self.selected).copied();
        self.fill();
        if let Some(item) = item {
            self.select(item);
        }
    }

    /// Puts what was found in the place of an item; nothing, if it is gone.
    pub(super) fn graft(&mut self, at: usize, found: Scan) {
        let end = self.scan.ends()[at];
        let old = self.scan.items[at].clone();
        let is_left = found.roots.first().is_some_and(|root| root.state == RootState::Counted);
        let mut found = if is_left { found.items } else { Vec::new() };
        let new = found.first().map(|item| item.total).unwrap_or_default();
        let exchange = |totals: &mut Totals| {
            subtract(totals, &old.total);
            totals.add(&new);
        };
        let own_changes = old.kind != Kind::Directory;
        let mut up = old.parent;
        while let Some(above) = up {
            exchange(&mut self.scan.items[above].total);
            up = self.scan.items[above].parent;
        }
        if let (Some(parent), true) = (old.parent, own_changes) {
            exchange(&mut self.scan.items[parent].own);
        }
        if let Some(root) = self.scan.roots.get_mut(old.root) {
            exchange(&mut root.totals);
        }
        exchange(&mut self.scan.total);

        for (place, item) in found.iter_mut().enumerate() {
            item.parent =
                if place == 0 { old.parent } else { item.parent.map(|parent| parent + at) };
            item.depth += old.depth;
            item.root = old.root;
        }
        if let Some(first) = found.first_mut() {
            first.name = old.name;
        }
        let (removed, added) = (end - at, found.len());
        let moved = |index: usize| if index >= end { index - removed + added } else { index };
        let mut items: Vec<Item> = std::mem::take(&mut self.scan.items);
        for item in &mut items[end..] {
            item.parent = item.parent.map(moved);
        }
        items.splice(at..end, found);
        self.scan.items = items;
        // What is shown is above the victim, and so has not moved.
        self.fill();
    }

    /// The screen as text of so many columns and rows.
    pub(super) fn screen(&mut self, columns: usize, rows: usize) -> String {
        let mut lines = Vec::new();
        let title = match self.here {
            Some(here) => names::escaped(&self.scan.path_of(here)),
            None => "all paths".to_owned(),
        };
        let whole = match self.here {
            Some(here) => self.scan.items[here].total,
            None => self.scan.total,
        };
        let size = self.choice.measure.of(&whole);
        lines.push(inverse(&format!(" {title}"), columns));
        self.page = rows.saturating_sub(2).max(1);
        if self.help {
            lines.extend(HELP.iter().take(self.page).map(|line| cut(line, columns)));
        } else {
            self.scroll =
                self.scroll.min(self.selected).max((self.selected + 1).saturating_sub(self.page));
            for place in self.scroll..self.rows.len().min(self.scroll + self.page) {
                let line = self.row(self.rows[place], size);
                let line = if place == self.selected {
                    inverse(&line, columns)
                } else {
                    cut(&line, columns)
                };
                lines.push(line);
            }
        }
        lines.truncate(rows.saturating_sub(1));
        while lines.len() + 1 < rows {
            lines.push(String::new());
        }
        lines.push(inverse(&self.footer(size, &whole), columns));
        lines.join("\r\n")
    }

    fn row(&self, item: usize, whole: u64) -> String {
        let item = &self.scan.items[item];
        let size = self.choice.size(item);
        let mark = match (item.kind, item.incomplete) {
            (_, true) => '!',
            (Kind::Symlink, _) => '@',
            (Kind::Directory | Kind::File, _) => ' ',
            (_, _) => '=',
        };
        let slash = if item.kind == Kind::Directory { "/" } else { "" };
        format!(
            "{mark}{:>9} {} {:>3}%  {}{slash}",
            self.format.write(size),
            self.drawing.bar(size, whole),
            percent(size, whole),
            names::escaped(item.name.as_encoded_bytes())
        )
    }

    fn footer(&self, size: u64, whole: &Totals) -> String {
        if let Some(item) = self.question {
            let item = &self.scan.items[item];
            let name = names::escaped(item.name.as_encoded_bytes());
            let size = self.format.write(self.choice.size(item));
            if item.kind != Kind::Directory {
                return format!(" Delete? y/N  {size} in {name}");
            }
            let inside = item.total.inodes.saturating_sub(1);
            return format!(" Delete? y/N  {size} in {name}/ with {inside} entries in it");
        }
        if let Some(message) = &self.message {
            return format!(" {message}");
        }
        let what = match self.choice.measure {
            Measure::Apparent => "apparent",
            Measure::Disk | Measure::Inodes => "on disk",
        };
        format!(" {} {what}, {} entries   ? for help", self.format.write(size), whole.inodes)
    }
}

fn subtract(from: &mut Totals, what: &Totals) {
    from.disk_bytes = from.disk_bytes.saturating_sub(what.disk_bytes);
    from.apparent_bytes = from.apparent_bytes.saturating_sub(what.apparent_bytes);
    from.apparent_all_bytes = from.apparent_all_bytes.saturating_sub(what.apparent_all_bytes);
    from.inodes = from.inodes.saturating_sub(what.inodes);
    from.directories = from.directories.saturating_sub(what.directories);
}

/// As much of a line as fits.
fn cut(line: &str, columns: usize) -> String {
    let mut used = 0;
    let fits = |character: &char| {
        used += names::char_columns(*character);
        used <= columns
    };
    line.chars().take_while(fits).collect()
}

/// Over the whole width, with colours exchanged.
fn inverse(line: &str, columns: usize) -> String {
    let line = cut(line, columns);
    let blank = columns.saturating_sub(names::columns(&line));
    format!("\x1b[7m{line}{}\x1b[m", " ".repeat(blank))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import::import;
    use clap::Parser;

    fn view(text: &str) -> View {
        let arguments = crate::cli::options::Arguments::parse_from(["fdu"]);
        View::new(import(text.as_bytes()).unwrap(), &arguments.usage.counting, None, false)
    }

    const SCAN: &str = r#"[1,2,{},[{"name":"/top","dsize":4096},{"name":"small","dsize":1000},
        [{"name":"dir","dsize":4096},{"name":"in","dsize":8192},[{"name":"deep"},{"name":"f","dsize":1}]],
        {"name":"z","dsize":2000}]]"#;

    fn shown(view: &mut View) -> Vec<String> {
        let screen = view.screen(60, 8);
        let name = |line: &str| {
            line.rsplit("%  ").next().unwrap().trim_end_matches("\x1b[m").trim().to_owned()
        };
        screen.split("\r\n").filter(|line| line.contains('%')).map(name).collect()
    }

    #[test]
    fn keys_lead_through_the_tree() {
        let mut view = view(SCAN);
        assert_eq!(shown(&mut view), ["dir/", "z", "small"]);
        assert_eq!(view.press(Key::Enter), None);
        assert_eq!(shown(&mut view), ["in", "deep/"]);
        view.press(Key::Left);
        view.press(Key::Character('n'));
        assert_eq!(shown(&mut view), ["dir/", "small", "z"]);
        view.press(Key::Character('n'));
        assert_eq!(shown(&mut view), ["z", "small", "dir/"]);
        assert_eq!(view.press(Key::Character('q')), Some(Wish::Quit));
    }

    #[test]
    fn only_y_confirms() {
        let mut view = view(SCAN);
        for key in [Key::Enter, Key::Character('n'), Key::Escape, Key::Character('d')] {
            assert_eq!(view.press(Key::Character('d')), Some(Wish::Delete));
            view.ask();
            assert!(view.screen(60, 8).contains("Delete? y/N  13K in dir/ with 3 entries in it"));
            assert_eq!(view.press(key), None);
        }
        view.press(Key::Character('d'));
        view.ask();
        assert_eq!(view.press(Key::Character('y')), Some(Wish::DeleteConfirmed(1)));
    }

    #[test]
    fn what_is_gone_is_taken_from_all_sums() {
        let mut view = view(SCAN);
        view.graft(1, Scan::default());
        assert_eq!(shown(&mut view), ["z", "small"]);
        assert_eq!(view.scan.total.disk_bytes, 4096 + 3000);
        assert_eq!(view.scan.items[0].total.disk_bytes, 4096 + 3000);
        assert_eq!(view.scan.total.inodes, 3);
        let last = view.scan.items.len() - 1;
        view.graft(last, Scan::default());
        assert_eq!(shown(&mut view), ["small"]);
        assert_eq!(view.scan.items[0].own.disk_bytes, 4096 + 1000);
    }

    #[test]
    fn what_is_left_takes_the_place() {
        let mut view = view(SCAN);
        let left = r#"[1,2,{},[{"name":"/top/dir","dsize":4096},[{"name":"deep"},{"name":"g","dsize":5}]]]"#;
        view.graft(1, import(left.as_bytes()).unwrap());
        assert_eq!(view.scan.total.disk_bytes, 4096 + 3000 + 4096 + 5);
        let paths: Vec<_> = (0..view.scan.items.len())
            .map(|item| String::from_utf8(view.scan.path_of(item)).unwrap())
            .collect();
        assert_eq!(
            paths,
            ["/top", "/top/dir", "/top/dir/deep", "/top/dir/deep/g", "/top/small", "/top/z"]
        );
        assert_eq!(view.scan.items[5].parent, Some(0));
    }

    #[test]
    fn any_size_of_window_and_any_keys_do() {
        let mut view = view(SCAN);
        let keys =
            [Key::Down, Key::PageDown, Key::Last, Key::Enter, Key::PageUp, Key::Character('?')];
        for columns in 0..20 {
            for rows in 0..6 {
                for key in keys {
                    view.press(key);
                    view.screen(columns, rows);
                }
            }
        }
    }
}
