//! What is asked of a ledger.

use std::collections::BTreeSet;
use std::sync::Arc;

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

impl Question {
    /// The keys of all labels that it asks for: to group by, to choose by, and to price by.
    #[must_use]
    pub fn label_keys(&self) -> BTreeSet<Arc<str>> {
        let by = self.by.iter().filter_map(|dimension| match dimension {
            Dimension::Label(key) => Some(Arc::clone(key)),
            _ => None,
        });
        let prices = self.prices.iter().flat_map(Prices::label_keys);
        by.chain(self.filter.label_keys()).chain(prices).collect()
    }

    /// What of it needs the names of clusters, in words.
    #[must_use]
    pub fn needs_cluster(&self) -> Option<&'static str> {
        if self.by.contains(&Dimension::Cluster) {
            return Some("--by cluster");
        }
        let prices = self.prices.as_ref()?;
        prices.are_by_cluster().then_some("prices by cluster")
    }
}
