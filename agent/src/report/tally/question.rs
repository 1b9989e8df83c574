//! What is asked of a ledger.

use super::dimension::Dimension;
use super::filter::Filter;
use crate::report::prices::Prices;
use crate::report::range::Asked;
use crate::report::zone::Zone;

/// What a report is to be about.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its hours.
    pub asked: Asked,
    /// In which zone hours and days are cut, and moments are shown.
    pub zone: Zone,
    /// By what it is grouped.
    pub by: Vec<Dimension>,
    /// Which accounts are in it.
    pub filter: Filter,
    /// What GPU time costs, if that is asked for.
    pub prices: Option<Prices>,
    /// Whether the report is wanted in the order of time, too, for pictures.
    pub timeline: bool,
}
