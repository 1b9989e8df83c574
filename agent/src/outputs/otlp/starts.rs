//! Which counters are sent without the time of their start.
//!
//! A counter's point says when the counter started. A wall clock that was set back can be behind that
//! start, and receivers refuse a point that starts after its time. Such a point is sent with the start
//! 0, which OTLP defines as unknown. A receiver takes a start that changes for a counter that began
//! anew, and adds its whole amount once more. So a counter that was sent with 0 is sent with 0 from
//! then on, also by the next agent of the same boot: its series go on with the same starts.
//!
//! Series with the same start share the decision, since they reach it at the same time. The
//! decisions are kept in a file in the state directory, which is written before the message goes
//! out. If it cannot be written, the message goes out anyway, and the next push tries again.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::sent_totals_file::{KeepError, PATIENCE, failed, replace};
use crate::core::model::WallTime;
use crate::outputs::counters::OutputCounters;

/// The file's name in the state directory.
const FILE: &str = "otlp-starts.json";
/// Starts that are remembered one by one: several for each account that can be open. Beyond that the
/// earlier half becomes one time up to which all starts are left out, which is counted.
const LIMIT: usize = 65_536;

/// Where the starts are kept that were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartsFile {
    directory: PathBuf,
    /// The kernel's boot id: no series outlives a boot.
    boot: Arc<str>,
}

impl StartsFile {
    /// A file in `directory`, about series of this boot.
    #[must_use]
    pub fn new(directory: &Path, boot: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            boot: boot.into(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// What was left out in this boot; nothing where nothing was.
    fn read(&self) -> Result<LeftOut, KeepError> {
        let path = self.path();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LeftOut::default()),
            read => read.map_err(failed("read", &path))?,
        };
        let kept: StartsRecord =
            serde_json::from_slice(&text).map_err(|source| KeepError::Content { path, source })?;
        Ok(match *kept.boot == *self.boot {
            true => kept.left_out,
            false => LeftOut::default(),
        })
    }

    fn write(&self, left_out: LeftOut) -> Result<(), KeepError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(failed("make the directory", &self.directory))?;
        let path = self.path();
        let kept = StartsRecord {
            boot: Arc::clone(&self.boot),
            left_out,
        };
        match serde_json::to_vec(&kept) {
            Ok(text) => replace(&path, &text),
            Err(source) => Err(KeepError::Content { path, source }),
        }
    }
}

/// Starts in nanoseconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct LeftOut {
    starts: BTreeSet<u64>,
    /// All starts up to this are left out.
    through: u64,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct StartsRecord {
    boot: Arc<str>,
    #[serde(flatten)]
    left_out: LeftOut,
}

/// The starts that are left out.
#[derive(Debug)]
pub(super) struct Starts {
    left_out: LeftOut,
    /// Absent where no series outlives the agent.
    file: Option<StartsFile>,
    is_read: bool,
    is_written: bool,
    counters: Arc<OutputCounters>,
}

impl Starts {
    pub(super) fn new(file: Option<StartsFile>, counters: Arc<OutputCounters>) -> Self {
        Self {
            left_out: LeftOut::default(),
            file,
            is_read: false,
            is_written: true,
            counters,
        }
    }

    /// Reads what an agent before this one has left out; a push begins with it.
    pub(super) async fn begin(&mut self) {
        if self.is_read {
            return;
        }
        if let Some(file) = self.file.clone() {
            let path = file.path();
            let read = timeout(PATIENCE, spawn_blocking(move || file.read())).await;
            match read {
                Ok(Ok(Ok(left_out))) => self.left_out = left_out,
                Ok(Ok(Err(error))) => warn(&error),
                Ok(Err(panic)) => warn(&failed("read", &path)(panic.into())),
                Err(_) => warn(&KeepError::Slow { path }),
            }
        }
        self.is_read = true;
    }

    /// The start that a counter's point has at `time`: its own, or 0.
    pub(super) fn of(&mut self, start: WallTime, time: u64) -> u64 {
        let LeftOut { starts, through } = &mut self.left_out;
        if start.0 <= *through || starts.contains(&start.0) {
            return 0;
        }
        if start.0 <= time {
            return start.0;
        }
        starts.insert(start.0);
        if starts.len() > LIMIT
            && let Some(middle) = starts.iter().nth(LIMIT / 2).copied()
        {
            *starts = starts.split_off(&middle);
            *through = middle.saturating_sub(1);
            self.counters.otlp_starts_merged.add(1);
        }
        self.is_written = false;
        0
    }

    /// Has what was left out written down; what is sent goes out after this.
    pub(super) async fn keep(&mut self) {
        let Some(file) = self.file.clone().filter(|_| !self.is_written) else {
            return;
        };
        let (path, left_out) = (file.path(), self.left_out.clone());
        let written = timeout(PATIENCE, spawn_blocking(move || file.write(left_out))).await;
        match written {
            Ok(Ok(Ok(()))) => self.is_written = true,
            Ok(Ok(Err(error))) => warn(&error),
            Ok(Err(panic)) => warn(&failed("write", &path)(panic.into())),
            Err(_) => warn(&KeepError::Slow { path }),
        }
    }
}

fn warn(error: &KeepError) {
    tracing::warn!(
        class = error.class(),
        reason = error.words(),
        "cannot record which counters are sent without a start time; after a restart some may be sent with one"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(file: Option<StartsFile>) -> Starts {
        Starts::new(file, Arc::default())
    }

    #[test]
    fn a_start_that_was_left_out_never_becomes_another() {
        let mut starts = starts(None);
        // Start and time, as the clock is set back, stands behind and catches up.
        for (start, time, expected) in [
            (100, 200, 100),
            (300, 200, 0),
            (300, 299, 0),
            (300, 300, 0),
            (300, 400, 0),
            (100, 400, 100),
            (250, 400, 250),
        ] {
            assert_eq!(
                starts.of(WallTime(start), time),
                expected,
                "{start} at {time}"
            );
        }
    }

    #[tokio::test]
    async fn the_next_agent_of_the_boot_leaves_out_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = |boot| Some(StartsFile::new(&dir.path().join("state"), boot));
        let mut first = starts(file("boot"));
        first.begin().await;
        assert_eq!(first.of(WallTime(300), 200), 0);
        first.keep().await;
        let mut next = starts(file("boot"));
        next.begin().await;
        assert_eq!(next.of(WallTime(300), 400), 0);
        assert_eq!(next.of(WallTime(301), 400), 301);
        let mut rebooted = starts(file("another"));
        rebooted.begin().await;
        assert_eq!(rebooted.of(WallTime(300), 400), 300);
        // A file that nobody can read is none.
        fs::write(dir.path().join("state").join(FILE), "{").unwrap();
        let mut last = starts(file("boot"));
        last.begin().await;
        assert_eq!(last.of(WallTime(300), 400), 300);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_still_left_out() {
        let mut starts = starts(None);
        let all = 1_000..1_000 + LIMIT as u64 + 10;
        for start in all.clone() {
            assert_eq!(starts.of(WallTime(start), 1), 0);
        }
        assert!(starts.left_out.starts.len() <= LIMIT);
        assert_eq!(starts.counters.otlp_starts_merged.get(), 1);
        for start in all {
            assert_eq!(starts.of(WallTime(start), u64::MAX), 0);
        }
    }
}
