//! Errors with their causes, in one line.

use std::error::Error;

/// An error and its causes, the outermost first. Nothing in use nests deeper than the bound; a cycle
/// would.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source()).take(16)
}

/// The messages of an error and its causes, joined by `: `.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let messages: Vec<String> = causes(error).map(ToString::to_string).collect();
    messages.join(": ")
}

/// The same for messages of causes, some of which repeat what one before them says. These are left
/// out.
pub(crate) fn without_repetitions(messages: impl IntoIterator<Item = String>) -> String {
    let mut text = String::new();
    for message in messages {
        if !text.contains(&message) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&message);
        }
    }
    text
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
    fn causes_follow_the_error_and_repetitions_are_left_out() {
        let error = layers(&["cannot connect", "cannot connect: refused", "refused"]);
        assert_eq!(
            chain(&error),
            "cannot connect: cannot connect: refused: refused"
        );
        let error = layers(&["no route: refused", "refused", "by the kernel"]);
        let messages = causes(&error).map(ToString::to_string);
        assert_eq!(
            without_repetitions(messages),
            "no route: refused: by the kernel"
        );
    }

    #[test]
    fn an_endless_chain_is_cut() {
        let error = layers(&["x"; 40]);
        assert_eq!(causes(&error).count(), 16);
    }
}
