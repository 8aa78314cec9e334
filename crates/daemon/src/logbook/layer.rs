//! From `tracing` into the log.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Filtered, Targets};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

use super::{LogBook, Record, lock, now_unix_ms};

/// The layer that records. Made by [`LogBook::layer`].
#[derive(Debug)]
pub struct Recorder {
    book: LogBook,
}

impl LogBook {
    /// A layer that records into this log, at the log's level.
    pub fn layer<S>(&self) -> Filtered<Recorder, reload::Layer<Targets, S>, S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync + 'static,
    {
        self.filtered(Recorder { book: self.clone() })
    }

    /// Another layer, such as one that writes to standard error, at the log's level: a change of the
    /// level changes both.
    pub fn filtered<S, L>(&self, layer: L) -> Filtered<L, reload::Layer<Targets, S>, S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync + 'static,
        L: Layer<S>,
    {
        let filter = lock(&self.inner.filter).clone();
        let (filter, handle) = reload::Layer::new(filter);
        lock(&self.inner.reloads)
            .push(Box::new(move |targets| handle.reload(targets.clone()).is_ok()));
        layer.with_filter(filter)
    }
}

/// The fields of a span, kept with it.
#[derive(Default)]
struct Fields(Vec<(String, String)>);

/// Collects fields as text.
#[derive(Default)]
struct Collector {
    message: String,
    fields: Vec<(String, String)>,
}

impl Collector {
    fn put(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            set(&mut self.fields, field.name(), value);
        }
    }
}

impl Visit for Collector {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        self.put(field, text);
    }
}

fn set(fields: &mut Vec<(String, String)>, name: &str, value: String) {
    match fields.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => fields.push((name.to_owned(), value)),
    }
}

impl<S> Layer<S> for Recorder
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut collector = Collector::default();
        attributes.record(&mut collector);
        span.extensions_mut().replace(Fields(collector.fields));
    }

    fn on_record(&self, id: &Id, values: &SpanRecord<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut collector = Collector::default();
        values.record(&mut collector);
        let mut extensions = span.extensions_mut();
        if let Some(fields) = extensions.get_mut::<Fields>() {
            for (name, value) in collector.fields {
                set(&mut fields.0, &name, value);
            }
        } else {
            extensions.insert(Fields(collector.fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Collector::default();
        event.record(&mut own);
        let mut fields = Vec::new();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(known) = span.extensions().get::<Fields>() {
                for (name, value) in &known.0 {
                    set(&mut fields, name, value.clone());
                }
            }
        }
        for (name, value) in own.fields {
            set(&mut fields, &name, value);
        }
        let metadata = event.metadata();
        let thread = std::thread::current();
        self.book.inner.push(Record {
            sequence: 0,
            unix_ms: now_unix_ms(),
            level: *metadata.level(),
            module: metadata.module_path().unwrap_or_else(|| metadata.target()).to_owned(),
            message: own.message,
            thread: thread.name().map_or_else(|| format!("{:?}", thread.id()), str::to_owned),
            file: metadata.file().unwrap_or("").to_owned(),
            line: metadata.line().unwrap_or(0),
            fields,
        });
    }
}
