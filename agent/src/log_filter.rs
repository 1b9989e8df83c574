//! What a log level may be: one check, for the configuration and for a running agent.

use tracing_subscriber::filter::{EnvFilter, ParseError};

/// The longest level that is taken, in bytes.
const MAX_LEVEL_BYTES: usize = 1_024;
/// Levels by name; a directive that is none of these needs a target.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// With this begins each target of the OpenTelemetry SDK. Each interval in which a receiver is away it
/// says that telemetry data will be lost. It means the agent's own telemetry, and a reader takes it for
/// the books, which are sent again. The state of `otlp` says that the receiver is away. So the SDK is
/// heard only at the level `debug`, or if it is named.
const SDK: &str = "opentelemetry";
/// What a level may be, in words.
pub const ALLOWED: &str =
    "off, error, warn, info, debug, trace, or directives such as gpuacct=debug";

/// Error of a log level that is invalid or cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// A word that is no level.
    #[error("invalid log level {found:?}, allowed: {ALLOWED}")]
    Unknown {
        /// The word that is not a level.
        found: String,
    },
    /// Directives that cannot be read.
    #[error("invalid log level {found:?}, allowed: {ALLOWED}")]
    Syntax {
        /// The whole text.
        found: String,
        /// The directive that cannot be parsed.
        source: ParseError,
    },
    /// Longer than any use of it.
    #[error("log level too long: {found} bytes, at most {MAX_LEVEL_BYTES}")]
    TooLong {
        /// Length in bytes.
        found: usize,
    },
    /// This process logs to nobody.
    #[error("the log level of this process cannot be changed")]
    Fixed,
}

/// The filter for a level.
///
/// # Errors
/// Fails if the text is not a level. A bare word that is not a level would be taken for the name of
/// a target, and everything of that target for wanted; it is refused.
pub(crate) fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    if level.len() > MAX_LEVEL_BYTES {
        return Err(LevelError::TooLong { found: level.len() });
    }
    // The filter takes a space before a directive for a part of its target.
    let mut directives: Vec<&str> = level.split(',').map(str::trim).collect();
    let is_level = |word: &str| {
        LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) || word.contains(['=', '['])
    };
    if let Some(word) = directives.iter().find(|word| !is_level(word)) {
        return Err(LevelError::Unknown {
            found: (*word).to_owned(),
        });
    }
    let without_sdk = format!("{SDK}=off");
    if !wants_sdk(&directives) {
        directives.push(&without_sdk);
    }
    EnvFilter::try_new(directives.join(",")).map_err(|source| LevelError::Syntax {
        found: level.to_owned(),
        source,
    })
}

/// Whether directives ask for what the OpenTelemetry SDK logs: the level of everything is `debug` or
/// `trace`, or a directive names the SDK.
fn wants_sdk(directives: &[&str]) -> bool {
    let has_target = |directive: &str| directive.contains(['=', '[']);
    // Of several levels for everything, the filter takes the last.
    let of_everything = directives.iter().rfind(|word| !has_target(word));
    let is_detailed =
        |word: &&str| word.eq_ignore_ascii_case("debug") || word.eq_ignore_ascii_case("trace");
    of_everything.is_some_and(is_detailed)
        || directives
            .iter()
            .any(|word| has_target(word) && word.starts_with(SDK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_what_is_none() {
        for level in [
            "info",
            "WARN",
            "off",
            "info,gpuacct=debug",
            "gpuacct::core=trace, warn",
            "hyper=debug",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["", "verbose", "gpuacct", "info,", "gpuacct=loud", "7"] {
            assert!(filter(level).is_err(), "{level}");
        }
        assert!(matches!(
            filter(&"x".repeat(2_000)),
            Err(LevelError::TooLong { found: 2_000 })
        ));
    }
}
