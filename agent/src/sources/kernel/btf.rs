//! Reads what the object needs to know of the running kernel out of its BTF, in place.
//!
//! The kernel describes its own types in `/sys/kernel/btf/vmlinux`: some 150,000 of them in five
//! megabytes. This reader keeps the bytes as they are and an index of four bytes a type, answers
//! the few questions that there are (where is this member, what is this enumerator, is this
//! typedef there) and is dropped. It refuses to be a general BTF library: nothing is resolved that
//! is not asked for.
//!
//! The bytes are the kernel's and are still not trusted: whatever they hold, the answer is a value
//! or an error, in bounded time. A question looks at [`MAX_VISITS`] members at most. Offsets are
//! bytes.
//!
//! The format: <https://docs.kernel.org/bpf/btf.html>. `btf_type.info` has the number of members in
//! bits 0 to 23, the kind in bits 24 to 30 and a flag in bit 31. Kernels before commit f7a6b9eaff3e
//! ("bpf: Extend BTF UAPI vlen, kinds to use unused bits", April 2026) have zeros in the upper 8 bits
//! of the number and the upper 2 bits of the kind. The version of the format is the same.

use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Bytes of the header that are needed here; it may be longer.
const HEADER_BYTES: usize = 24;
/// Bytes of `struct btf_type`, before what its kind adds.
const TYPE_BYTES: usize = 12;
/// Bytes of `struct btf_member` and of `struct btf_enum64`.
const MEMBER_BYTES: usize = 12;
/// Bytes of `struct btf_enum`.
const ENUM_BYTES: usize = 8;
/// How deep anonymous structures are followed, and how many `const` and `typedef` in a row. The
/// kernel's own go three or four deep; what goes deeper is a loop.
const MAX_DEPTH: usize = 16;
/// How many members one question looks at, those of anonymous structures included. `task_struct`,
/// the largest that is asked for, has some 300. Depth alone is no bound: a type that contains itself
/// four times has 4^16 members 16 deep.
const MAX_VISITS: usize = 1 << 18;

/// Why a question to the kernel's BTF has no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The bytes end before something that must be there.
    #[error("btf ends at byte {len} inside {what}, which needs {needed}")]
    Truncated {
        /// Structure that is truncated.
        what: &'static str,
        /// How many bytes there must be.
        needed: usize,
        /// How many there are.
        len: usize,
    },
    /// The first two bytes are something else.
    #[error("btf begins with {found:#06x}, expected {MAGIC:#06x}")]
    Magic {
        /// Magic number that was found.
        found: u16,
    },
    /// A version of the format that is not known.
    #[error("btf has version {found}, expected {VERSION}")]
    Version {
        /// The version in the header.
        found: u8,
    },
    /// A kind of type whose length is not known, so that what follows cannot be found.
    #[error("btf type {id} has unknown kind {kind}")]
    Kind {
        /// The type.
        id: u32,
        /// Its kind.
        kind: u32,
    },
    /// The kernel has no such type.
    #[error("the kernel has no {kind} `{name}`")]
    NoType {
        /// `struct`, `enum`, `typedef`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The kernel's type has no such member.
    #[error("the kernel's struct `{structure}` has no member `{member}`")]
    NoMember {
        /// The type.
        structure: String,
        /// The member, or its names over time.
        member: String,
    },
    /// The struct has too many members, or contains itself.
    #[error(
        "the kernel's struct `{structure}` has more than {MAX_VISITS} members to look through for `{member}`"
    )]
    Budget {
        /// The type.
        structure: String,
        /// The member, or its names over time.
        member: String,
    },
    /// The member is not made of whole bytes.
    #[error("the kernel's `{structure}.{member}` is a bit field at bit {bit}")]
    BitField {
        /// The type.
        structure: String,
        /// The member.
        member: String,
        /// Where it begins.
        bit: u32,
    },
    /// The kernel's enum has no such enumerator.
    #[error("the kernel's enum `{enumeration}` has no `{name}`")]
    NoEnumerator {
        /// The enum.
        enumeration: String,
        /// The enumerator.
        name: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Struct,
    Union,
    Enum,
    Enum64,
    Typedef,
    /// `const`, `volatile`, `restrict` and type tags: they say something of another type.
    Modifier,
    Other,
}

/// A type as it stands in the bytes.
#[derive(Clone, Copy)]
struct Type<'a> {
    kind: Kind,
    /// Whether members carry the width of a bit field.
    kind_flag: bool,
    name: u32,
    /// The type that a modifier or typedef is about.
    about: u32,
    /// Members or enumerators.
    parts: &'a [u8],
}

/// A question has looked at [`MAX_VISITS`] members and has no answer.
struct OutOfBudget;

/// The kernel's types.
pub struct KernelTypes<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`. The first is type 1: 0 is `void`, and not written down.
    starts: Vec<u32>,
}

impl<'a> KernelTypes<'a> {
    /// Indexes `bytes`, which is the whole of `/sys/kernel/btf/vmlinux` or what pretends to be.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let truncated = |what, needed| BtfError::Truncated {
            what,
            needed,
            len: bytes.len(),
        };
        let header = bytes
            .get(..HEADER_BYTES)
            .ok_or(truncated("its header", HEADER_BYTES))?;
        let magic = u16::from_ne_bytes([header[0], header[1]]);
        if magic != MAGIC {
            return Err(BtfError::Magic { found: magic });
        }
        if header[2] != VERSION {
            return Err(BtfError::Version { found: header[2] });
        }
        let field = |at| word(header, at).unwrap_or(0) as usize;
        let header_len = field(4);
        let section = |what, offset: usize, len: usize| {
            let start = header_len.saturating_add(offset);
            let end = start.saturating_add(len);
            bytes.get(start..end).ok_or(truncated(what, end))
        };
        let types = section("its types", field(8), field(12))?;
        let strings = section("its strings", field(16), field(20))?;

        // A guess that fits vmlinux, so that the index is allocated once.
        let mut starts = Vec::with_capacity(types.len() / 32);
        let mut at = 0;
        while at < types.len() {
            let id = u32::try_from(starts.len() + 1).unwrap_or(u32::MAX);
            let len = type_len(types, at, id)?;
            if at + len > types.len() {
                return Err(truncated("a type", at + len));
            }
            starts.push(u32::try_from(at).unwrap_or(u32::MAX));
            at += len;
        }
        Ok(Self {
            types,
            strings,
            starts,
        })
    }

    /// Where a member begins in a struct, looked for under each of its names in turn, and inside
    /// the struct's anonymous members.
    pub fn member_offset(&self, structure: &str, names: &[&str]) -> Result<u32, BtfError> {
        let mut exists = false;
        let mut budget = MAX_VISITS;
        for candidate in self.named(Kind::Struct, structure) {
            exists = true;
            for name in names {
                let found = self.find_member(candidate, name, MAX_DEPTH, &mut budget);
                let found = found.map_err(|OutOfBudget| BtfError::Budget {
                    structure: structure.into(),
                    member: names.join("`, `"),
                })?;
                let Some((bit, is_bit_field)) = found else {
                    continue;
                };
                if is_bit_field || bit % 8 != 0 {
                    return Err(BtfError::BitField {
                        structure: structure.into(),
                        member: (*name).into(),
                        bit,
                    });
                }
                return Ok(bit / 8);
            }
        }
        Err(if exists {
            BtfError::NoMember {
                structure: structure.into(),
                member: names.join("`, `"),
            }
        } else {
            BtfError::NoType {
                kind: "struct",
                name: structure.into(),
            }
        })
    }

    /// The value of an enumerator.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Result<u32, BtfError> {
        let mut exists = false;
        for (kind, bytes) in [(Kind::Enum, ENUM_BYTES), (Kind::Enum64, MEMBER_BYTES)] {
            for candidate in self.named(kind, enumeration) {
                exists = true;
                for part in candidate.parts.chunks_exact(bytes) {
                    if self.is_called(word(part, 0).unwrap_or(0), name) {
                        // The low half, where there are two: no index of the kernel needs more.
                        return Ok(word(part, 4).unwrap_or(0));
                    }
                }
            }
        }
        Err(if exists {
            BtfError::NoEnumerator {
                enumeration: enumeration.into(),
                name: name.into(),
            }
        } else {
            BtfError::NoType {
                kind: "enum",
                name: enumeration.into(),
            }
        })
    }

    /// Whether there is a typedef of that name. Each BTF tracepoint has one, `btf_trace_<name>`.
    #[must_use]
    pub fn has_typedef(&self, name: &str) -> bool {
        self.named(Kind::Typedef, name).next().is_some()
    }

    /// How many types there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    fn named(&self, kind: Kind, name: &str) -> impl Iterator<Item = Type<'a>> {
        self.starts
            .iter()
            .filter_map(|start| read_type(self.types, *start as usize))
            .filter(move |candidate| candidate.kind == kind && self.is_called(candidate.name, name))
    }

    fn by_id(&self, id: u32) -> Option<Type<'a>> {
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        read_type(self.types, *self.starts.get(index)? as usize)
    }

    /// The bit at which a member begins, and whether it is a bit field. Takes one from the budget for
    /// each member that it looks at.
    fn find_member(
        &self,
        within: Type<'a>,
        name: &str,
        depth: usize,
        budget: &mut usize,
    ) -> Result<Option<(u32, bool)>, OutOfBudget> {
        let Some(depth) = depth.checked_sub(1) else {
            return Ok(None);
        };
        for part in within.parts.chunks_exact(MEMBER_BYTES) {
            *budget = budget.checked_sub(1).ok_or(OutOfBudget)?;
            let (Some(member), Some(of), Some(place)) =
                (word(part, 0), word(part, 4), word(part, 8))
            else {
                return Ok(None);
            };
            let (bit, width) = if within.kind_flag {
                (place & 0x00ff_ffff, place >> 24)
            } else {
                (place, 0)
            };
            if self.is_called(member, name) {
                return Ok(Some((bit, width != 0)));
            }
            if !self.is_called(member, "") {
                continue;
            }
            let Some(inner) = self.unmodified(of) else {
                continue;
            };
            if !matches!(inner.kind, Kind::Struct | Kind::Union) {
                continue;
            }
            if let Some((inner_bit, is_bit_field)) = self.find_member(inner, name, depth, budget)? {
                let bit = bit.checked_add(inner_bit);
                return Ok(bit.map(|bit| (bit, is_bit_field)));
            }
        }
        Ok(None)
    }

    fn unmodified(&self, id: u32) -> Option<Type<'a>> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let found = self.by_id(id)?;
            match found.kind {
                Kind::Modifier | Kind::Typedef => id = found.about,
                _ => return Some(found),
            }
        }
        None
    }

    fn is_called(&self, at: u32, name: &str) -> bool {
        let Some(rest) = self.strings.get(at as usize..) else {
            return false;
        };
        rest.get(..name.len()) == Some(name.as_bytes()) && rest.get(name.len()) == Some(&0)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// `(kind, vlen, kind_flag)` of `btf_type.info`.
const fn split_info(info: u32) -> (u32, usize, bool) {
    (
        (info >> 24) & 0x7f,
        (info & 0x00ff_ffff) as usize,
        info >> 31 != 0,
    )
}

/// Bytes that a type takes.
fn type_len(types: &[u8], at: usize, id: u32) -> Result<usize, BtfError> {
    let info = word(types, at.saturating_add(4)).ok_or(BtfError::Truncated {
        what: "a type",
        needed: at.saturating_add(TYPE_BYTES),
        len: types.len(),
    })?;
    let (kind, vlen, _) = split_info(info);
    let extra = match kind {
        // INT, VAR, DECL_TAG: one word.
        1 | 14 | 17 => 4,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG: nothing.
        2 | 7..=12 | 16 | 18 => 0,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64.
        4 | 5 | 15 | 19 => vlen * MEMBER_BYTES,
        // ENUM, FUNC_PROTO.
        6 | 13 => vlen * ENUM_BYTES,
        _ => return Err(BtfError::Kind { id, kind }),
    };
    Ok(TYPE_BYTES + extra)
}

fn read_type(types: &[u8], at: usize) -> Option<Type<'_>> {
    let name = word(types, at)?;
    let (number, vlen, kind_flag) = split_info(word(types, at + 4)?);
    let about = word(types, at + 8)?;
    let (kind, part_bytes) = match number {
        4 => (Kind::Struct, MEMBER_BYTES),
        5 => (Kind::Union, MEMBER_BYTES),
        6 => (Kind::Enum, ENUM_BYTES),
        19 => (Kind::Enum64, MEMBER_BYTES),
        8 => (Kind::Typedef, 0),
        9..=11 | 18 => (Kind::Modifier, 0),
        _ => (Kind::Other, 0),
    };
    let parts = types.get(at + TYPE_BYTES..at + TYPE_BYTES + vlen * part_bytes)?;
    Some(Type {
        kind,
        kind_flag,
        name,
        about,
        parts,
    })
}

#[cfg(test)]
mod tests;
