//! Why a server could not be used, or not any longer.

use std::fmt::Display;

/// A failure of a session or a call, shown in words.
pub(super) trait SessionError: Display + Send {
    /// The label value. `unimplemented` is a server that does not offer the interface.
    fn class(&self) -> &'static str;
}
