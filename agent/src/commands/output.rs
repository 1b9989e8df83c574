//! How commands print their answers: in which form, and to standard output whole, or with an error
//! and exit code 1.
//!
//! An answer that was not written is no answer, whatever the exit code would have said about the
//! agent. Only a reader that closes its pipe has had enough: that is no error, and the exit code
//! still says what was found.

use std::io::{self, Write};
use std::process::ExitCode;

use super::complain;

/// How an answer is printed, by the commands that have two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table that fits 80 columns.
    Table,
    /// The agent's own answer.
    Json,
}

/// Standard output did not take what there was to print.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(super) struct OutputError(#[source] io::Error);

/// What became of a text that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The text was written whole.
    Whole,
    /// The reader had closed the pipe.
    NoReader,
}

/// Prints a command's whole answer. Returns `code`, or 1 after an error message if the answer could
/// not be written.
pub(super) fn print(text: &str, code: ExitCode) -> ExitCode {
    match write(&mut io::stdout().lock(), text) {
        Ok(Written::Whole | Written::NoReader) => code,
        Err(error) => complain(&error, 1),
    }
}

/// Writes and flushes a text. A full disk is often noticed only by the flush.
///
/// # Errors
/// If the text cannot be written, for another reason than a closed pipe.
pub(super) fn write(out: &mut impl Write, text: &str) -> Result<Written, OutputError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Written::Whole),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Written::NoReader),
        Err(error) => Err(OutputError(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_full_device_is_an_error_and_a_closed_pipe_is_not() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        // Buffered like standard output: the device refuses at the flush.
        let mut full = io::BufWriter::new(full);
        let error = write(&mut full, "answer\n").expect_err("nothing was written");
        assert_eq!(error.0.kind(), io::ErrorKind::StorageFull);
        // What is still buffered could not be written either.
        let (_, _) = full.into_parts();

        let (reader, mut pipe) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(write(&mut pipe, "answer\n").unwrap(), Written::NoReader);

        let mut text = Vec::new();
        assert_eq!(write(&mut text, "answer\n").unwrap(), Written::Whole);
        assert_eq!(text, b"answer\n");
    }
}
