//! The one way from the standard library's durations to nanoseconds.

use std::time::Duration;

use crate::core::model::Nanos;

impl From<Duration> for Nanos {
    /// Saturates: the longest that fits is 584 years.
    fn from(span: Duration) -> Self {
        Self(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }
}
