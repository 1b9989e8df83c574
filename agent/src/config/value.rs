//! Typed values from parsed TOML, with errors that name the key and say in plain words what was found
//! and what is expected.
//!
//! `toml` has a deserializer of its own. Its errors are finished texts in Rust's words (`u64`,
//! `struct Gpu`), and it stops at the first one. This one keeps the parts of an error, and leaves out
//! the values that were refused before, so that the next one is found.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, Expected, IntoDeserializer, Unexpected, Visitor};
use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::key::{Key, Step, cut};

/// A value that does not fit, or a key that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    /// The key. Absent until the error has passed the value that it is about.
    pub(super) key: Option<Key>,
    /// Offset in the text, in bytes.
    pub(super) offset: usize,
    /// What was found, if it may be shown.
    pub(super) found: Option<String>,
    /// What is expected, or what is wrong.
    pub(super) expected: String,
}

impl Misfit {
    fn new(found: Option<String>, expected: String) -> Self {
        Self {
            key: None,
            offset: 0,
            found,
            expected,
        }
    }

    fn at(mut self, key: &Key, offset: usize) -> Self {
        if self.key.is_none() {
            self.key = Some(key.clone());
            self.offset = offset;
        }
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Some(found) => write!(f, "found {found}, expected {}", self.expected),
            None => f.write_str(&self.expected),
        }
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(None, message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Some(found_in_words(found)), expected_in_words(expected))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Some(format!("{:?}", cut(found))), one_of(expected))
    }

    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Self {
        let guess = closest(found, expected);
        let guess = guess.map(|guess| format!(" (did you mean `{guess}`?)"));
        let guess = guess.unwrap_or_default();
        let expected = expected.join(", ");
        Self::new(
            None,
            format!("unknown key{guess}, expected one of {expected}"),
        )
    }
}

/// A value as serde names it.
fn unexpected<'v>(value: &'v DeValue<'_>) -> Unexpected<'v> {
    match value {
        DeValue::String(text) => Unexpected::Str(text),
        DeValue::Boolean(value) => Unexpected::Bool(*value),
        DeValue::Integer(_) | DeValue::Float(_) => Unexpected::Other("a number"),
        DeValue::Datetime(_) => Unexpected::Other("a date or a time"),
        DeValue::Array(_) => Unexpected::Seq,
        DeValue::Table(_) => Unexpected::Map,
    }
}

fn found_in_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => format!("the number {value}"),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(value) => format!("{:?}", cut(value)),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        Unexpected::Other(other) => other.to_owned(),
        other => other.to_string(),
    }
}

/// In the words of a configuration file. What is none of Rust's words is a text of ours.
fn expected_in_words(expected: &dyn Expected) -> String {
    let words = expected.to_string();
    match words.as_str() {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not negative".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" => "text in quotes".to_owned(),
        "path string" => "a path in quotes".to_owned(),
        "a sequence" => "a list, such as [\"a\", \"b\"]".to_owned(),
        "a map" => "a table".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        _ => words,
    }
}

/// `"a", "b" or "c"`.
fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.join(""),
    }
}

/// The word that was probably meant: one letter in three may be wrong.
fn closest<'a>(found: &str, words: &[&'a str]) -> Option<&'a str> {
    let distances = words.iter().map(|word| (distance(found, word), *word));
    let (distance, word) = distances.min()?;
    (distance <= word.len().div_ceil(3)).then_some(word)
}

/// How many letters have to be inserted, removed or replaced (Levenshtein). What is much longer than
/// any key is not compared.
fn distance(from: &str, to: &str) -> usize {
    if from.len() > 64 {
        return usize::MAX;
    }
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// A value of the file, at its key. Values at refused keys are as if they were not there.
#[derive(Clone)]
pub(super) struct Node<'a> {
    pub(super) value: &'a Spanned<DeValue<'a>>,
    pub(super) key: Key,
    pub(super) refused: &'a BTreeSet<Key>,
}

impl<'a> Node<'a> {
    fn below(&self, value: &'a Spanned<DeValue<'a>>, step: Step) -> Option<Self> {
        let key = self.key.with(step);
        let refused = self.refused;
        (!refused.contains(&key)).then_some(Self {
            value,
            key,
            refused,
        })
    }
}

impl<'de, 'a> de::Deserializer<'de> for Node<'a> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let read = match self.value.get_ref() {
            DeValue::String(text) => visitor.visit_str(text),
            DeValue::Boolean(value) => visitor.visit_bool(*value),
            DeValue::Integer(number) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => Err(de::Error::invalid_value(
                        Unexpected::Other("a number that is too large"),
                        &visitor,
                    )),
                }
            }
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(_) => Err(de::Error::invalid_value(
                    Unexpected::Other("a number that cannot be read"),
                    &visitor,
                )),
            },
            value @ DeValue::Datetime(_) => {
                Err(de::Error::invalid_type(unexpected(value), &visitor))
            }
            DeValue::Array(values) => {
                let nodes = values.iter().enumerate();
                let nodes = nodes.filter_map(|(index, value)| self.below(value, Step::At(index)));
                visitor.visit_seq(SeqDeserializer::new(nodes))
            }
            DeValue::Table(table) => {
                let nodes = table.iter().filter_map(|(name, value)| {
                    let node = self.below(value, Step::Name(name.get_ref().to_string()))?;
                    let name = Name {
                        name,
                        key: node.key.clone(),
                    };
                    Some((name, node))
                });
                visitor.visit_map(MapDeserializer::new(nodes))
            }
        };
        read.map_err(|misfit| misfit.at(&self.key, self.value.span().start))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let read = match self.value.get_ref() {
            DeValue::String(text) => {
                let text: de::value::StrDeserializer<'_, Misfit> =
                    text.as_ref().into_deserializer();
                visitor.visit_enum(text)
            }
            other => Err(de::Error::invalid_type(
                unexpected(other),
                &one_of(variants).as_str(),
            )),
        };
        read.map_err(|misfit| misfit.at(&self.key, self.value.span().start))
    }

    serde::forward_to_deserialize_any! {
        bool u8 u16 u32 u64 i8 i16 i32 i64 i128 u128 f32 f64 char str string seq bytes byte_buf map
        unit ignored_any unit_struct tuple_struct tuple struct identifier
    }
}

impl<'a> IntoDeserializer<'_, Misfit> for Node<'a> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The name of a value in its table.
struct Name<'a> {
    name: &'a Spanned<DeString<'a>>,
    key: Key,
}

impl<'de> de::Deserializer<'de> for Name<'_> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let read: Result<_, Misfit> = visitor.visit_str(self.name.get_ref());
        read.map_err(|misfit| misfit.at(&self.key, self.name.span().start))
    }

    serde::forward_to_deserialize_any! {
        bool u8 u16 u32 u64 i8 i16 i32 i64 i128 u128 f32 f64 char str string option seq bytes byte_buf
        map unit newtype_struct ignored_any unit_struct tuple_struct tuple struct enum identifier
    }
}

impl IntoDeserializer<'_, Misfit> for Name<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
