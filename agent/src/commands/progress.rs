//! A line on standard error that says that a command is still at work. It appears after a second, counts
//! the seconds, and is erased when the command goes on. Only a terminal that can erase it gets it.
//!
//! A crate for bars is not worth it: how much there is to do is not known before.

use std::io::{IsTerminal as _, Write, stderr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::environment::has_control_sequences;

/// How long a command may be silent, and how often the line is written again.
const INTERVAL: Duration = Duration::from_secs(1);
/// Back to the beginning of the line, and erase the line from there.
const ERASE: &str = "\r\u{1b}[K";

/// The line; erased when dropped.
#[derive(Debug)]
pub(super) struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Begins to count. `what` is what the command does, such as `reading the ledger`.
    pub(super) fn start(what: &'static str) -> Self {
        if !stderr().is_terminal() || !has_control_sequences() {
            return Self(None);
        }
        let (working, done) = channel();
        let thread = std::thread::Builder::new().name("progress".into());
        let thread = thread.spawn(move || show(&mut stderr(), what, INTERVAL, &done));
        // Without a thread there is no line. The command works all the same.
        Self(thread.ok().map(|thread| (working, thread)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((working, thread)) = self.0.take() {
            drop(working);
            // It ends at once. What the command prints comes after the line is erased.
            let _ = thread.join();
        }
    }
}

/// Writes the line each `interval` until the other end of `done` is dropped.
fn show(out: &mut impl Write, what: &str, interval: Duration, done: &Receiver<()>) {
    let mut waited = Duration::ZERO;
    // Nothing can be said of a terminal that does not take it.
    while let Err(RecvTimeoutError::Timeout) = done.recv_timeout(interval) {
        waited += interval;
        let _ = write!(out, "{ERASE}{what}: {} s", waited.as_secs());
        let _ = out.flush();
    }
    if !waited.is_zero() {
        let _ = write!(out, "{ERASE}");
        let _ = out.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A terminal on which the command ends when the line has been written so often.
    struct Screen {
        written: String,
        lines: usize,
        working: Option<Sender<()>>,
    }

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written += std::str::from_utf8(bytes).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.lines = self.lines.saturating_sub(1);
            if self.lines == 0 {
                self.working = None;
            }
            Ok(())
        }
    }

    #[test]
    fn the_line_counts_and_is_erased_and_a_quick_command_has_none() {
        for (lines, expected) in [
            (0, "".to_owned()),
            (2, format!("{ERASE}a: 0 s").repeat(2) + ERASE),
        ] {
            let (working, done) = channel();
            let mut screen = Screen {
                written: String::new(),
                lines,
                working: (lines > 0).then_some(working),
            };
            show(&mut screen, "a", Duration::from_millis(1), &done);
            assert_eq!(screen.written, expected);
        }
    }
}
