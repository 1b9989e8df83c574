//! The bearer tokens of `prometheus.bearer_token_file`.
//!
//! A line of the file is a token. There may be several, so that a new one can be handed out before the
//! old one is taken away.

use std::path::Path;

use ring::digest::{SHA256, digest};
use subtle::{Choice, ConstantTimeEq as _};

use super::error::WebConfigError;
use crate::text_file;

/// The key of gpuacct's own configuration that names the file.
pub(super) const KEY: &str = "prometheus.bearer_token_file";
/// Tokens that a file may have.
const MOST: usize = 16;

/// Tokens, as hashes of the same length each.
#[derive(Clone)]
pub(super) struct Tokens(Vec<[u8; 32]>);

impl Tokens {
    pub(super) fn read(path: &Path) -> Result<Self, WebConfigError> {
        let text = text_file::read(path).map_err(|source| WebConfigError::Read {
            key: KEY,
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    pub(super) fn parse(text: &str) -> Result<Self, WebConfigError> {
        let tokens = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let tokens: Vec<&str> = tokens.collect();
        // What is no token is not shown: it may be a part of one.
        if tokens.is_empty() {
            return Err(WebConfigError::value(
                KEY,
                "the file has no token, expected one a line",
            ));
        }
        if tokens.len() > MOST {
            return Err(WebConfigError::value(
                KEY,
                format!("found {} tokens, expected {MOST} at most", tokens.len()),
            ));
        }
        let is_token = |token: &&str| token.bytes().all(|byte| byte.is_ascii_graphic());
        if !tokens.iter().all(is_token) {
            return Err(WebConfigError::value(
                KEY,
                "a line has a space or a character that no token has (RFC 6750)",
            ));
        }
        Ok(Self(
            tokens.iter().map(|token| hash(token.as_bytes())).collect(),
        ))
    }

    /// Whether one of them was shown. The time that this takes does not depend on how much of a token
    /// is right.
    pub(super) fn contain(&self, shown: &[u8]) -> bool {
        let shown = hash(shown);
        let any = self
            .0
            .iter()
            .fold(Choice::from(0), |any, token| any | token.ct_eq(&shown));
        any.into()
    }
}

fn hash(token: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_has_a_token_a_line() {
        let tokens = Tokens::parse("\nfirst\r\n  second \n\n").unwrap();
        for (shown, expected) in [
            ("first", true),
            ("second", true),
            ("firs", false),
            ("firsts", false),
            ("", false),
            ("FIRST", false),
        ] {
            assert_eq!(tokens.contain(shown.as_bytes()), expected, "{shown}");
        }
        let many = "token\n".repeat(17);
        for (text, expected) in [
            ("", "the file has no token"),
            (" \n\n", "the file has no token"),
            ("two words", "a line has a space"),
            (&many, "found 17 tokens"),
        ] {
            let error = Tokens::parse(text)
                .err()
                .expect("it is refused")
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("two"), "{error}");
        }
    }
}
