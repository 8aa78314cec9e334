//! Figures with their names, and Prometheus' text of them.
//!
//! Who has figures puts samples into an [`Exposition`]; the text for Prometheus and the messages for
//! OTLP are both made from it, so the two never tell different things. The text is written here rather
//! than by `prometheus-client`: that crate wants to own the counters, and ours are the ones that
//! `StatsResponse` is made of.

use std::fmt::Write;

use super::histogram::Snapshot;

/// What kind of figure a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations.
    Histogram,
}

/// A figure.
#[derive(Clone, Debug)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// A fraction.
    Real(f64),
    /// Durations.
    Histogram(Box<Snapshot>),
}

/// A figure with its labels.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The figure.
    pub value: Value,
}

/// The figures of one name.
#[derive(Clone, Debug)]
pub struct Family {
    /// The name.
    pub name: &'static str,
    /// A sentence for people.
    pub help: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// One for each set of labels.
    pub samples: Vec<Sample>,
}

/// Figures being collected.
#[derive(Debug, Default)]
pub struct Exposition {
    families: Vec<Family>,
}

/// The edges of the histograms that are shown: powers of two nanoseconds, from 1 µs to 17 s, in steps
/// of four. Inside there are 16 buckets for each power of two, but a scrape should stay small.
pub(crate) const BUCKET_POWERS: [u32; 13] = [10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34];

impl Exposition {
    /// A sample of the family of this name.
    pub fn sample(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &[(&'static str, &str)],
        value: Value,
    ) {
        let labels = labels.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        let sample = Sample { labels, value };
        match self.families.iter_mut().find(|family| family.name == name) {
            Some(family) => family.samples.push(sample),
            None => self.families.push(Family { name, help, kind, samples: vec![sample] }),
        }
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.sample(name, help, Kind::Counter, &[], Value::Whole(value));
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.sample(name, help, Kind::Gauge, &[], Value::Whole(value));
    }

    /// A gauge without labels that is no whole number.
    pub fn gauge_f64(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.sample(name, help, Kind::Gauge, &[], Value::Real(value));
    }

    /// What was collected.
    #[must_use]
    pub fn into_families(self) -> Vec<Family> {
        self.families
    }
}

/// Prometheus' text format 0.0.4.
#[must_use]
pub fn render(families: &[Family]) -> String {
    let mut out = String::with_capacity(16 * 1024);
    for family in families {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
        line(&mut out, format_args!("# HELP {} {help}", family.name));
        line(&mut out, format_args!("# TYPE {} {kind}", family.name));
        for sample in &family.samples {
            let labels = label_text(&sample.labels);
            match &sample.value {
                Value::Whole(value) => {
                    line(&mut out, format_args!("{}{} {value}", family.name, braces(&labels)));
                }
                Value::Real(value) => {
                    let value = number(*value);
                    line(&mut out, format_args!("{}{} {value}", family.name, braces(&labels)));
                }
                Value::Histogram(snapshot) => {
                    render_histogram(&mut out, family.name, &labels, snapshot);
                }
            }
        }
    }
    out
}

fn render_histogram(out: &mut String, name: &str, labels: &str, snapshot: &Snapshot) {
    let comma = if labels.is_empty() { "" } else { "," };
    for power in BUCKET_POWERS {
        let edge = edge_seconds(power);
        let count = snapshot.below_power(power);
        line(out, format_args!("{name}_bucket{{{labels}{comma}le=\"{edge}\"}} {count}"));
    }
    let count = snapshot.count;
    line(out, format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}"));
    let sum = seconds(snapshot.sum_ns);
    line(out, format_args!("{name}_sum{} {sum}", braces(labels)));
    line(out, format_args!("{name}_count{} {count}", braces(labels)));
}

/// The edge of a shown bucket. A duration of exactly this many nanoseconds counts above it.
pub(crate) fn edge_seconds(power: u32) -> f64 {
    seconds(1_u64 << power)
}

#[expect(clippy::cast_precision_loss, reason = "durations for people and graphs")]
pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

fn braces(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

fn label_text(labels: &[(&'static str, String)]) -> String {
    let mut text = String::new();
    for (index, (name, value)) in labels.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    text
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    if writeln!(out, "{text}").is_err() {
        unreachable!("a string takes every text");
    }
}
