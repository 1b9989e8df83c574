//! Texts that must not leave the node: the values of OTLP's headers, and a user and password in its
//! address.
//!
//! They are kept out at the root: an address is taken apart before anything shows it, and a
//! configuration that is shown is one without them. What others say (a receiver may repeat what it
//! was sent) and what is logged is searched for them besides.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use url::Url;

/// What stands where a secret stood.
pub const STRUCK: &str = "(redacted)";
/// A secret shorter than this is kept out of the configuration alone: elsewhere it would be found in
/// innocent words.
const SHORTEST: usize = 4;

/// `user:password` of an address. Whatever is before the last `@` counts, also where that makes no
/// address: somebody has not escaped his password.
#[must_use]
pub fn user_of(address: &str) -> Option<&str> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    Some(rest.rsplit_once('@')?.0).filter(|user| !user.is_empty())
}

/// An address as it may be shown.
#[must_use]
pub fn shown(address: &str) -> String {
    user_of(address).map_or_else(
        || address.to_owned(),
        |user| address.replacen(user, STRUCK, 1),
    )
}

/// An address without its user, and what `Authorization` says in its place.
#[must_use]
pub fn taken_apart(address: String) -> (String, Option<String>) {
    let Some(user) = user_of(&address) else {
        return (address, None);
    };
    match authorization(&address) {
        Some(value) => (address.replacen(&format!("{user}@"), "", 1), Some(value)),
        // It cannot be used; it will be shown in the error that says so.
        None => (shown(&address), None),
    }
}

/// The header that stands for an address's user, as HTTP's clients make it.
fn authorization(address: &str) -> Option<String> {
    user_of(address)?;
    let url = Url::parse(address).ok().filter(Url::has_host)?;
    let decoded = |part: &str| {
        percent_decode_str(part)
            .decode_utf8()
            .ok()
            .map(String::from)
    };
    let user = decoded(url.username())?;
    let password = decoded(url.password().unwrap_or_default())?;
    Some(basic(&user, &password))
}

/// The value of `Authorization` for a user and a password.
#[must_use]
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Texts to strike out wherever they occur, the longest first. Cheap to clone.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[String]>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

impl Secrets {
    /// The secrets in the values of headers and in addresses.
    pub fn of<'a>(
        headers: impl IntoIterator<Item = &'a str>,
        addresses: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut texts: Vec<String> = headers.into_iter().map(str::to_owned).collect();
        let addresses: Vec<&str> = addresses.into_iter().collect();
        texts.extend(
            addresses
                .iter()
                .filter_map(|address| authorization(address)),
        );
        // `Bearer TOKEN`: who repeats it may leave out how it was meant.
        let tokens: Vec<String> = texts
            .iter()
            .filter_map(|text| Some(text.split_once(' ')?.1.trim().to_owned()))
            .collect();
        texts.extend(tokens);
        for user in addresses.into_iter().filter_map(user_of) {
            texts.push(user.to_owned());
            texts.extend(
                user.split_once(':')
                    .map(|(_, password)| password.to_owned()),
            );
        }
        // As they are inside quotes.
        let quoted: Vec<String> = texts
            .iter()
            .map(|text| text.escape_debug().to_string())
            .collect();
        texts.extend(quoted);
        texts.retain(|text| text.len() >= SHORTEST);
        // One may be part of another.
        texts.sort_by_key(|text| (std::cmp::Reverse(text.len()), text.clone()));
        texts.dedup();
        Self(texts.into())
    }

    /// The text without them.
    #[must_use]
    pub fn struck_out<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.0.iter().fold(Cow::Borrowed(text), |text, secret| {
            if text.contains(secret.as_str()) {
                Cow::Owned(text.replace(secret.as_str(), STRUCK))
            } else {
                text
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_user() {
        for (address, user, expected) in [
            ("http://collector:4317", None, "http://collector:4317"),
            ("http://@collector", None, "http://@collector"),
            ("collector", None, "collector"),
            (
                "http://a:b@collector:4317/x",
                Some("a:b"),
                "http://(redacted)@collector:4317/x",
            ),
            // What is meant for a password is one, whatever it makes of the address.
            (
                "http://me:hun/ter@22@collector",
                Some("me:hun/ter@22"),
                "http://(redacted)@collector",
            ),
            (
                "me:hunter22@collector",
                Some("me:hunter22"),
                "(redacted)@collector",
            ),
        ] {
            assert_eq!(user_of(address), user, "{address}");
            assert_eq!(shown(address), expected);
        }
    }

    #[test]
    fn the_user_of_an_address_becomes_a_header() {
        for (address, expected, header) in [
            ("http://c:1", "http://c:1", None),
            (
                "http://me:hunter22@c:1/x",
                "http://c:1/x",
                Some("Basic bWU6aHVudGVyMjI="),
            ),
            ("http://me:a%2Fb@c:1", "http://c:1", Some("Basic bWU6YS9i")),
            ("http://me:hun/ter@c", "http://(redacted)@c", None),
        ] {
            let (address, authorization) = taken_apart(address.to_owned());
            assert_eq!(
                (address.as_str(), authorization.as_deref()),
                (expected, header)
            );
        }
    }

    #[test]
    fn secrets_are_struck_out_wherever_they_occur() {
        let secrets = Secrets::of(
            ["Bearer abcdef", "yes", "with \"quotes\""],
            Some("http://me:hunter22@collector:4317"),
        );
        for (text, expected) in [
            (
                "to http://me:hunter22@collector failed",
                "to http://(redacted)@collector failed",
            ),
            ("sent Bearer abcdef, yes", "sent (redacted), yes"),
            ("the token abcdef is old", "the token (redacted) is old"),
            ("no hunter22 here", "no (redacted) here"),
            ("Basic bWU6aHVudGVyMjI=", "(redacted)"),
            ("found \"with \\\"quotes\\\"\"", "found \"(redacted)\""),
            ("nothing", "nothing"),
        ] {
            assert_eq!(secrets.struck_out(text), expected);
        }
        assert!(!format!("{secrets:?}").contains("abcdef"));
    }
}
