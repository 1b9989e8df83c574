//! The promise that concerns every line of `/metrics`: no label value is empty, and the series of a
//! family all have the same label keys. In PromQL an absent label is an empty one.
//!
//! It reads Prometheus' text format and OpenMetrics, and shares no code with what writes them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// Refuses an exposition with an empty label value, uneven label keys, a duplicate series, or an
/// invalid line.
///
/// # Errors
/// Naming the first such line.
pub fn check(text: &str) -> Result<()> {
    let mut families: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut series = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = read(line).with_context(|| format!("cannot read {line:?}"))?;
        ensure!(series.insert((name, labels.clone())), "twice: {line}");
        if let Some((key, _)) = labels.iter().find(|(_, value)| value.is_empty()) {
            bail!("{key} is empty: {line}");
        }
        let keys: Vec<String> = labels.into_iter().map(|(key, _)| key).collect();
        let known = families.entry(name).or_insert_with(|| keys.clone());
        ensure!(*known == keys, "expected the keys {known:?}: {line}");
    }
    ensure!(!families.is_empty(), "nothing is exposed");
    Ok(())
}

/// The name and the labels of a line.
fn read(line: &str) -> Result<(&str, Vec<(String, String)>)> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, quoted) = rest.split_once("=\"").context("no label value")?;
            let (value, length) = unquote(quoted).context("a quote is not closed")?;
            labels.push((key.to_owned(), value));
            rest = &quoted[length..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').context("no space")?;
    value.parse::<f64>().context("not a number")?;
    Ok((name, labels))
}

/// The text up to the closing quote, and the length of both as written.
fn unquote(quoted: &str) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((text, at + 1)),
            '\\' => match characters.next()?.1 {
                'n' => text.push('\n'),
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_breach_of_the_promise_is_found() {
        for (text, expected) in [
            (
                "# HELP a b\na{x=\"1\",y=\"}, \\\"\"} 1\na{x=\"2\",y=\"\\\\\"} 2.5\nb 3\n",
                None,
            ),
            ("a{x=\"\"} 1\n", Some("x is empty")),
            ("a{x=\"1\"} 1\na{y=\"1\"} 1\n", Some("expected the keys")),
            ("a{x=\"1\"} 1\na 1\n", Some("expected the keys")),
            (
                "a{x=\"1\",y=\"1\"} 1\na{y=\"1\",x=\"2\"} 1\n",
                Some("expected the keys"),
            ),
            ("a 1\na 1\n", Some("twice")),
            ("# HELP a b\n", Some("nothing is exposed")),
            ("a\n", Some("cannot read")),
            ("a{x=\"1} 1\n", Some("cannot read")),
            ("a{x=\"1\"} one\n", Some("cannot read")),
        ] {
            let found = check(text).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), expected.is_some(), "{text}: {found:?}");
            let as_expected = expected.is_none_or(|expected| {
                found.as_ref().is_some_and(|found| found.contains(expected))
            });
            assert!(as_expected, "{text}: {found:?}");
        }
    }
}
