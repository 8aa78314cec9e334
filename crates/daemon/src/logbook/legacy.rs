//! The log as clients of the first Librorum ask for it.

use std::collections::{BTreeMap, HashMap};

use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::proto::log;
use tracing::Level;

use super::{Filter, LogBook, Record, export, name_of, parse_level};

const HOUR_S: i64 = 3_600;

/// From their seconds, both ends inclusive, 0 for open, to a filter.
fn filter(
    level: &str,
    module: &str,
    search: &str,
    start_s: i64,
    end_s: i64,
) -> Result<Filter, Failure> {
    Ok(Filter {
        level: parse_level(level)?,
        module: module.to_owned(),
        search: search.to_owned(),
        after: 0,
        start_unix_ms: (start_s != 0).then(|| start_s.saturating_mul(1_000)),
        // To the end of that second.
        end_unix_ms: (end_s != 0).then(|| end_s.saturating_mul(1_000).saturating_add(999)),
    })
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

impl Record {
    /// As they know it.
    #[must_use]
    pub fn to_entry(&self) -> log::LogEntry {
        log::LogEntry {
            timestamp: self.unix_ms.div_euclid(1_000),
            level: match self.level {
                Level::ERROR => log::LogLevel::Error,
                Level::WARN => log::LogLevel::Warn,
                Level::INFO => log::LogLevel::Info,
                Level::DEBUG => log::LogLevel::Debug,
                Level::TRACE => log::LogLevel::Trace,
            }
            .into(),
            module: self.module.clone(),
            message: self.message.clone(),
            thread_id: self.thread.clone(),
            file: self.file.clone(),
            line: i32::try_from(self.line).unwrap_or(i32::MAX),
            fields: self.fields.iter().cloned().collect(),
        }
    }
}

impl LogBook {
    /// `GetLogs`. A limit keeps the newest.
    ///
    /// # Errors
    ///
    /// A level that is none, a limit below zero.
    pub fn get(&self, request: &log::GetLogsRequest) -> Result<log::GetLogsResponse, Failure> {
        let limit = usize::try_from(request.limit).map_err(|_negative| {
            Failure::file(ErrorKind::InvalidInput, "the limit is less than zero")
        })?;
        let filter = filter(
            &request.level_filter,
            &request.module_filter,
            &request.search_text,
            request.start_time,
            request.end_time,
        )?;
        let found = self.records(&filter);
        let skip = if limit == 0 { 0 } else { found.len().saturating_sub(limit) };
        let mut logs: Vec<_> = found[skip..].iter().map(|record| record.to_entry()).collect();
        if request.reverse {
            logs.reverse();
        }
        Ok(log::GetLogsResponse { logs, total_count: count(found.len()), has_more: skip > 0 })
    }

    /// `StreamLogs`: what to wait for with [`LogBook::wait_for`], and how much of the past comes first
    /// (0: nothing if the client follows, else all).
    ///
    /// # Errors
    ///
    /// A level that is none, a tail below zero.
    pub fn stream_filter(
        &self,
        request: &log::StreamLogsRequest,
    ) -> Result<(Filter, usize), Failure> {
        let tail = usize::try_from(request.tail).map_err(|_negative| {
            Failure::file(ErrorKind::InvalidInput, "the tail is less than zero")
        })?;
        let mut filter = filter(&request.level_filter, &request.module_filter, "", 0, 0)?;
        if request.follow && tail == 0 {
            filter.after = self.newest();
        }
        Ok((filter, tail))
    }

    /// `ClearLogs`. One of the two is needed: an empty request clears nothing.
    ///
    /// # Errors
    ///
    /// Neither was given.
    pub fn clear_request(
        &self,
        request: &log::ClearLogsRequest,
    ) -> Result<log::ClearLogsResponse, Failure> {
        let before = match (request.clear_all, request.before_timestamp) {
            (true, _) => None,
            (false, 0) => {
                return Err(Failure::file(
                    ErrorKind::InvalidInput,
                    "what to clear: give clear_all, or before_timestamp",
                ));
            }
            (false, before_s) => Some(before_s.saturating_mul(1_000)),
        };
        let cleared = self.clear(before);
        Ok(log::ClearLogsResponse {
            success: true,
            cleared_count: count(cleared),
            message: format!("{cleared} records cleared from memory; the log's file stays"),
        })
    }

    /// `GetLogStats`, over what is in memory.
    ///
    /// # Errors
    ///
    /// None, but as the others.
    pub fn stats(
        &self,
        request: &log::GetLogStatsRequest,
    ) -> Result<log::GetLogStatsResponse, Failure> {
        let found = self.records(&filter("", "", "", request.start_time, request.end_time)?);
        let mut level_counts: HashMap<String, i64> = HashMap::new();
        let mut module_counts: HashMap<String, i64> = HashMap::new();
        let mut trends: BTreeMap<i64, log::LogTrend> = BTreeMap::new();
        for record in &found {
            *level_counts.entry(name_of(record.level).to_owned()).or_default() += 1;
            *module_counts.entry(record.module.clone()).or_default() += 1;
            let hour = record.unix_ms.div_euclid(1_000 * HOUR_S) * HOUR_S;
            let trend = trends
                .entry(hour)
                .or_insert_with(|| log::LogTrend { timestamp: hour, ..log::LogTrend::default() });
            trend.log_count += 1;
            trend.error_count += i64::from(record.level == Level::ERROR);
            trend.warn_count += i64::from(record.level == Level::WARN);
        }
        Ok(log::GetLogStatsResponse {
            total_logs: i64::try_from(found.len()).unwrap_or(i64::MAX),
            error_count: trends.values().map(|trend| trend.error_count).sum(),
            warn_count: trends.values().map(|trend| trend.warn_count).sum(),
            level_counts,
            module_counts,
            trends: trends.into_values().collect(),
        })
    }

    /// `ExportLogs`.
    ///
    /// # Errors
    ///
    /// A level or a format that is none.
    pub fn export(
        &self,
        request: &log::ExportLogsRequest,
    ) -> Result<log::ExportLogsResponse, Failure> {
        let filter = filter(
            &request.level_filter,
            &request.module_filter,
            "",
            request.start_time,
            request.end_time,
        )?;
        let records = self.records(&filter);
        let (data, extension, mime_type) = match request.format() {
            // A client that says nothing gets what machines read.
            log::ExportFormat::Unknown if request.format == 0 => export::json(&records),
            log::ExportFormat::Unknown => {
                let message = format!("there is no export format {}", request.format);
                return Err(Failure::file(ErrorKind::InvalidInput, message));
            }
            log::ExportFormat::Json => export::json(&records),
            log::ExportFormat::Csv => export::csv(&records),
            log::ExportFormat::Plain => export::plain(&records),
        };
        let (data, filename, mime_type) = if request.compress {
            (export::gzip(&data), format!("librorum.{extension}.gz"), "application/gzip")
        } else {
            (data, format!("librorum.{extension}"), mime_type)
        };
        Ok(log::ExportLogsResponse {
            success: true,
            file_size: i64::try_from(data.len()).unwrap_or(i64::MAX),
            data: data.into(),
            filename,
            mime_type: mime_type.to_owned(),
            log_count: count(records.len()),
        })
    }
}
