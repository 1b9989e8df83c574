//! What a test needs of its machine.
//!
//! A test that cannot run says so and passes, so that the suite is of use on any machine. A run
//! that must not skip names the parts in `GPUACCT_REQUIRE` (comma-separated, or `all`): what is
//! lacking fails the test then.

use std::fmt::Display;

/// The value, or `None` with a line that says what is skipped and why.
///
/// # Panics
///
/// If it is not available and `GPUACCT_REQUIRE` is `all` or lists `part`.
pub fn require<T, E: Display>(part: &str, available: Result<T, E>) -> Option<T> {
    match available {
        Ok(value) => Some(value),
        Err(reason) => {
            let required = std::env::var("GPUACCT_REQUIRE").unwrap_or_default();
            let is_required = required
                .split(',')
                .map(str::trim)
                .any(|required| required == "all" || required == part);
            assert!(!is_required, "GPUACCT_REQUIRE={required}: {part}: {reason}");
            println!("skipped: {part}: {reason}");
            None
        }
    }
}
