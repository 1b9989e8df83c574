//! Texts from outside that become keys: of accounts, of devices, of labels.
//!
//! Two texts that differ must stay two keys. So characters are escaped and not replaced by one
//! placeholder, and a text that is cut gets a mark.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Bytes as a text without control characters, from which the bytes can be read back.
///
/// A byte that is not UTF-8 or belongs to a control character becomes `\x` and two lower-case
/// hexadecimal digits. A backslash that would read as the begin of such an escape becomes `\x5c`.
/// All else stays as it is: a cgroup of systemd's keeps its own escapes, such as `\x2d`.
#[must_use]
pub fn escaped(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains(char::is_control)
        && !text.contains("\\x")
    {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        for (at, c) in valid.char_indices() {
            if c.is_control() {
                escape(&valid.as_bytes()[at..at + c.len_utf8()], &mut result);
            } else if c == '\\' && is_escape(&valid.as_bytes()[at + 1..]) {
                escape(b"\\", &mut result);
            } else {
                result.push(c);
            }
        }
        escape(chunk.invalid(), &mut result);
    }
    Cow::Owned(result)
}

fn escape(bytes: &[u8], result: &mut String) {
    for byte in bytes {
        write!(result, "\\x{byte:02x}").expect("a String takes everything");
    }
}

/// Whether this, behind a backslash, is how [`escaped`] writes a byte.
fn is_escape(rest: &[u8]) -> bool {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let [b'x', high, low, ..] = *rest else {
        return false;
    };
    let (Some(high), Some(low)) = (digit(high), digit(low)) else {
        return false;
    };
    matches!(high * 16 + low, 0..=0x1f | b'\\' | 0x7f..)
}

/// `~` and 16 hexadecimal digits.
const MARK_BYTES: usize = 17;

/// A text of at most `longest` bytes; `longest` is more than 17.
///
/// A longer one is cut at a character's boundary and ends in `~` and a hash of the whole, so that
/// two that differ behind the cut stay two. One that could be taken for a text that was cut is
/// marked in the same way.
#[must_use]
pub fn bounded(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest && !looks_cut(text, longest) {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(longest.saturating_sub(MARK_BYTES));
    Cow::Owned(format!("{}~{:016x}", &text[..end], fnv1a(text.as_bytes())))
}

fn looks_cut(text: &str, longest: usize) -> bool {
    /// A character has four bytes at most, so a cut takes three more at most than it must.
    const SLACK: usize = 3;
    let Some(at) = text.len().checked_sub(MARK_BYTES) else {
        return false;
    };
    text.len() + SLACK >= longest
        && text.as_bytes()[at] == b'~'
        && text.as_bytes()[at + 1..]
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// FNV-1a: the same for ever, which `std`'s hasher does not promise, and a key must not change.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes that a text stands for.
    fn read_back(text: &str) -> Vec<u8> {
        let mut rest = text.as_bytes();
        let mut bytes = Vec::new();
        while let Some((&first, behind)) = rest.split_first() {
            if first == b'\\' && is_escape(behind) {
                let digits = std::str::from_utf8(&behind[1..3]).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = &behind[3..];
            } else {
                bytes.push(first);
                rest = behind;
            }
        }
        bytes
    }

    #[test]
    fn names_that_are_not_utf_8_stay_different() {
        let rows: [(&[u8], &str); 12] = [
            (b"job-\xff", r"job-\xff"),
            (b"job-\xfe", r"job-\xfe"),
            (br"job-\xff", r"job-\x5cxff"),
            (br"job-\x5cxff", r"job-\x5cx5cxff"),
            (b"a\nb\x07\x7f", r"a\x0ab\x07\x7f"),
            ("a\u{85}".as_bytes(), r"a\xc2\x85"),
            (b"\xc3", r"\xc3"),
            ("\u{e9}\u{fffd}".as_bytes(), "\u{e9}\u{fffd}"),
            // systemd's own escapes.
            (
                br"machine-qemu\x2d1\x2dvm.scope",
                r"machine-qemu\x2d1\x2dvm.scope",
            ),
            (br"\xFF \xg0 \x8", r"\xFF \xg0 \x8"),
            (b"\\x\xff", r"\x\xff"),
            (b"", ""),
        ];
        for (bytes, expected) in rows {
            assert_eq!(escaped(bytes), expected);
            assert_eq!(read_back(expected), bytes, "{expected}");
        }
    }

    #[test]
    fn long_texts_that_differ_behind_the_cut_stay_different() {
        let long = "x".repeat(300);
        let cut = bounded(&long, 253);
        assert_eq!(cut.len(), 253);
        assert!(long.starts_with(cut.split_once('~').unwrap().0));
        assert_ne!(cut, bounded(&format!("{long}y"), 253));
        // Somebody else's text that reads the same.
        assert_ne!(cut, bounded(&cut, 253));
        assert_eq!(bounded(&cut, 300), cut);
        let wide = bounded(&"\u{1f600}".repeat(100), 253).into_owned();
        assert!(wide.len() <= 253);
        assert_ne!(wide, bounded(&wide, 253));
    }

    proptest! {
        #[test]
        fn what_was_escaped_can_be_read_back(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..4),
                    "(\\\\|x|5c|ff|2d|0a|/){0,4}".prop_map(String::into_bytes),
                ],
                0..12,
            ),
        ) {
            let bytes = parts.concat();
            let text = escaped(&bytes);
            prop_assert!(!text.contains(char::is_control));
            prop_assert_eq!(read_back(&text), bytes);
        }

        #[test]
        fn a_bounded_text_is_bounded(text in "\\PC{0,80}", longest in 20_usize..120) {
            let cut = bounded(&text, longest);
            prop_assert!(cut.len() <= longest);
            prop_assert!(text.len() > longest || cut.len() >= text.len().min(longest - 3));
        }
    }
}
