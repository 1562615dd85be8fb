// SPDX-License-Identifier: Apache-2.0
//! The log: one line per event on standard output, `time level target message fields`, separated by tabs, or JSON.
//!
//! Lines go through a bounded queue to one writing thread, so that a slow reader of our output slows the node down
//! rather than fill its memory. Which lines are wanted can be changed at run time ([`change`]); a line that is not
//! wanted costs a comparison, as `tracing` remembers the answer at each call site until it changes.
//! Source: data-plane contract, section 6.6.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};
use ztunnel_core::report::AccessEntry;
use ztunnel_core::report::access::{LogLevel, Timestamp};
use ztunnel_core::report::levels::{Levels, LevelsError, Verbosity};

use crate::config::env::Env;

/// Lines that may wait for the writer.
const QUEUE: usize = 10_000;
/// Bytes per write, about.
const BATCH: usize = 64 << 10;
/// While lines come thick and fast they are gathered for this long: one wake-up and one write for all of them.
const GATHER: Duration = Duration::from_millis(2);
/// A line after a silence of this length is written at once.
const SILENCE: Duration = Duration::from_millis(10);

static SINK: OnceLock<Sink> = OnceLock::new();
static CONTROL: OnceLock<Control> = OnceLock::new();
/// A connection that opens is worth a line at level info.
static LOG_OPENED: AtomicBool = AtomicBool::new(false);

/// Which lines are wanted.
struct Control {
    /// As at start.
    start: Levels,
    now: Mutex<Levels>,
    filter: reload::Handle<Targets, Registry>,
}

#[derive(Debug)]
struct Sink {
    lines: SyncSender<Line>,
    json: bool,
}

enum Line {
    Text(String),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Starts the log as `RUST_LOG` and `LOG_FORMAT` say. Call once.
pub fn init(env: &impl Env) {
    let json = env.get("LOG_FORMAT").is_some_and(|format| format == "json");
    let (lines, receiver) = sync_channel(QUEUE);
    let writer = thread::Builder::new().name("ztunnel-log".into()).spawn(move || write(&receiver));
    if writer.is_err() || SINK.set(Sink { lines, json }).is_err() {
        return;
    }
    let (start, ignored) = Levels::from_variable(&env.get("RUST_LOG").unwrap_or_default());
    let (filter, handle) = reload::Layer::new(targets(&start));
    // A second start in one process keeps the first log: only tests do that.
    if tracing_subscriber::registry().with(Lines.with_filter(filter)).try_init().is_ok() {
        let now = Mutex::new(start.clone());
        CONTROL.get_or_init(|| Control { start, now, filter: handle });
    }
    for error in ignored {
        warn!("a part of RUST_LOG is ignored: {error}");
    }
}

fn targets(levels: &Levels) -> Targets {
    let filter = |level| match level {
        Verbosity::Off => LevelFilter::OFF,
        Verbosity::Error => LevelFilter::ERROR,
        Verbosity::Warn => LevelFilter::WARN,
        Verbosity::Info => LevelFilter::INFO,
        Verbosity::Debug => LevelFilter::DEBUG,
        Verbosity::Trace => LevelFilter::TRACE,
    };
    let named = levels.targets().map(|(target, level)| (target.to_owned(), filter(level)));
    Targets::new().with_targets(named).with_default(filter(levels.default_level()))
}

/// Changes which lines are wanted: from what they are now or, with `from`, from what they were at start. Gives what
/// holds then.
///
/// # Errors
/// `spec` cannot be understood; nothing is changed.
pub fn change(from: From, spec: &str) -> Result<String, LevelsError> {
    let Some(control) = CONTROL.get() else {
        return Levels::default().with(spec).map(|levels| levels.to_string());
    };
    let mut now = control.now.lock();
    let changed = match from {
        From::Now => now.with(spec)?,
        From::Start => control.start.with(spec)?,
    };
    if changed != *now {
        // Only fails when the log is gone, and with it everything that could be filtered.
        drop(control.filter.reload(targets(&changed)));
        *now = changed;
    }
    Ok(now.to_string())
}

/// What a change of levels begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The levels as they are.
    Now,
    /// The levels as they were at start.
    Start,
}

/// From now on a connection that opens is logged at level info.
pub fn log_opened() {
    LOG_OPENED.store(true, Ordering::Relaxed);
}

/// How much it matters that a connection opens.
pub fn opening() -> LogLevel {
    if LOG_OPENED.load(Ordering::Relaxed) { LogLevel::Info } else { LogLevel::Debug }
}

/// Waits until everything logged so far is written, but not for ever.
pub fn flush() {
    if let Some(sink) = SINK.get() {
        let (done, wait) = sync_channel(1);
        if sink.lines.send(Line::Flush(done)).is_ok() {
            // A reader that has stopped reading our output must not keep us from ending.
            wait.recv_timeout(Duration::from_secs(1)).ok();
        }
    }
}

/// Writes one line of the access log, if its level is enabled.
pub fn access(entry: &AccessEntry<'_>) {
    let enabled = match entry.level() {
        LogLevel::Debug => tracing::enabled!(target: "access", Level::DEBUG),
        LogLevel::Info => tracing::enabled!(target: "access", Level::INFO),
        LogLevel::Warn => tracing::enabled!(target: "access", Level::WARN),
        LogLevel::Error => tracing::enabled!(target: "access", Level::ERROR),
    };
    if let Some(sink) = SINK.get().filter(|_| enabled) {
        let now = SystemTime::now();
        sink.send(if sink.json { entry.json(now) } else { entry.text(now) });
    }
}

impl Sink {
    fn send(&self, mut line: String) {
        line.push('\n');
        // Only fails when the writer is gone, and then there is nobody to tell.
        drop(self.lines.send(Line::Text(line)));
    }
}

fn write(lines: &Receiver<Line>) {
    let mut batch = String::new();
    let mut written = Instant::now();
    while let Ok(first) = lines.recv() {
        if written.elapsed() < SILENCE {
            thread::sleep(GATHER);
        }
        let mut flushes = Vec::new();
        let mut next = Some(first);
        while let Some(line) = next.take() {
            match line {
                Line::Text(line) => batch.push_str(&line),
                Line::Flush(done) => flushes.push(done),
            }
            if batch.len() < BATCH {
                next = lines.try_recv().ok();
            }
        }
        // Whoever reads us may be gone; the proxy goes on.
        drop(io::stdout().lock().write_all(batch.as_bytes()));
        written = Instant::now();
        batch.clear();
        for done in flushes {
            done.send(()).ok();
        }
    }
}

/// Turns `tracing` events into lines.
struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some(sink) = SINK.get() else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now = Timestamp(SystemTime::now());
        sink.send(if sink.json {
            fields.json(event.metadata(), &now)
        } else {
            fields.text(event.metadata(), &now)
        });
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Fields {
    fn text(&self, metadata: &Metadata<'_>, now: &Timestamp) -> String {
        let target = metadata.target().trim_start_matches("ztunnel::");
        let mut line = format!("{now}\t{}\t{target}\t{}\t", level(metadata), one_line(&self.message));
        for (index, (name, value)) in self.rest.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            // Writing to a string cannot fail.
            write!(line, "{space}{name}={value}").ok();
        }
        line
    }

    fn json(&self, metadata: &Metadata<'_>, now: &Timestamp) -> String {
        let mut object = serde_json::Map::new();
        let mut put = |name: &str, value: &str| object.insert(name.to_owned(), value.into());
        put("level", level(metadata));
        put("time", &now.to_string());
        put("scope", metadata.target());
        put("message", &self.message);
        for (name, value) in &self.rest {
            put(name, value);
        }
        serde_json::Value::Object(object).to_string()
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.rest.push((field.name(), one_line(&text).into_owned()));
        }
    }
}

/// Whatever a peer wrote must not look like two lines, nor like two columns.
fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) { format!("{text:?}").into() } else { text.into() }
}

fn level(metadata: &Metadata<'_>) -> &'static str {
    match *metadata.level() {
        Level::TRACE => "trace",
        Level::DEBUG => "debug",
        Level::INFO => "info",
        Level::WARN => "warn",
        Level::ERROR => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_text_with_control_characters_stays_in_its_line_and_column() {
        assert_eq!(one_line("a pod's proxy"), "a pod's proxy");
        assert_eq!(one_line("a\nb\tc\u{1b}[2J"), r#""a\nb\tc\u{1b}[2J""#);
    }
}
