//! Errors with their causes, in one line.

use std::error::Error;

/// An error and its causes, the outermost first. An `io::Error` that wraps an error passes that
/// error's source for its own; the wrapped error is included. Nothing in use nests deeper than the
/// bound; a cycle would.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
    .take(16)
}

/// The messages of an error and its causes, joined by `: `. This is the one form in which an error is
/// shown: on the terminal, in the log, as the reason of a source's state.
///
/// Many errors of libraries repeat their cause in their own message. What has been said is not said
/// again.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    without_repetitions(causes(error).map(ToString::to_string))
}

/// The same for messages of causes. One that is part of what was said before it is left out. So is one
/// that only puts something before the last message: SQLite's `database is locked` has the cause
/// `Error code 5: database is locked`.
pub(crate) fn without_repetitions(messages: impl IntoIterator<Item = String>) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for message in messages {
        let is_known = text.contains(&message) || (!last.is_empty() && message.ends_with(&last));
        if !is_known {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&message);
            last = message;
        }
    }
    text
}

/// How much of what another program said is repeated in an error, in bytes.
pub(crate) const MAX_REPEATED_BYTES: usize = 80;

/// The beginning of what another program said, in quotes and without control characters.
pub(crate) fn quoted(said: &[u8]) -> String {
    let beginning = &said[..said.len().min(MAX_REPEATED_BYTES)];
    format!("{:?}", String::from_utf8_lossy(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let mut layers = texts.iter().rev().fold(None, |source, text| {
            let source = source.map(Box::new);
            Some(Layer { text, source })
        });
        layers.take().expect("one text at least")
    }

    #[test]
    fn a_cause_that_its_error_repeats_is_said_once() {
        for (texts, expected) in [
            (
                &["cannot connect", "refused"][..],
                "cannot connect: refused",
            ),
            (
                &["cannot connect", "/run/a.sock: refused", "refused"],
                "cannot connect: /run/a.sock: refused",
            ),
            (
                &["no route: refused", "refused", "by the kernel"],
                "no route: refused: by the kernel",
            ),
            (
                &["cannot write", "it is locked", "Error code 5: it is locked"],
                "cannot write: it is locked",
            ),
        ] {
            assert_eq!(chain(&layers(texts)), expected);
        }
    }

    #[test]
    fn an_endless_chain_is_cut() {
        let error = layers(&["x"; 40]);
        assert_eq!(causes(&error).count(), 16);
    }
}
