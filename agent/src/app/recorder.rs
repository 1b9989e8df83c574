//! Records the inputs of the core, for `gpuacct agent --record-inputs`, so that a bug that was seen
//! once can be replayed.
//!
//! For debugging, not for production: it writes on the core's own thread. The file has names of
//! containers in it, is readable by its owner alone, and never replaces another. Recording ends
//! with a warning at [`MOST`] bytes or when the disk is full; the agent goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tracing::{info, warn};

use crate::core::accountant::Settings;
use crate::core::input::Input;
use crate::core::model::Clock;
use crate::core::replay;

/// How much is written at most: hours of a busy node.
const MOST: usize = 256 << 20;

/// Writes the inputs to a file.
pub(super) struct Recorder {
    /// Absent once recording has ended.
    file: Option<BufWriter<File>>,
    written: usize,
}

impl Recorder {
    pub(super) fn create(path: &Path, settings: &Settings, clock: Clock) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut recorder = Self {
            file: Some(BufWriter::new(file)),
            written: 0,
        };
        recorder.write(replay::head(settings, clock));
        info!(path = %path.display(), "recording the inputs of the core");
        Ok(recorder)
    }

    pub(super) fn take(&mut self, input: &Input, clock: Clock) {
        if self.file.is_some() {
            self.write(replay::take(input, clock));
        }
    }

    /// Records that a commit follows, and flushes all that was recorded before it.
    pub(super) fn commit(&mut self, last: bool, clock: Clock) {
        self.write(replay::commit(last, clock));
        if let Some(Err(error)) = self.file.as_mut().map(BufWriter::flush) {
            self.end(&error.to_string());
        }
    }

    fn write(&mut self, line: Result<String, serde_json::Error>) {
        let Some(file) = &mut self.file else { return };
        let written = line
            .map_err(io::Error::from)
            .and_then(|line| writeln!(file, "{line}").map(|()| line.len() + 1));
        match written {
            Ok(bytes) => self.written += bytes,
            Err(error) => return self.end(&error.to_string()),
        }
        if self.written > MOST {
            self.end("it has become too long");
        }
    }

    fn end(&mut self, reason: &str) {
        // What is buffered may be written or not: the last line can be torn.
        self.file = None;
        warn!(reason, "recording of the core's inputs stopped");
    }
}
