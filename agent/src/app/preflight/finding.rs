//! What a check of one part comes to.

use serde::{Deserialize, Serialize};

/// Result of the check of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The part works.
    Ok,
    /// The agent runs and knows less than it could.
    Warn,
    /// The agent does not run, or cannot do its work.
    Fail,
}

impl Verdict {
    /// Returns the word that is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// Result of checking one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The part that was tried.
    pub item: String,
    /// Result of the check.
    pub verdict: Verdict,
    /// What was found, in words.
    pub found: String,
    /// What to do about it; absent where nothing is to be done.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
}

pub(super) fn ok(item: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding {
        item: item.into(),
        verdict: Verdict::Ok,
        found: found.into(),
        remedy: None,
    }
}

pub(super) fn warn(item: impl Into<String>, found: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        verdict: Verdict::Warn,
        remedy: Some(remedy.to_owned()),
        ..ok(item, found)
    }
}

pub(super) fn fail(item: impl Into<String>, found: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        verdict: Verdict::Fail,
        ..warn(item, found, remedy)
    }
}
