//! Reads a text file that somebody has named: bounded, and without waiting.
//!
//! A name can mean anything: a device that never ends, a FIFO that nobody writes to, a directory.
//! None of these may stop a command or use up the memory.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// The largest file that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

/// Why a file cannot be read as text.
#[derive(Debug, thiserror::Error)]
pub enum TextFileError {
    /// The system refuses.
    #[error("{0}")]
    System(io::Error),
    /// There is no content to read.
    #[error("it is a {found}, expected a file")]
    NotAFile {
        /// What is there.
        found: &'static str,
    },
    /// It is larger than any file of its kind.
    #[error("it is larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// It is no text.
    #[error("it is not UTF-8 text: line {line} has other bytes")]
    NotText {
        /// The first line that is none.
        line: usize,
    },
}

/// Reads a file that has one value: the text without the line's end.
///
/// # Errors
/// As [`read`].
pub(crate) fn value(path: &Path) -> Result<String, TextFileError> {
    Ok(read(path)?.trim_end_matches(['\r', '\n']).to_owned())
}

/// Reads a file of [`MAX_BYTES`] at most.
///
/// # Errors
/// If it is a directory, a FIFO or a socket, is too large, is not UTF-8, or cannot be read.
pub(crate) fn read(path: &Path) -> Result<String, TextFileError> {
    // A FIFO without a writer would hold up a blocking open for ever.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(TextFileError::System)?;
    let kind = file.metadata().map_err(TextFileError::System)?.file_type();
    let found = if kind.is_dir() {
        Some("directory")
    } else if kind.is_fifo() {
        Some("FIFO")
    } else if kind.is_socket() {
        Some("socket")
    } else {
        // A device may be read, e.g. `/dev/null` for an empty file.
        None
    };
    if let Some(found) = found {
        return Err(TextFileError::NotAFile { found });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(TextFileError::System)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(TextFileError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        TextFileError::NotText { line }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_no_text_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let fifo = place("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        fs::write(place("bytes"), b"a = 1\nb = \xff\n").unwrap();
        fs::write(place("large"), vec![b'#'; 1 << 20]).unwrap();
        fs::write(place("larger"), vec![b'#'; (1 << 20) + 1]).unwrap();
        for (path, expected) in [
            (place("absent"), "No such file or directory (os error 2)"),
            (folder.path().into(), "it is a directory, expected a file"),
            (fifo, "it is a FIFO, expected a file"),
            ("/dev/zero".into(), "it is larger than 1 MiB"),
            (place("larger"), "it is larger than 1 MiB"),
            (
                place("bytes"),
                "it is not UTF-8 text: line 2 has other bytes",
            ),
        ] {
            let error = read(&path).expect_err(expected);
            assert_eq!(error.to_string(), expected, "{path:?}");
        }
        assert_eq!(read(Path::new("/dev/null")).unwrap(), "");
        assert_eq!(read(&place("large")).unwrap().len(), 1 << 20);
    }
}
