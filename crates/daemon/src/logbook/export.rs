//! Records as text for other programs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use super::{Record, name_of};

/// The bytes, the extension of a file with them, and their media type.
pub(super) type Exported = (Vec<u8>, &'static str, &'static str);

/// One array of objects.
pub(super) fn json(records: &[Arc<Record>]) -> Exported {
    let records: Vec<&Record> = records.iter().map(|record| &**record).collect();
    // Strings and numbers only: there is nothing in a record that JSON cannot say.
    let data = serde_json::to_vec_pretty(&records).unwrap_or_default();
    (data, "json", "application/json")
}

/// RFC 4180, with a header.
pub(super) fn csv(records: &[Arc<Record>]) -> Exported {
    let mut text = String::from("sequence,time,level,module,thread,file,line,message,fields\r\n");
    for record in records {
        let line = record.line.to_string();
        let columns = [
            record.sequence.to_string(),
            rfc3339(record.unix_ms),
            name_of(record.level).to_owned(),
            record.module.clone(),
            record.thread.clone(),
            record.file.clone(),
            line,
            record.message.clone(),
            fields(record),
        ];
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            if column.contains(['"', ',', '\n', '\r']) {
                text.push('"');
                text.push_str(&column.replace('"', "\"\""));
                text.push('"');
            } else {
                text.push_str(column);
            }
        }
        text.push_str("\r\n");
    }
    (text.into_bytes(), "csv", "text/csv")
}

/// One line for each.
pub(super) fn plain(records: &[Arc<Record>]) -> Exported {
    let mut text = String::new();
    for record in records {
        text.push_str(&line(record));
        text.push('\n');
    }
    (text.into_bytes(), "log", "text/plain")
}

/// A record as a line for people. Line breaks inside are escaped, so that nobody can forge a record.
pub(super) fn line(record: &Record) -> String {
    let mut text = format!(
        "{} {:5} {}: {}",
        rfc3339(record.unix_ms),
        name_of(record.level).to_ascii_uppercase(),
        record.module,
        record.message
    );
    let fields = fields(record);
    if !fields.is_empty() {
        text.push(' ');
        text.push_str(&fields);
    }
    text.replace('\n', "\\n").replace('\r', "\\r")
}

fn fields(record: &Record) -> String {
    let mut text = String::new();
    for (name, value) in &record.fields {
        if !text.is_empty() {
            text.push(' ');
        }
        let written = if value.is_empty() || value.contains([' ', '"', '=']) {
            write!(text, "{name}={value:?}")
        } else {
            write!(text, "{name}={value}")
        };
        if written.is_err() {
            unreachable!("a string takes every text");
        }
    }
    text
}

pub(super) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let written = out.write_all(data).and_then(|()| out.finish());
    // Memory does not fail.
    written.unwrap_or_default()
}

/// UTC, to the millisecond.
pub(crate) fn rfc3339(unix_ms: i64) -> String {
    let (year, month, day) = civil(unix_ms.div_euclid(86_400_000));
    let ms = unix_ms.rem_euclid(86_400_000);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

/// The day of the Gregorian calendar that is so many days after 1970-01-01 (Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}
