//! Errors of the store, and their classes.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

/// Why something is not kept, or nothing could be taken back.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another agent writes there.
    #[error("another agent has locked {}", path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// The directory, or a file in it, cannot be had.
    #[error("cannot {act} {}", path.display())]
    File {
        /// Verb phrase of the failed action, for the message.
        act: &'static str,
        /// File or directory of the action.
        path: PathBuf,
        /// I/O error of the action.
        source: io::Error,
    },
    /// A newer agent made it.
    #[error("{} has version {found}, expected at most {known}; the file is not changed", path.display())]
    Newer {
        /// Path of the file.
        path: PathBuf,
        /// Schema version of the file.
        found: u32,
        /// The newest that this agent knows.
        known: u32,
    },
    /// It is a database of something else.
    #[error("{} is a database of another program; the file is not changed", path.display())]
    Foreign {
        /// Path of the file.
        path: PathBuf,
    },
    /// The stored content is impossible.
    #[error("impossible content: table {table} has {found}")]
    Content {
        /// In which table.
        table: &'static str,
        /// The value that cannot be right.
        found: String,
    },
    /// SQLite returned an error.
    #[error("cannot {act}")]
    Sqlite {
        /// Verb phrase of the failed action, for the message.
        act: &'static str,
        /// SQLite's error of the action.
        source: rusqlite::Error,
    },
    /// The disk does not answer.
    #[error("no answer within {seconds} s")]
    Slow {
        /// How long was waited.
        seconds: u64,
    },
    /// Nothing has been opened, or it was closed after an error.
    #[error("the file is not open; the next commit opens it")]
    NotOpen,
    /// The thread that writes is gone.
    #[error("the store's thread panicked (a bug); restart the agent")]
    Gone,
}

impl StoreError {
    /// For use with `map_err`.
    pub(super) fn sqlite(act: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Sqlite { act, source }
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sqlite {
                source: rusqlite::Error::SqliteFailure(error, _),
                ..
            } => Some(error.code),
            _ => None,
        }
    }

    /// Whether the file is damaged, and a new one has to be made.
    pub(super) fn is_damage(&self) -> bool {
        matches!(
            self.code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        )
    }

    /// Returns the value as used in labels.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "locked",
            Self::File { source, .. } => crate::outputs::disk_class(source.kind()),
            Self::Newer { .. } => "newer_schema",
            Self::Foreign { .. } => "foreign",
            Self::Content { .. } => "content",
            Self::Sqlite { .. } => match self.code() {
                Some(ErrorCode::DiskFull) => "disk_full",
                Some(ErrorCode::ReadOnly) => "read_only",
                Some(ErrorCode::PermissionDenied) => "permission",
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => "damaged",
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "busy",
                _ => "io",
            },
            Self::Slow { .. } => "slow",
            Self::NotOpen => "io",
            Self::Gone => "panic",
        }
    }

    /// It and its cause, in one line. SQLite's own errors repeat theirs in their text.
    #[must_use]
    pub fn words(&self) -> String {
        crate::errors::chain(self)
    }
}
