//! A Unix socket as a file, the classes of its errors, and the timers of who follows it.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// A timer whose first tick is a whole span away, and which does not make up for missed ones.
pub(super) fn every(span: Duration) -> Interval {
    // A timer of no length at all would panic.
    let span = span.max(Duration::from_millis(1));
    let mut timer = interval_at(Instant::now() + span, span);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// A socket as a file: another daemon's is another file, whatever path leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Socket {
    pub(super) fn new(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// Whether both paths lead to one socket.
    pub(super) fn is_same_file(self, other: Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// A short class for an error of the system.
pub(super) fn io_class(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::NotFound => "vanished",
        ErrorKind::PermissionDenied => "permission",
        ErrorKind::TimedOut => "timeout",
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected => "closed",
        _ => "io",
    }
}
