//! From the text of a file to a configuration, and to everything that is wrong with the file: text
//! that is not TOML, keys that do not exist, values of the wrong type, and values that cannot work.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check::{self, Wrong};
use super::error::Mistake;
use super::key::{Key, Step};
use super::sections::Config;
use super::value::Node;

/// Keys whose values may be secrets. What was found there is not shown.
const SECRET: [&str; 7] = [
    "otlp.endpoint",
    "otlp.headers",
    "otlp.metrics.endpoint",
    "otlp.metrics.headers",
    "otlp.logs.endpoint",
    "otlp.logs.headers",
    "records.endpoint",
];
/// How much of a line is looked at to guess what was meant, in bytes.
const MOST_OF_LINE: usize = 80;
/// Mistakes that are listed at most. Each costs a pass over the file.
const MOST: usize = 50;

/// What a text says, and what is wrong with it.
pub(super) struct Read {
    /// The configuration. Keys with a mistake have their defaults, or a value that cannot work.
    pub(super) config: Config,
    /// The keys that the text sets, with their tables.
    pub(super) set: Vec<String>,
    /// The keys with a mistake.
    refused: BTreeSet<Key>,
    /// The mistakes, in the order of the text.
    pub(super) mistakes: Vec<Mistake>,
}

impl Read {
    /// Whether the value of a key can be used, whatever is wrong with others.
    pub(super) fn is_sound(&self, dotted: &str) -> bool {
        let key = Key::of(dotted);
        !self.refused.iter().any(|refused| key.is_in(refused))
    }
}

/// Reads a text that came from `origin`.
pub(super) fn read(text: &str, origin: &str) -> Read {
    let (table, mut errors) = DeTable::parse_recoverable(text);
    let span = table.span();
    let root = Spanned::new(span, DeValue::Table(table.into_inner()));
    let mut values = Vec::new();
    collect(&root, &Key::default(), &mut values);
    let mut reader = Reader {
        lines: Lines::of(text),
        root: &root,
        values,
        refused: BTreeSet::new(),
        left_out: BTreeSet::new(),
        listed: Vec::new(),
    };
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    for error in errors.iter().take(MOST) {
        reader.not_toml(error.span().unwrap_or_default().start, error.message());
    }
    let config = reader.typed();
    reader.left_out.clone_from(&reader.refused);
    check::check(&config, &mut |wrong| reader.wrong(wrong));
    reader.listed.sort();
    let lines = reader.lines;
    let set = reader.values.iter().filter(|value| !value.is_table);
    let set = set.map(|value| value.key.of_value().to_string()).collect();
    let mistakes = reader.listed.into_iter().take(MOST);
    let mistakes = mistakes.map(|(offset, key, problem)| Mistake {
        origin: origin.to_owned(),
        place: Some(lines.place(offset)),
        key: key.to_string(),
        problem,
    });
    Read {
        config,
        set,
        mistakes: mistakes.collect(),
        refused: reader.refused,
    }
}

/// A value of the text, and where it is.
struct Located {
    key: Key,
    span: Range<usize>,
    is_table: bool,
}

/// Lists the values of a tree.
fn collect(value: &Spanned<DeValue<'_>>, key: &Key, values: &mut Vec<Located>) {
    values.push(Located {
        key: key.clone(),
        span: value.span(),
        is_table: matches!(value.get_ref(), DeValue::Table(_)),
    });
    match value.get_ref() {
        DeValue::Table(table) => {
            for (name, value) in table {
                let key = key.with(Step::Name(name.get_ref().to_string()));
                collect(value, &key, values);
            }
        }
        DeValue::Array(elements) => {
            for (index, value) in elements.iter().enumerate() {
                collect(value, &key.with(Step::At(index)), values);
            }
        }
        _ => {}
    }
}

/// A text by its lines.
pub(crate) struct Lines<'a> {
    text: &'a str,
    /// Where each line begins.
    begins: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        let ends = text.match_indices('\n');
        let begins = std::iter::once(0).chain(ends.map(|(end, _)| end + 1));
        Self {
            text,
            begins: begins.collect(),
        }
    }

    /// The number of the line that an offset is in, from 1.
    fn number(&self, offset: usize) -> usize {
        self.begins.partition_point(|begin| *begin <= offset)
    }

    /// Where that line begins.
    fn begin(&self, offset: usize) -> usize {
        self.begins[self.number(offset) - 1]
    }

    /// Line and column of an offset, both from 1.
    pub(crate) fn place(&self, offset: usize) -> (usize, usize) {
        let before = self
            .text
            .get(self.begin(offset)..offset)
            .unwrap_or_default();
        (self.number(offset), before.chars().count() + 1)
    }

    /// What follows an offset on its line, as far as anybody reads.
    fn rest(&self, offset: usize) -> &'a str {
        let rest = self.text.get(offset..).unwrap_or_default();
        let rest = &rest[..rest.floor_char_boundary(MOST_OF_LINE)];
        rest.lines().next().unwrap_or_default().trim()
    }
}

struct Reader<'a> {
    lines: Lines<'a>,
    root: &'a Spanned<DeValue<'a>>,
    values: Vec<Located>,
    /// The keys with a mistake.
    refused: BTreeSet<Key>,
    /// Those of them whose values are not in the configuration.
    left_out: BTreeSet<Key>,
    /// Offset, key and problem of each mistake.
    listed: Vec<(usize, Key, String)>,
}

impl Reader<'_> {
    /// Takes an error of TOML's parser. All that is wrong within one value, or on one line without a
    /// value, is one mistake.
    fn not_toml(&mut self, offset: usize, message: &str) {
        let line = self.lines.number(offset);
        let is_listed = |listed: &(usize, Key, String)| self.lines.number(listed.0) == line;
        let Some((key, begin)) = self.value_at(offset) else {
            if !self.listed.iter().any(is_listed) {
                self.listed
                    .push((offset, Key::default(), in_words(message)));
            }
            return;
        };
        if self.refused.iter().any(|refused| key.is_in(refused)) {
            return;
        }
        let raw = self.lines.rest(begin);
        let problem = if raw.is_empty() {
            "there is no value".to_owned()
        } else if is_text(raw) && message != "duplicate key" {
            "this is text without quotes; put it in quotes".to_owned()
        } else {
            in_words(message)
        };
        self.listed.push((begin, key.clone(), problem));
        self.refused.insert(key);
    }

    /// The key and the beginning of the value that an offset is in, or that begins before it on the
    /// same line.
    fn value_at(&self, offset: usize) -> Option<(Key, usize)> {
        let line = self.lines.begin(offset);
        let values = || self.values.iter().filter(|value| !value.is_table);
        let last = |holds: &dyn Fn(&Range<usize>) -> bool| {
            values()
                .filter(|value| holds(&value.span))
                .max_by(|a, b| (a.span.start, &a.key).cmp(&(b.span.start, &b.key)))
        };
        let on_line = |span: &Range<usize>| span.start >= line && span.start <= offset;
        // An address such as `[::]:10944` begins like a list.
        let address = values()
            .find(|value| on_line(&value.span) && is_address(self.lines.rest(value.span.start)));
        let value = address
            .or_else(|| last(&|span| span.start <= offset && offset <= span.end))
            .or_else(|| last(&on_line))?;
        Some((value.key.clone(), value.span.start))
    }

    /// Reads the values. One that does not fit is left out, and the rest is read again.
    fn typed(&mut self) -> Config {
        while self.listed.len() < MOST {
            let node = Node {
                value: self.root,
                key: Key::default(),
                refused: &self.refused,
            };
            let misfit = match Config::deserialize(node) {
                Ok(config) => return config,
                Err(misfit) => misfit,
            };
            let key = misfit.key.clone().unwrap_or_default();
            let is_secret = SECRET.iter().any(|secret| key.is_in(&Key::of(secret)));
            let problem = match &misfit.found {
                Some(_) if is_secret => format!("expected {}", misfit.expected),
                _ => misfit.to_string(),
            };
            self.listed.push((misfit.offset, key.clone(), problem));
            if !self.refused.insert(key) {
                // It was left out and is still in the way, which cannot be. It would never end.
                break;
            }
        }
        Config::default()
    }

    /// Takes a value that cannot work.
    fn wrong(&mut self, wrong: Wrong) {
        let mut key = Key::of(wrong.key);
        if let Some(name) = wrong.name {
            key = key.with(Step::Name(name));
        }
        if let Some(index) = wrong.index {
            // Elements that were refused are not in the configuration.
            let is_there = |index: &usize| !self.left_out.contains(&key.with(Step::At(*index)));
            let index = (0..).filter(is_there).nth(index).unwrap_or(index);
            key = key.with(Step::At(index));
        }
        let known = self.values.iter().find(|value| value.key == key);
        let offset = known.map_or(0, |value| value.span.start);
        self.listed.push((offset, key.clone(), wrong.problem));
        self.refused.insert(key);
    }
}

/// A message of TOML's parser, in other words where it is short of them.
fn in_words(message: &str) -> String {
    match message {
        "duplicate key" => "it is there twice".to_owned(),
        "key with no value, expected `=`" => "expected KEY = VALUE".to_owned(),
        _ if message.starts_with("invalid unquoted key") => "expected KEY = VALUE".to_owned(),
        _ if message.contains("string, expected `\"`")
            || message.contains("string, expected `'`") =>
        {
            "the closing quote is missing".to_owned()
        }
        _ => format!("this is not TOML: {message}"),
    }
}

/// Whether the rest of a line begins with text that has no quotes.
fn is_text(raw: &str) -> bool {
    is_address(raw) || !raw.starts_with(['"', '\'', '[', '{'])
}

/// Whether the rest of a line begins like `[::1]:10944`.
fn is_address(raw: &str) -> bool {
    let host = raw.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
    host.is_some_and(|(host, _)| host.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'))
}
