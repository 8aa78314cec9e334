//! Local time, from the system's time zone files (RFC 9636) or the `TZ` variable (POSIX).
//!
//! Leap seconds are not looked at, as nearly no system counts them.

use std::path::Path;

const DAY_SECS: i64 = 86_400;

/// Some billion years: times beyond it, which only a broken file system has, are shown as if they
/// were there, so that no sum overflows.
const SECS_MAX: i64 = 1 << 55;

/// A time zone: what `--time` shows is local.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    /// When an offset begins, sorted.
    transitions: Vec<(i64, i64)>,
    /// Before the first of them.
    first_offset_secs: i64,
    /// After the last.
    rule: Option<Rule>,
}

/// A year of a POSIX rule such as `CET-1CEST,M3.5.0,M10.5.0/3`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    standard_offset_secs: i64,
    /// Offset, begin and end.
    summer: Option<(i64, Change, Change)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    day: Day,
    /// In the local time that held before.
    secs: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Day {
    /// 1 to 365; February 29 is never counted.
    Julian(i64),
    /// 0 to 365.
    Zero(i64),
    /// Month, week (5 is the last), weekday (0 is Sunday).
    Weekday(i64, i64, i64),
}

/// A moment as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) year: i64,
    pub(crate) month: i64,
    pub(crate) day: i64,
    pub(crate) hour: i64,
    pub(crate) minute: i64,
    pub(crate) second: i64,
    pub(crate) offset_secs: i64,
}

impl Zone {
    /// The zone of the environment; UTC if there is none or it cannot be read.
    pub(crate) fn local() -> Self {
        let name = std::env::var("TZ").ok();
        let read = |path: &Path| std::fs::read(path).ok().and_then(|bytes| Self::parse(&bytes));
        let zone = match name.as_deref().map(|name| name.strip_prefix(':').unwrap_or(name)) {
            None => read(Path::new("/etc/localtime")),
            Some("") => None,
            Some(name) => {
                // An absolute name replaces the directory.
                read(&Path::new("/usr/share/zoneinfo").join(name))
                    .or_else(|| Some(Self { rule: Some(parse_rule(name)?), ..Self::default() }))
            }
        };
        zone.unwrap_or_default()
    }

    /// A time zone file of version 2 or later; the 32-bit times before are passed over.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let counts = |header: &[u8]| -> Option<[usize; 6]> {
            if !header.starts_with(b"TZif") || header.len() < 44 {
                return None;
            }
            let mut counts = [0; 6];
            for (count, field) in counts.iter_mut().zip(header[20..44].chunks_exact(4)) {
                *count = usize::try_from(number(field)).ok()?;
            }
            Some(counts)
        };
        let len = |[isut, isstd, leap, time, types, chars]: [usize; 6], width: usize| {
            44 + time * (width + 1) + types * 6 + chars + leap * (width + 4) + isstd + isut
        };
        let first = counts(bytes)?;
        let second = bytes.get(len(first, 4)..)?;
        let [_, _, _, time_count, type_count, _] = counts(second)?;
        let block = second.get(44..)?;
        let times = block.get(..8 * time_count)?;
        let indexes = block.get(8 * time_count..9 * time_count)?;
        let types = block.get(9 * time_count..9 * time_count + 6 * type_count)?;
        let offset = |index: usize| Some(number(types.get(6 * index..6 * index + 4)?));
        let mut transitions = Vec::with_capacity(time_count);
        for (time, index) in times.chunks_exact(8).zip(indexes) {
            transitions.push((number(time), offset(usize::from(*index))?));
        }
        let footer = second.get(len(counts(second)?, 8)..)?;
        let footer = footer.strip_prefix(b"\n").and_then(|rest| rest.split(|b| *b == b'\n').next());
        let rule = footer.and_then(|text| parse_rule(std::str::from_utf8(text).ok()?));
        Some(Self { transitions, first_offset_secs: offset(0)?, rule })
    }

    fn offset_at(&self, secs: i64) -> i64 {
        let after = self.transitions.partition_point(|(begin, _)| *begin <= secs);
        match (&self.rule, after) {
            (Some(rule), _) if after == self.transitions.len() => rule.offset_at(secs),
            (_, 0) => self.first_offset_secs,
            (_, after) => self.transitions[after - 1].1,
        }
    }

    /// A moment, given in seconds since 1970, in this zone.
    pub(crate) fn at(&self, secs: i64) -> Local {
        let offset_secs = self.offset_at(secs);
        let local = secs.clamp(-SECS_MAX, SECS_MAX) + offset_secs;
        let (days, rest) = (local.div_euclid(DAY_SECS), local.rem_euclid(DAY_SECS));
        let (year, month, day) = date(days);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        Local { year, month, day, hour, minute, second, offset_secs }
    }
}

/// A signed big-endian number of 4 or 8 bytes.
fn number(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|byte| *byte >= 0x80);
    bytes.iter().fold(if negative { -1 } else { 0 }, |sum, byte| (sum << 8) | i64::from(*byte))
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar.
fn date(days: i64) -> (i64, i64, i64) {
    // Counted from 0000-03-01, so that leap days are at the end of years.
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The number of days from 1970 to a date.
fn days_until(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

impl Rule {
    fn offset_at(&self, secs: i64) -> i64 {
        let secs = secs.clamp(-SECS_MAX, SECS_MAX);
        let Some((summer_offset_secs, begin, end)) = &self.summer else {
            return self.standard_offset_secs;
        };
        let (year, _, _) =
            date(secs.saturating_add(self.standard_offset_secs).div_euclid(DAY_SECS));
        let begin = begin.secs_in(year) - self.standard_offset_secs;
        let end = end.secs_in(year) - summer_offset_secs;
        let is_summer = if begin < end {
            (begin..end).contains(&secs)
        } else {
            // South of the equator it spans the new year.
            !(end..begin).contains(&secs)
        };
        if is_summer { *summer_offset_secs } else { self.standard_offset_secs }
    }
}

impl Change {
    fn secs_in(&self, year: i64) -> i64 {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match self.day {
            Day::Julian(day) => days_until(year, 1, 1) + day - 1 + i64::from(is_leap && day > 59),
            Day::Zero(day) => days_until(year, 1, 1) + day,
            Day::Weekday(month, week, weekday) => {
                let first = days_until(year, month, 1);
                let next = if month == 12 {
                    days_until(year + 1, 1, 1)
                } else {
                    days_until(year, month + 1, 1)
                };
                // 1970-01-01 was a Thursday.
                let first_match = first + (weekday - (first + 4)).rem_euclid(7);
                let mut day = first_match + 7 * (week - 1);
                while day >= next {
                    day -= 7;
                }
                day
            }
        };
        days * DAY_SECS + self.secs
    }
}

fn parse_rule(text: &str) -> Option<Rule> {
    let mut rest = text;
    take_name(&mut rest)?;
    let standard_offset_secs = -take_clock(&mut rest)?;
    if rest.is_empty() {
        return Some(Rule { standard_offset_secs, summer: None });
    }
    take_name(&mut rest)?;
    let offset = if rest.starts_with(',') || rest.is_empty() {
        standard_offset_secs + 3600
    } else {
        -take_clock(&mut rest)?
    };
    // What systems assume if nothing is said: the rule of the United States.
    let rest = if rest.is_empty() { ",M3.2.0,M11.1.0" } else { rest };
    let (begin, end) = rest.strip_prefix(',')?.split_once(',')?;
    let summer = Some((offset, parse_change(begin)?, parse_change(end)?));
    Some(Rule { standard_offset_secs, summer })
}

/// Letters, or anything in angle brackets.
fn take_name(rest: &mut &str) -> Option<()> {
    let end = match rest.strip_prefix('<') {
        Some(quoted) => quoted.find('>')? + 2,
        None => rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len()),
    };
    *rest = rest.get(end..)?;
    (end >= 3).then_some(())
}

/// Hours, minutes and seconds with a sign, in seconds.
fn take_clock(rest: &mut &str) -> Option<i64> {
    let end = rest.find(|c: char| !matches!(c, '0'..='9' | ':' | '+' | '-')).unwrap_or(rest.len());
    let (text, after) = rest.split_at(end);
    *rest = after;
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut secs = 0;
    for (part, scale) in text.splitn(3, ':').zip([3600, 60, 1]) {
        let part: i64 = part.parse().ok().filter(|part| (0..=167).contains(part))?;
        secs += scale * part;
    }
    Some(sign * secs)
}

fn parse_change(text: &str) -> Option<Change> {
    let (day, clock) = text.split_once('/').unwrap_or((text, "2"));
    let secs = take_clock(&mut { clock })?;
    let within = |text: &str, range: std::ops::RangeInclusive<i64>| {
        text.parse::<i64>().ok().filter(|number| range.contains(number))
    };
    let day = if let Some(day) = day.strip_prefix('J') {
        Day::Julian(within(day, 1..=365)?)
    } else if let Some(day) = day.strip_prefix('M') {
        let mut parts = day.splitn(3, '.');
        let month = within(parts.next()?, 1..=12)?;
        let week = within(parts.next()?, 1..=5)?;
        Day::Weekday(month, week, within(parts.next()?, 0..=6)?)
    } else {
        Day::Zero(within(day, 0..=365)?)
    };
    Some(Change { day, secs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(rule: &str) -> Zone {
        Zone { rule: Some(parse_rule(rule).unwrap()), ..Zone::default() }
    }

    #[test]
    fn dates_are_gregorian() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(-1), (1969, 12, 31));
        assert_eq!(date(19_782), (2024, 2, 29));
        for days in [-1_000_000, -1, 0, 59, 60, 19_782, 19_783, 2_000_000] {
            let (year, month, day) = date(days);
            assert_eq!(days_until(year, month, day), days);
        }
    }

    #[test]
    fn rules_switch_when_they_say() {
        let berlin = zone("CET-1CEST,M3.5.0,M10.5.0/3");
        // 2024-03-31 01:00 UTC and 2024-10-27 01:00 UTC.
        for (secs, offset) in [
            (1_711_846_799, 3600),
            (1_711_846_800, 7200),
            (1_729_990_799, 7200),
            (1_729_990_800, 3600),
        ] {
            assert_eq!(berlin.offset_at(secs), offset, "{secs}");
        }
        let sydney = zone("AEST-10AEDT,M10.1.0,M4.1.0/3");
        assert_eq!(sydney.offset_at(1_704_067_200), 39_600);
        assert_eq!(sydney.offset_at(1_719_792_000), 36_000);
        assert_eq!(zone("<+0330>-3:30").offset_at(0), 12_600);
        assert_eq!(zone("UTC0").at(0).hour, 0);
    }

    proptest! {
        #[test]
        fn no_file_and_no_rule_makes_it_panic(bytes in any::<Vec<u8>>(), text in any::<String>(), secs in any::<i64>()) {
            drop(Zone::parse(&bytes));
            let mut file = b"TZif2".to_vec();
            file.extend_from_slice(&bytes);
            drop(Zone::parse(&file));
            if let Some(rule) = parse_rule(&text) {
                rule.offset_at(secs);
            }
            zone("CET-1CEST,M3.5.0,M10.5.0/3").at(secs);
        }
    }
}
