//! The headers that go with a message: those of the configuration, and those whose values are in
//! files. The files are read for each message, so a token that was replaced is used from the next one
//! on.

use std::path::{Path, PathBuf};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::text_file::{self, TextFileError};

/// A header that cannot be sent. Its value is not shown: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Its name or its value is none.
    #[error("cannot use the header {0:?}: its name or its value has characters that none may have")]
    Characters(String),
    /// The file with its value cannot be read.
    #[error("cannot read the value of the header {name:?} from {}", path.display())]
    File {
        /// The header's name.
        name: String,
        /// Where its value should be.
        path: PathBuf,
        /// Why not.
        source: TextFileError,
    },
}

impl HeaderError {
    /// A short class, for a label.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Characters(_) | Self::File { .. } => "header",
        }
    }
}

/// A header's name and value, checked.
pub(super) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), HeaderError> {
    let wrong = || HeaderError::Characters(name.to_owned());
    let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
    let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok((key, value))
}

/// The value that a file has now, without the line's end.
fn value_of(name: &str, path: &Path) -> Result<String, HeaderError> {
    text_file::value(path).map_err(|source| HeaderError::File {
        name: name.to_owned(),
        path: path.to_owned(),
        source,
    })
}

/// All headers of a message, as they are now. It blocks for as long as the files do.
pub(super) fn all<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    files: impl IntoIterator<Item = (&'a str, &'a Path)>,
) -> Result<HeaderMap, HeaderError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let (name, value) = header(name, value)?;
        map.insert(name, value);
    }
    for (name, path) in files {
        let (name, value) = header(name, &value_of(name, path)?)?;
        map.insert(name, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_a_file_is_read_anew_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let all = || all([("x-a", "b")], [("authorization", file.as_path())]);
        let error = all().unwrap_err();
        assert!(error.to_string().contains("\"authorization\""), "{error}");
        for token in ["Bearer first", "Bearer second"] {
            std::fs::write(&file, format!("{token}\n")).unwrap();
            let headers = all().unwrap();
            assert_eq!(headers["authorization"], token);
            assert_eq!(headers["x-a"], "b");
            assert!(!format!("{headers:?}").contains("Bearer"), "{headers:?}");
        }
        std::fs::write(&file, "two\nhunter22\n").unwrap();
        let error = all().unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
