//! Which characters the terminal can be trusted to show: all, or ASCII alone.
//!
//! The locale says so, by `LC_ALL`, `LC_CTYPE` or `LANG`, the first that is set. Where none is, it is
//! the locale C.

use std::borrow::Cow;
use std::ffi::OsString;

use unicode_width::UnicodeWidthChar as _;

/// The characters of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charset {
    /// Everything that Unicode has.
    Unicode,
    /// Only ASCII.
    Ascii,
}

impl Charset {
    /// The characters of the locale that this process runs in.
    pub(super) fn of_the_environment() -> Self {
        Self::of([
            std::env::var_os("LC_ALL"),
            std::env::var_os("LC_CTYPE"),
            std::env::var_os("LANG"),
        ])
    }

    /// By the values of `LC_ALL`, `LC_CTYPE` and `LANG`.
    fn of(variables: [Option<OsString>; 3]) -> Self {
        let mut set = variables.into_iter().flatten();
        let locale = set.find(|value| !value.is_empty()).unwrap_or_default();
        let locale = locale.to_string_lossy().to_ascii_lowercase();
        match locale.contains("utf-8") || locale.contains("utf8") {
            true => Self::Unicode,
            false => Self::Ascii,
        }
    }

    /// The text in these characters, as wide as it was. What ASCII lacks is a question mark, and the
    /// dots in place of what is left out are a tilde.
    pub(super) fn text(self, text: String) -> String {
        match self {
            Self::Ascii if !text.is_ascii() => text.chars().map(in_ascii).collect(),
            Self::Unicode | Self::Ascii => text,
        }
    }
}

fn in_ascii(c: char) -> Cow<'static, str> {
    match c {
        '…' => "~".into(),
        c if c.is_ascii() => c.to_string().into(),
        c => "?".repeat(c.width().unwrap_or(0)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_is_set_decides() {
        for (set, expected) in [
            (&[][..], Charset::Ascii),
            (&[("LANG", "de_DE.UTF-8")], Charset::Unicode),
            (&[("LANG", "de_DE.utf8")], Charset::Unicode),
            (&[("LANG", "de_DE.ISO-8859-1")], Charset::Ascii),
            (&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")], Charset::Ascii),
            (&[("LC_ALL", ""), ("LANG", "C.UTF-8")], Charset::Unicode),
            (
                &[("LC_CTYPE", "en_US.UTF-8"), ("LANG", "C")],
                Charset::Unicode,
            ),
        ] {
            let variables = ["LC_ALL", "LC_CTYPE", "LANG"].map(|name| {
                let found = set.iter().find(|(of, _)| *of == name);
                found.map(|(_, value)| value.into())
            });
            assert_eq!(Charset::of(variables), expected, "{set:?}");
        }
    }

    #[test]
    fn what_ascii_lacks_keeps_its_width() {
        let text = || "a…b 日本 é".to_owned();
        assert_eq!(Charset::Ascii.text(text()), "a~b ???? ?");
        assert_eq!(Charset::Unicode.text(text()), text());
    }
}
