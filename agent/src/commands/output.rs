//! What a command writes: its output to standard output, and what it has to say to standard error.
//!
//! A reader that closes the pipe has read what it wanted, so the command ends quietly. Any other
//! failure, such as a full disk, is an error of the command: whoever redirected the output would
//! take a part of it for all of it.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use super::charset::Charset;
use super::complaint::say;
use crate::errors::chain;

/// How an answer is printed, by the commands that have two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table that fits 80 columns.
    Table,
    /// The agent's own answer.
    Json,
}

/// What became of a text that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The text was written whole.
    Whole,
    /// The reader had closed the pipe.
    NoReader,
}

/// Why an output was not written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(super) struct OutputError {
    /// What the system said.
    #[from]
    source: io::Error,
}

/// Prints a command's whole answer. Returns `code`, or 1 after an error message if the answer could not
/// be written.
pub(super) fn print(answer: impl AsRef<[u8]>, code: u8) -> ExitCode {
    match write_out(answer) {
        Ok(_) => ExitCode::from(code),
        Err(error) => not_written(&error),
    }
}

/// Says why the output was not written, and how to exit.
pub(super) fn not_written(error: &OutputError) -> ExitCode {
    let remedy =
        "do not use what was written, since it is not whole; make room, or write elsewhere";
    say(&chain(error), Some(remedy), 1)
}

/// Prints a page for people, in the characters of their locale. Otherwise as [`print`].
pub(super) fn print_page(page: String, code: u8) -> ExitCode {
    print(Charset::of_the_environment().text(page), code)
}

/// Writes a whole answer to standard output.
///
/// # Errors
/// If it cannot be written, for another reason than that its reader has gone.
pub(super) fn write_out(answer: impl AsRef<[u8]>) -> Result<Written, OutputError> {
    // The standard library's own takes a closed descriptor for a written one.
    let out = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    out.and_then(|mut out| write(&mut out, answer.as_ref()))
        .map_err(OutputError::from)
}

fn write(out: &mut impl Write, answer: &[u8]) -> io::Result<Written> {
    match out.write_all(answer).and_then(|()| out.flush()) {
        Ok(()) => Ok(Written::Whole),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Written::NoReader),
        Err(error) => Err(error),
    }
}

/// Writes a line to standard error. `eprintln!` would panic if nobody reads it.
pub(super) fn note(line: impl fmt::Display) {
    // There is no other place where this could be said.
    let _ = writeln!(io::stderr(), "{line}");
}

/// How many columns the terminal has; none if the output is a file or a pipe, where a line has any
/// length.
pub(super) fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(io::stdout());
    Some(match size.map_or(0, |size| size.ws_col) {
        // The terminal does not know.
        0 => super::table::WIDTH,
        columns => columns.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_closed_pipe_is_none() {
        for (kind, is_error) in [
            (ErrorKind::StorageFull, true),
            (ErrorKind::PermissionDenied, true),
            (ErrorKind::BrokenPipe, false),
        ] {
            let found = write(&mut Broken(kind), b"text");
            assert_eq!(found.is_err(), is_error, "{kind:?}");
            if !is_error {
                assert_eq!(found.unwrap(), Written::NoReader);
            }
        }
        let mut written = Vec::new();
        assert_eq!(write(&mut written, b"text").unwrap(), Written::Whole);
        assert_eq!(written, b"text");
    }
}
