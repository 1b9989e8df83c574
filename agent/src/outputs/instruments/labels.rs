//! How a label value is made fit to go out.

use std::fmt::Write as _;

use crate::core::model::text;

/// The longest label value that is published, in bytes: as long as the longest Kubernetes name.
pub const MAX_LABEL_BYTES: usize = 253;

/// Whether nothing in it is unwelcome. Printable ASCII, nearly every value, need not be decoded.
pub(super) fn is_welcome(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b' '..=b'~')) || !value.chars().any(is_unwelcome)
}

/// Control characters other than the two that both text formats can carry.
fn is_unwelcome(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

/// A value that may go out in place of one that may not. It ends in a hash of that one.
pub(super) fn mend(value: &str) -> String {
    /// `~` and 16 hexadecimal digits.
    const MARK_BYTES: usize = 17;
    let mut end = value.len().min(MAX_LABEL_BYTES - MARK_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    // A space has one byte, a control character one or two: the result is no longer than the bound.
    let mut mended: String = value[..end]
        .chars()
        .map(|c| if is_unwelcome(c) { ' ' } else { c })
        .collect();
    write!(mended, "~{:016x}", text::fnv1a(value.as_bytes())).expect("a String takes everything");
    mended
}
