//! Tables of the page, their cells, and how figures are shown.
//!
//! Every text that comes from outside goes through [`shown`] on its way here, and is escaped by the template.

use rust_decimal::Decimal;

use super::super::page::{GIBIBYTE, JOULES_OF_A_KWH, short};
use super::super::print::SECONDS_OF_AN_HOUR;
use crate::words::shown;

/// The columns of a name that are shown, and of the whole name that is shown on demand.
const NAME_WIDTH: usize = 80;
const WHOLE_NAME_WIDTH: usize = 512;
/// What stands where a figure does not apply or is not known.
const DASH: &str = "-";

/// A table. Each row has as many names and figures as the table has columns of these.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Columns that say whose or when it is, with the class of a column's colour.
    pub(super) names: Vec<Heading>,
    /// Columns of figures.
    pub(super) figures: Vec<Heading>,
    pub(super) rows: Vec<Line>,
    pub(super) sum: Option<Line>,
}

/// The head of a column.
#[derive(Debug)]
pub(super) struct Heading {
    pub(super) text: String,
    /// The field of `-o json`; empty if it has none.
    pub(super) field: &'static str,
    /// The class of its colour; empty if it has none.
    pub(super) class: String,
}

/// A row of a table.
#[derive(Debug)]
pub(super) struct Line {
    /// The class of its colour; empty if it has none.
    pub(super) class: String,
    pub(super) kind: &'static str,
    pub(super) names: Vec<Name>,
    pub(super) figures: Vec<Figure>,
    /// Its part of everything, in whole percents for a bar and in words.
    pub(super) part: Option<(u32, String)>,
}

/// A name from outside.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) text: String,
    /// The whole name, as far as it is bounded.
    pub(super) whole: String,
}

/// A figure as the JSON has it and as people read it.
#[derive(Debug)]
pub(super) struct Figure {
    /// The exact figure; absent if it does not apply or is not known.
    pub(super) exact: Option<String>,
    pub(super) shown: String,
}

impl Name {
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: shown(text, NAME_WIDTH),
            whole: shown(text, WHOLE_NAME_WIDTH),
        }
    }
}

impl Heading {
    pub(super) fn plain(text: &str) -> Self {
        Self::of_field(text, "")
    }

    pub(super) fn of_field(text: &str, field: &'static str) -> Self {
        Self {
            text: shown(text, NAME_WIDTH),
            field,
            class: String::new(),
        }
    }
}

impl Figure {
    pub(super) fn new(exact: Decimal, shown: String) -> Self {
        Self {
            exact: Some(exact.to_string()),
            shown,
        }
    }

    pub(super) fn nothing() -> Self {
        Self {
            exact: None,
            shown: DASH.to_owned(),
        }
    }

    /// GPU time in seconds, shown in hours.
    pub(super) fn hours(exact: Decimal) -> Self {
        Self::new(exact, short(exact / SECONDS_OF_AN_HOUR))
    }

    pub(super) fn money(cost: Option<Decimal>) -> Self {
        cost.map_or_else(Self::nothing, |cost| Self::new(cost, cost.to_string()))
    }
}

/// How a figure of the JSON is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Hours,
    GibibyteHours,
    KilowattHours,
    Percent,
    Gibibytes,
    AsItIs,
}

impl Unit {
    pub(super) fn show(self, number: Decimal) -> String {
        match self {
            Self::Hours => short(number / SECONDS_OF_AN_HOUR),
            Self::GibibyteHours => short(number / GIBIBYTE / SECONDS_OF_AN_HOUR),
            Self::KilowattHours => short(number / JOULES_OF_A_KWH),
            Self::Gibibytes => short(number / GIBIBYTE),
            Self::Percent => format!("{:.1}%", (number * Decimal::ONE_HUNDRED).round_dp(1)),
            Self::AsItIs => number.to_string(),
        }
    }
}
