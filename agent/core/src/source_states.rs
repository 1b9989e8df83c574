//! The last reported state of each source, and how often each failed.

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
#[derive(Debug, Default)]
pub(crate) struct SourceStates {
    states: BTreeMap<SourceId, SourceHealth>,
    errors: BTreeMap<(SourceId, Arc<str>), SourceErrorBook>,
}

impl SourceStates {
    /// Takes a source's report. Returns since when it is in that state: a source that is down for
    /// another reason than before has been down since it first was.
    pub(crate) fn take(&mut self, mut health: SourceHealth, now: BootTime) -> BootTime {
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

    /// The last report of each source.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &SourceHealth> {
        self.states.values()
    }

    /// The counted errors, by source and class.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &SourceErrorBook> {
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
