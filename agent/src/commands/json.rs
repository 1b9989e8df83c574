//! The agent's answers as they are shown to programs: whole, in the agent's order, digit by digit.
//!
//! `serde_json::Value` keeps numbers in 64 bits and rounds larger ones, such as memory over time. The
//! types of this version would drop what a newer agent added.

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::ser::{Error as _, SerializeMap as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// How deep values may be in one another. The agent's own are at most nine deep.
const MAX_DEPTH: usize = 64;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    /// Null, true, false, or a number: its text.
    Plain(Box<str>),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object, in the order in which it was written.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The member of an object.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Self> {
        let Self::Object(members) = self else {
            return None;
        };
        let found = members.iter_mut().find(|(member, _)| member == name);
        found.map(|(_, value)| value)
    }

    /// Adds a member to an object.
    pub(super) fn insert(&mut self, name: &str, value: Self) {
        if let Self::Object(members) = self {
            members.push((name.to_owned(), value));
        }
    }

    /// The value with two spaces for each level, and a line break at its end.
    pub(super) fn pretty(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    fn read(raw: &RawValue, depth: usize) -> serde_json::Result<Self> {
        if depth > MAX_DEPTH {
            return Err(de::Error::custom(format!("more than {MAX_DEPTH} levels")));
        }
        let text = raw.get();
        Ok(match text.as_bytes().first() {
            Some(b'{') => {
                let Members(members) = serde_json::from_str(text)?;
                let members = members.into_iter();
                let read = |(name, value): (String, &RawValue)| {
                    Self::read(value, depth + 1).map(|value| (name, value))
                };
                Self::Object(members.map(read).collect::<Result<_, _>>()?)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                let items = items.into_iter().map(|item| Self::read(item, depth + 1));
                Self::List(items.collect::<Result<_, _>>()?)
            }
            Some(b'"') => Self::Text(serde_json::from_str(text)?),
            _ => Self::Plain(text.into()),
        })
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Self::read(raw, 0).map_err(de::Error::custom)
    }
}

/// The members of an object, as they are written.
struct Members<'de>(Vec<(String, &'de RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(text) => plain(text, serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

fn plain<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match text {
        "null" => return serializer.serialize_unit(),
        "true" => return serializer.serialize_bool(true),
        "false" => return serializer.serialize_bool(false),
        _ => {}
    }
    if let Ok(number) = text.parse() {
        serializer.serialize_u64(number)
    } else if let Ok(number) = text.parse() {
        serializer.serialize_i64(number)
    } else if let Ok(number) = text.parse() {
        serializer.serialize_u128(number)
    } else if let Ok(number) = text.parse() {
        serializer.serialize_f64(number)
    } else {
        Err(S::Error::custom(format!("{text:?} is no number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_and_the_order_are_kept() {
        for text in [
            "{\"z\":340282366920938463463374607431768211455,\"a\":[18446744073709551616,-5,0.1],\"m\":null}",
            "[true,false,{},[],\"\\\"\\u0000 é\",0.5,0]",
            "\"text\"",
        ] {
            let json: Json = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&json).unwrap(), text);
        }
        let large: Json =
            serde_json::from_str("{\"a\": 340282366920938463463374607431768211455}").unwrap();
        let yaml = serde_saphyr::to_string(&large).unwrap();
        assert_eq!(yaml, "a: 340282366920938463463374607431768211455\n");
    }

    #[test]
    fn an_answer_that_is_too_deep_is_refused() {
        let deep = |levels| "[".repeat(levels) + &"]".repeat(levels);
        assert!(serde_json::from_str::<Json>(&deep(MAX_DEPTH)).is_ok());
        let error = serde_json::from_str::<Json>(&deep(100_000)).unwrap_err();
        assert!(error.to_string().contains("64 levels"), "{error}");
    }
}
