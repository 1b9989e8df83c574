//! What a test needs of the machine: absent, the test is skipped aloud, or fails where it may not be.
//!
//! A skipped test passes, so a machine on which everything is meant to run sets `GPUACCT_REQUIRE` to
//! `all`, or to the parts that must be there, separated by commas.

use std::fmt::Display;

/// The part if it is there. Otherwise says why not and gives `None`.
///
/// # Panics
/// If `GPUACCT_REQUIRE` says that the part must be there.
pub fn require<T, E: Display>(part: &str, available: Result<T, E>) -> Option<T> {
    let required = std::env::var("GPUACCT_REQUIRE").unwrap_or_default();
    match available {
        Ok(available) => Some(available),
        Err(reason) if is_required(part, &required) => {
            panic!("GPUACCT_REQUIRE={required}: {part}: {reason}")
        }
        Err(reason) => {
            eprintln!("skipped: {part}: {reason}");
            None
        }
    }
}

fn is_required(part: &str, required: &str) -> bool {
    required
        .split(',')
        .map(str::trim)
        .any(|name| name == "all" || name == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_required_by_name_or_with_all_others() {
        let rows = [
            ("docker", "", false),
            ("docker", "all", true),
            ("docker", "docker", true),
            ("docker", "bpf, docker", true),
            ("docker", "docker-late", false),
            ("docker", "bpf", false),
        ];
        for (part, required, expected) in rows {
            assert_eq!(
                is_required(part, required),
                expected,
                "{part} in {required:?}"
            );
        }
    }

    #[test]
    fn what_is_there_is_handed_out() {
        assert_eq!(require("self", Ok::<_, String>(7)), Some(7));
    }
}
