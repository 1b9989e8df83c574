//! The last reported state of each source, and how often each failed.
//!
//! The core has one table, of the sources that it takes observations from. Outputs have states of
//! the same form, on which no book depends. The composition keeps a second table for them, and
//! publishes both as one list.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::directory::IdentitySources;
use crate::input::{IdentitySource, SourceHealth};
use crate::model::{BootTime, SourceId, SourceState};
use crate::snapshot::SourceErrorBook;

/// Error classes that are counted apart, for each source. A source has a few of them in its code.
const MAX_ERROR_CLASSES: usize = 32;
/// The class of a source's errors beyond [`MAX_ERROR_CLASSES`].
const OVERFLOW: &str = "(overflow)";

/// The states of all sources that have reported one.
#[derive(Clone, Debug, Default)]
pub struct SourceStates {
    states: BTreeMap<SourceId, SourceHealth>,
    errors: BTreeMap<(SourceId, Arc<str>), SourceErrorBook>,
}

impl SourceStates {
    /// Takes a source's report. Returns since when it is in that state: a source that is down for
    /// another reason than before has been down since it first was.
    pub fn take(&mut self, mut health: SourceHealth, now: BootTime) -> BootTime {
        if let SourceState::Down { class, .. } = &health.state {
            self.count_error(health.source, class, now);
        }
        if let Some(known) = self.states.get(&health.source)
            && known.state.as_str() == health.state.as_str()
        {
            health.since = health.since.min(known.since);
        }
        let since = health.since;
        self.states.insert(health.source, health);
        since
    }

    fn count_error(&mut self, source: SourceId, class: &Arc<str>, now: BootTime) {
        let known = self.errors.keys().filter(|(of, _)| *of == source);
        let is_full = known.count() >= MAX_ERROR_CLASSES;
        let mut key = (source, Arc::clone(class));
        if is_full && !self.errors.contains_key(&key) {
            key.1 = OVERFLOW.into();
        }
        let class = Arc::clone(&key.1);
        let book = self.errors.entry(key).or_insert(SourceErrorBook {
            source,
            class,
            count: 0,
            last: now,
        });
        book.count += 1;
        book.last = book.last.max(now);
    }

    /// The last report of a source, if there was any.
    pub(crate) fn get(&self, source: SourceId) -> Option<&SourceHealth> {
        self.states.get(&source)
    }

    /// The last report of each source, in the order of [`SourceId::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = &SourceHealth> {
        self.states.values()
    }

    /// The states of this table and of another one. Where both have a source, the other one's state
    /// and errors stand.
    #[must_use]
    pub fn joined(mut self, other: &Self) -> Self {
        let states = other.states.iter();
        self.states
            .extend(states.map(|(source, health)| (*source, health.clone())));
        let errors = other.errors.iter();
        self.errors
            .extend(errors.map(|(key, book)| (key.clone(), book.clone())));
        self
    }

    /// The counted errors, by source and class: also those of sources that are up again.
    pub fn errors(&self) -> impl Iterator<Item = &SourceErrorBook> {
        self.errors.values()
    }

    /// Whether identity sources are up, and whether some are down.
    pub(crate) fn of_names(&self) -> IdentitySources {
        let states = IdentitySource::ALL.map(|source| {
            let health = self.states.get(&source.source());
            health.map(|health| &health.state)
        });
        IdentitySources {
            up: states
                .iter()
                .any(|state| matches!(state, Some(SourceState::Up))),
            down: states
                .iter()
                .any(|state| matches!(state, Some(SourceState::Down { .. }))),
        }
    }

    /// Whether a source is up that can be asked for a pod by its uid.
    pub(crate) fn can_ask_for_pods(&self) -> bool {
        let logs = self.states.get(&SourceId::KubeletLogs);
        logs.is_some_and(|health| health.state == SourceState::Up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(source: SourceId, class: Option<&str>) -> SourceHealth {
        SourceHealth {
            source,
            state: class.map_or(SourceState::Up, |class| SourceState::Down {
                class: class.into(),
                reason: "".into(),
                next_retry: None,
            }),
            since: BootTime(1),
            place: "".into(),
        }
    }

    #[test]
    fn two_tables_are_one_list_in_the_order_of_all_sources() {
        let (mut odd, mut even) = (SourceStates::default(), SourceStates::default());
        for (at, source) in SourceId::ALL.into_iter().enumerate().rev() {
            let table = if at % 2 == 0 { &mut even } else { &mut odd };
            for class in [Some("timeout"), Some("refused"), None] {
                table.take(health(source, class), BootTime(1));
            }
        }
        let joined = odd.joined(&even);
        let sources: Vec<_> = joined.iter().map(|health| health.source).collect();
        assert_eq!(sources, SourceId::ALL);
        let errors = joined.errors().map(|book| (book.source, &*book.class));
        let classes = |source| ["refused", "timeout"].map(|class| (source, class));
        assert!(errors.eq(SourceId::ALL.into_iter().flat_map(classes)));
    }
}
