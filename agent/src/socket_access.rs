//! Who may open the agent's socket: the mode of its file, and the group that it belongs to. Read from
//! the configuration, and applied where the socket is made.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text_file::{self, TextFileError};

/// The node's groups. Other sources of names (LDAP) are not asked: they can block for long, and the
/// agent starts before the network does. A number serves for their groups.
pub(crate) const GROUPS: &str = "/etc/group";
/// What the owner needs: connecting to a socket is writing to its file.
const OWNER: u32 = 0o600;
/// What may be given at most. Whoever connects sees the names of all tenants' containers, and can set
/// the log level and use up the socket's connections, so it is never open to everybody on the node.
const MOST: u32 = 0o770;
/// The group's permission to connect.
const GROUP_WRITE: u32 = 0o020;

/// Mode of the socket's file, written as octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// What a mode is, in words.
    const EXPECTED: &str = "an octal mode in quotes that lets the owner read and write, perhaps the \
                            group, and nobody else, such as \"0600\" or \"0660\"";

    /// The permission bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether members of the group may connect.
    #[must_use]
    pub const fn admits_group(self) -> bool {
        self.0 & GROUP_WRITE != 0
    }
}

impl Default for SocketMode {
    fn default() -> Self {
        Self(OWNER)
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl std::str::FromStr for SocketMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let bits = u32::from_str_radix(text, 8).ok().filter(|_| is_octal);
        bits.filter(|bits| bits & OWNER == OWNER && bits & !MOST == 0)
            .map(Self)
            .ok_or(())
    }
}

impl Serialize for SocketMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = SocketMode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SocketMode::EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SocketMode, E> {
                let invalid = |()| E::invalid_value(Unexpected::Str(text), &self);
                text.parse().map_err(invalid)
            }
        }

        deserializer.deserialize_any(Text)
    }
}

/// The group of the socket's file, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketGroup {
    /// Name of a group in `/etc/group`.
    Name(String),
    /// Number of a group, which need not have a name here.
    Id(u32),
}

/// Why a group has no number.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The list of groups does not have it.
    #[error("{file} has no group {name:?}", file = .file.display())]
    Unknown {
        /// The list of groups.
        file: PathBuf,
        /// Name of the group.
        name: String,
    },
    /// The list of groups cannot be read.
    #[error("cannot read {file}", file = .file.display())]
    Read {
        /// The list of groups.
        file: PathBuf,
        /// What is wrong with the file.
        source: TextFileError,
    },
}

impl SocketGroup {
    /// What a group is, in words.
    const EXPECTED: &str = "the name of a group in quotes, or its number";

    /// Its number, by this list of groups (`group(5)`).
    ///
    /// # Errors
    /// If it is a name that the list does not have, or the list cannot be read.
    pub fn id(&self, groups: &Path) -> Result<u32, GroupError> {
        let name = match self {
            Self::Id(id) => return Ok(*id),
            Self::Name(name) => name,
        };
        let file = groups.to_owned();
        let text = text_file::read(groups).map_err(|source| GroupError::Read {
            file: file.clone(),
            source,
        })?;
        let mut lines = text.lines();
        let id = lines.find_map(|line| {
            let mut fields = line.split(':');
            let is_it = fields.next() == Some(name);
            fields.nth(1).filter(|_| is_it)?.parse().ok()
        });
        id.ok_or_else(|| GroupError::Unknown {
            file,
            name: name.clone(),
        })
    }
}

impl std::str::FromStr for SocketGroup {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            let id: Option<u32> = text.parse().ok();
            // The highest number stands for no group.
            return id.filter(|id| *id != u32::MAX).map(Self::Id).ok_or(());
        }
        let is_name = !text.is_empty()
            && !text.starts_with('-')
            && !text.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control());
        is_name.then(|| Self::Name(text.to_owned())).ok_or(())
    }
}

impl Serialize for SocketGroup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Name(name) => serializer.serialize_str(name),
            Self::Id(id) => serializer.serialize_u32(*id),
        }
    }
}

impl<'de> Deserialize<'de> for SocketGroup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;

        impl Visitor<'_> for NameOrNumber {
            type Value = SocketGroup;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SocketGroup::EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SocketGroup, E> {
                let invalid = |()| E::invalid_value(Unexpected::Str(text), &self);
                text.parse().map_err(invalid)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<SocketGroup, E> {
                let invalid = |()| E::invalid_value(Unexpected::Signed(number), &self);
                number.to_string().parse().map_err(invalid)
            }
        }

        deserializer.deserialize_any(NameOrNumber)
    }
}

/// Who may open the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// Mode of its file.
    pub mode: SocketMode,
    /// Group of its file; absent for that of the process.
    pub group: Option<SocketGroup>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_octal_and_never_opens_the_socket_to_everybody() {
        for (text, expected) in [
            ("0600", Some((0o600, false))),
            ("600", Some((0o600, false))),
            ("0660", Some((0o660, true))),
            ("0770", Some((0o770, true))),
            ("0640", Some((0o640, false))),
            ("0666", None),
            ("0606", None),
            ("0060", None),
            ("0400", None),
            ("2660", None),
            ("0o660", None),
            ("+660", None),
            ("0680", None),
            ("", None),
            ("rw-rw----", None),
        ] {
            let mode = text.parse::<SocketMode>().ok();
            let found = mode.map(|mode| (mode.bits(), mode.admits_group()));
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(SocketMode::default().to_string(), "0600");
    }

    #[test]
    fn a_group_is_a_name_of_the_list_or_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let groups = folder.path().join("group");
        let list = "root:x:0:\ngpu-admins:x:998:ann,bob\nbroken\nodd:x:many:\n";
        std::fs::write(&groups, list).unwrap();
        for (text, expected) in [
            ("gpu-admins", Ok(998)),
            ("root", Ok(0)),
            ("1234", Ok(1_234)),
            ("gpu", Err("has no group \"gpu\"")),
            ("odd", Err("has no group \"odd\"")),
            ("broken", Err("has no group \"broken\"")),
        ] {
            let group: SocketGroup = text.parse().unwrap();
            match (group.id(&groups), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(error), Err(words)) => {
                    assert!(error.to_string().contains(words), "{text}: {error}");
                }
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        for text in ["", "a:b", "a b", "-1", "4294967295", "99999999999"] {
            assert!(text.parse::<SocketGroup>().is_err(), "{text}");
        }
        let none = folder.path().join("none");
        let error = SocketGroup::Name("root".into()).id(&none).unwrap_err();
        assert!(matches!(error, GroupError::Read { .. }), "{error}");
    }
}
