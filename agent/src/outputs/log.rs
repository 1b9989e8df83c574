//! The agent's log as it can be asked for and changed while it runs: its last lines, kept in a
//! bounded ring, and its level.
//!
//! What goes to standard error is the node's to keep; this is for a report made on the spot, also
//! where nobody collects logs. Lines are kept as they were let through: a level that hides them from
//! standard error hides them from here.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;

use crate::log_filter::filter;
pub use crate::log_filter::{ALLOWED, LevelError};
use crate::secrets::Secrets;

/// Lines that are kept.
const MAX_LINES: usize = 500;
/// The longest line that is kept whole, in bytes.
const MAX_LINE_BYTES: usize = 2_048;
/// The answer to `GET /v1/log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// The level now.
    pub level: String,
    /// Lines that were kept once and made room for newer ones.
    pub forgotten: u64,
    /// The last lines, the oldest first.
    pub lines: Vec<Arc<str>>,
}

/// The answer to `POST /v1/log-level`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelChange {
    /// The level until now.
    pub before: String,
    /// The level from now on.
    pub now: String,
}

/// The agent's log: its level and its last lines.
#[derive(Debug, Default)]
pub struct Log {
    state: Mutex<LogBuffer>,
    handle: OnceLock<reload::Handle<EnvFilter, Registry>>,
}

#[derive(Debug, Default)]
struct LogBuffer {
    level: String,
    lines: VecDeque<Arc<str>>,
    forgotten: u64,
}

impl Log {
    /// A log of that level, and the filter that it governs: the first layer of the subscriber.
    ///
    /// # Errors
    /// If that is no level.
    pub fn new(level: &str) -> Result<(Arc<Self>, reload::Layer<EnvFilter, Registry>), LevelError> {
        let (layer, handle) = reload::Layer::new(filter(level)?);
        let log = Self::default();
        log.state().level = level.to_owned();
        // It is empty: the log has just been made.
        let _ = log.handle.set(handle);
        Ok((Arc::new(log), layer))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, LogBuffer> {
        // After a panic of another thread the lines are still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last lines and the level.
    #[must_use]
    pub fn report(&self) -> LogReport {
        let state = self.state();
        LogReport {
            level: state.level.clone(),
            forgotten: state.forgotten,
            lines: state.lines.iter().cloned().collect(),
        }
    }

    /// Changes the level.
    ///
    /// # Errors
    /// If that is no level; the one before stays.
    pub fn set_level(&self, level: &str) -> Result<LevelChange, LevelError> {
        let level = level.trim();
        let handle = self.handle.get().ok_or(LevelError::Fixed)?;
        let filter = filter(level)?;
        let hint = filter.max_level_hint();
        handle.reload(filter).map_err(|_| LevelError::Fixed)?;
        // What logs through the `log` crate is held back there already.
        log::set_max_level(
            hint.map_or(log::LevelFilter::Trace, |hint| match hint.into_level() {
                None => log::LevelFilter::Off,
                Some(tracing::Level::ERROR) => log::LevelFilter::Error,
                Some(tracing::Level::WARN) => log::LevelFilter::Warn,
                Some(tracing::Level::INFO) => log::LevelFilter::Info,
                Some(tracing::Level::DEBUG) => log::LevelFilter::Debug,
                Some(tracing::Level::TRACE) => log::LevelFilter::Trace,
            }),
        );
        let before = std::mem::replace(&mut self.state().level, level.to_owned());
        let now = level.to_owned();
        tracing::info!(before, now, "the log level was changed");
        Ok(LevelChange { before, now })
    }

    fn keep(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let mut text = text.trim_end_matches('\n');
        if text.len() > MAX_LINE_BYTES {
            text = &text[..text.floor_char_boundary(MAX_LINE_BYTES)];
        }
        let mut state = self.state();
        if state.lines.len() == MAX_LINES {
            state.lines.pop_front();
            state.forgotten += 1;
        }
        state.lines.push_back(text.into());
    }
}

/// A writer for a `fmt` layer that stores each line in the in-memory log.
#[derive(Clone, Debug)]
pub struct LogCapture(pub Arc<Log>);

impl<'a> MakeWriter<'a> for LogCapture {
    type Writer = LineOf<'a>;

    fn make_writer(&'a self) -> LineOf<'a> {
        LineOf(&self.0)
    }
}

/// One event of the log: the `fmt` layer writes each in one go.
#[derive(Debug)]
pub struct LineOf<'a>(&'a Log);

impl io::Write for LineOf<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.keep(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that replaces secrets before it writes.
#[derive(Clone, Debug)]
pub struct RedactingWriter<M> {
    /// Secrets to strike out of what is logged.
    pub secrets: Secrets,
    /// Writer that receives the redacted text.
    pub writers: M,
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for RedactingWriter<M> {
    type Writer = RedactedLine<'a, M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        RedactedLine {
            secrets: &self.secrets,
            writer: self.writers.make_writer(),
        }
    }
}

/// A writer for one log event that replaces secrets.
#[derive(Debug)]
pub struct RedactedLine<'a, W> {
    secrets: &'a Secrets,
    writer: W,
}

impl<W: io::Write> io::Write for RedactedLine<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.writer
            .write_all(self.secrets.struck_out(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use tracing::subscriber::with_default;
    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn subscriber(level: &str) -> (Arc<Log>, impl tracing::Subscriber + Send + Sync) {
        let (log, filter) = Log::new(level).unwrap();
        let lines = fmt::layer()
            .with_ansi(false)
            .with_writer(LogCapture(Arc::clone(&log)));
        (log, tracing_subscriber::registry().with(filter).with(lines))
    }

    #[test]
    fn the_last_lines_are_kept_and_the_others_counted() {
        let (log, subscriber) = subscriber("info");
        with_default(subscriber, || {
            for number in 0..MAX_LINES + 3 {
                tracing::info!(number, "line");
            }
            tracing::debug!("hidden");
            tracing::info!(text = "ä".repeat(MAX_LINE_BYTES), "long");
        });
        let report = log.report();
        assert_eq!((report.lines.len(), report.forgotten), (MAX_LINES, 4));
        assert!(report.lines[0].contains("number=4"), "{}", report.lines[0]);
        let long = &report.lines[MAX_LINES - 1];
        assert!(long.len() <= MAX_LINE_BYTES && long.contains("long"));
    }

    #[test]
    fn a_level_is_changed_while_the_log_is_written() {
        let (log, subscriber) = subscriber("warn");
        with_default(subscriber, || {
            tracing::debug!("before");
            let change = log.set_level(" debug\n").unwrap();
            assert_eq!(
                (change.before.as_str(), change.now.as_str()),
                ("warn", "debug")
            );
            tracing::debug!("after");
            let error = log.set_level("verbose").expect_err("no level");
            assert!(matches!(error, LevelError::Unknown { .. }), "{error}");
            assert_eq!(log.report().level, "debug");
        });
        let text = log.report().lines.join("\n");
        assert!(
            text.contains("after") && text.contains("was changed"),
            "{text}"
        );
        assert!(!text.contains("before\n"), "{text}");
    }

    #[test]
    fn the_sdk_speaks_of_lost_telemetry_only_to_those_who_ask() {
        for (level, is_heard) in [
            ("info", false),
            ("warn,gpuacct=info", false),
            ("debug", true),
            ("DEBUG", true),
            ("error, Trace", true),
            ("info,opentelemetry=warn", true),
            ("info,opentelemetry_sdk=error,opentelemetry-otlp=warn", true),
            // Details of the agent itself do not ask for the SDK's words.
            ("info,gpuacct=debug", false),
            ("warn,gpuacct::outputs=TRACE", false),
            ("gpuacct=info,hyper_debug=error", false),
            ("debug,info", false),
            ("error, gpuacct=info", false),
        ] {
            let (log, subscriber) = subscriber(level);
            with_default(subscriber, || {
                tracing::error!(target: "opentelemetry_sdk", "export failed");
                tracing::warn!(target: "opentelemetry-otlp", "telemetry data will be lost");
                tracing::warn!(target: "gpuacct::outputs::otlp", "OTLP export failed");
            });
            let expected = if is_heard { 3 } else { 1 };
            assert_eq!(log.report().lines.len(), expected, "{level}");
        }
    }

    #[test]
    fn a_secret_that_somebody_else_repeats_is_struck_out_of_the_log() {
        let log = Arc::<Log>::default();
        let lines = fmt::layer().with_ansi(false).with_writer(RedactingWriter {
            secrets: Secrets::of(["Bearer hunter22"], None),
            writers: LogCapture(Arc::clone(&log)),
        });
        with_default(tracing_subscriber::registry().with(lines), || {
            tracing::warn!(reason = "bad token hunter22", "OTLP export failed");
        });
        let [line] = &log.report().lines[..] else {
            panic!("one line");
        };
        assert!(
            line.contains("bad token (redacted)") && !line.contains("hunter22"),
            "{line}"
        );
    }

    #[test]
    fn a_process_without_a_log_has_no_level_to_change() {
        let error = Log::default().set_level("info").expect_err("no log");
        assert!(matches!(error, LevelError::Fixed), "{error}");
    }
}
