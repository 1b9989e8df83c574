//! The label values of a point, and how a value is made fit to go out.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::core::model::{UNRESOLVED, text};

/// The longest label value that is published, in bytes: as long as the longest Kubernetes name.
pub const MAX_LABEL_BYTES: usize = 253;

/// The label values of a point, in the order of its family's keys.
#[derive(Clone, Copy, Debug)]
pub struct LabelValues<'a> {
    shared: Option<&'a SharedLabels<'a>>,
    own: &'a [Cow<'a, str>],
    configured: &'a [ConfiguredLabel<'a>],
}

/// A label whose key the configuration has chosen, and its value.
pub type ConfiguredLabel<'a> = (&'a str, Cow<'a, str>);

impl<'a> LabelValues<'a> {
    /// Values that no other family has.
    #[must_use]
    pub const fn new(own: &'a [Cow<'a, str>]) -> Self {
        Self {
            shared: None,
            own,
            configured: &[],
        }
    }

    /// Values that several families have, and those that follow them in this one.
    pub(super) const fn after(
        shared: Option<&'a SharedLabels<'a>>,
        own: &'a [Cow<'a, str>],
    ) -> Self {
        Self {
            shared,
            own,
            configured: &[],
        }
    }

    /// The same, with labels whose keys are not the table's.
    pub(super) const fn with(self, configured: &'a [ConfiguredLabel<'a>]) -> Self {
        Self { configured, ..self }
    }

    /// The labels whose keys the configuration has chosen. They follow the others, and are the same
    /// in every series of a family.
    #[must_use]
    pub const fn configured(self) -> &'a [ConfiguredLabel<'a>] {
        self.configured
    }

    /// Every value of the family's keys.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let shared = self.shared.map_or(&[][..], |shared| &shared.values);
        shared.iter().chain(self.own).map(|value| &**value)
    }

    /// The values that are this family's own: all but the shared ones.
    #[must_use]
    pub const fn own(self) -> &'a [Cow<'a, str>] {
        self.own
    }

    /// The first values, if other families have them, too, and the number by which a format can
    /// recognise them.
    #[must_use]
    pub fn shared(self) -> Option<(usize, &'a [Cow<'a, str>])> {
        self.shared
            .map(|shared| (shared.number, &shared.values[..]))
    }

    /// Whether the family has no labels.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.shared.is_none() && self.own.is_empty() && self.configured.is_empty()
    }
}

/// How many labels families share that share any.
pub(super) const SHARED_LABELS: usize = 6;

/// Label values that begin the points of several families. They are made fit once.
#[derive(Debug)]
pub(super) struct SharedLabels<'a> {
    /// Distinct in what is written at once, from 0 on.
    number: usize,
    values: [Cow<'a, str>; SHARED_LABELS],
    corrections: Corrections,
}

impl<'a> SharedLabels<'a> {
    pub(super) fn new(number: usize, values: [&'a str; SHARED_LABELS]) -> Self {
        let mut corrections = Corrections::default();
        Self {
            number,
            values: values.map(|value| clean(value, &mut corrections)),
            corrections,
        }
    }

    /// What was corrected in them. It counts with each point that has them.
    pub(super) const fn corrections(&self) -> Corrections {
        self.corrections
    }
}

/// How many label values were corrected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Corrections {
    /// Values that were empty.
    pub(super) blank: u64,
    /// Values that were cut to the bound, or freed of control characters.
    pub(super) cut: u64,
}

/// A label value as it may go out: not empty, bounded, without control characters.
///
/// An empty value becomes `(unresolved)`, since `(none)` would claim that the label does not
/// apply. It is counted, because it is a bug in this agent.
///
/// A value over the bound is cut at a character's boundary, control characters become spaces;
/// a value that is changed so ends in a hash of what it was, so that two series that differ
/// only in what was taken away stay two. It is counted as well.
pub(super) fn clean<'v>(value: &'v str, corrections: &mut Corrections) -> Cow<'v, str> {
    if value.is_empty() {
        corrections.blank += 1;
        Cow::Borrowed(UNRESOLVED)
    } else if value.len() > MAX_LABEL_BYTES || !is_welcome(value) {
        corrections.cut += 1;
        Cow::Owned(mend(value))
    } else {
        Cow::Borrowed(value)
    }
}

/// Whether nothing in it is unwelcome. Printable ASCII, nearly every value, need not be decoded.
fn is_welcome(value: &str) -> bool {
    // Without an early end, many bytes are looked at in one instruction.
    let is_printable = |all: bool, byte| all & matches!(byte, b' '..=b'~');
    value.bytes().fold(true, is_printable) || !value.chars().any(is_unwelcome)
}

/// Control characters other than the two that both text formats can carry.
fn is_unwelcome(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

/// A value that may go out in place of one that may not. It ends in a hash of that one.
fn mend(value: &str) -> String {
    /// `~` and 16 hexadecimal digits.
    const MARK_BYTES: usize = 17;
    let mut end = value.len().min(MAX_LABEL_BYTES - MARK_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    // A space has one byte, a control character one or two: the result is no longer than the bound.
    let mut mended: String = value[..end]
        .chars()
        .map(|c| if is_unwelcome(c) { ' ' } else { c })
        .collect();
    write!(mended, "~{:016x}", text::fnv1a(value.as_bytes())).expect("a String takes everything");
    mended
}
