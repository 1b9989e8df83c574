//! How a source says what it is doing: each state once, in the log and to the core.

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::core::input::{Input, SourceHealth};
use crate::core::model::{Clock, SourceId, SourceState};

/// Nobody reads the observations any more.
#[derive(Debug)]
pub(crate) struct Closed;

/// Reports the states of one source.
#[derive(Debug)]
pub(crate) struct HealthReporter {
    source: SourceId,
    out: mpsc::Sender<Input>,
    clock: fn() -> Clock,
    /// What was reported last.
    last: Option<SourceHealth>,
    /// Whether states are not logged here, since the parts of the source log theirs.
    is_quiet: bool,
}

impl HealthReporter {
    /// Creates a reporter that has reported nothing yet.
    pub(crate) const fn new(
        source: SourceId,
        out: mpsc::Sender<Input>,
        clock: fn() -> Clock,
    ) -> Self {
        Self {
            source,
            out,
            clock,
            last: None,
            is_quiet: false,
        }
    }

    /// The same, without lines in the log.
    pub(crate) const fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// The place that was reported last.
    pub(crate) fn place(&self) -> Option<&str> {
        self.last.as_ref().map(|last| &*last.place)
    }

    /// Reports a state if it differs from the last one, by so much as its reason or the time of the
    /// next attempt. A state of the same kind keeps its beginning, and is logged again only if the
    /// class of the failure is another one: a reason may have a name in it that differs each time.
    pub(crate) async fn report(&mut self, state: SourceState, place: &str) -> Result<(), Closed> {
        let last = self.last.as_ref();
        if last.is_some_and(|last| last.state == state && *last.place == *place) {
            return Ok(());
        }
        let same = last.filter(|last| last.state.as_str() == state.as_str());
        if !self.is_quiet && is_news(last.map(|last| &last.state), &state) {
            let source = self.source.as_str();
            match &state {
                SourceState::Down { class, reason, .. } => {
                    warn!(source, %place, %class, %reason, "source is down");
                }
                _ => info!(source, %place, state = state.as_str(), "source state"),
            }
        }
        let health = SourceHealth {
            source: self.source,
            since: same.map_or_else(|| (self.clock)().boot, |last| last.since),
            state,
            place: place.into(),
        };
        self.last = Some(health.clone());
        self.out
            .send(Input::Health(health))
            .await
            .map_err(|_| Closed)
    }
}

/// Whether a state is worth a line in the log: it is of another kind than the last one, or the failure
/// is of another class.
fn is_news(last: Option<&SourceState>, state: &SourceState) -> bool {
    match (last, state) {
        (Some(SourceState::Down { class: before, .. }), SourceState::Down { class, .. }) => {
            before != class
        }
        (Some(last), state) => last.as_str() != state.as_str(),
        (None, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{BootTime, Nanos};
    use crate::sources::clock;

    #[tokio::test]
    async fn a_state_is_reported_once_and_keeps_its_beginning() {
        let down = |reason: &str, retry: u64| SourceState::Down {
            class: "io".into(),
            reason: reason.into(),
            next_retry: Some(BootTime(retry)),
        };
        let (out, mut taken) = mpsc::channel(8);
        let mut reporter = HealthReporter::new(SourceId::Cri, out, clock::now);
        for (state, place) in [
            (down("a", 1), "/a"),
            (down("a", 1), "/a"),
            (down("b", 2), "/a"),
            (down("b", 2), "/b"),
            (SourceState::Up, "/b"),
        ] {
            reporter.report(state, place).await.unwrap();
        }
        drop(reporter);
        let mut seen = Vec::new();
        while let Some(Input::Health(health)) = taken.recv().await {
            seen.push(health);
        }
        let states: Vec<_> = seen.iter().map(|health| health.state.clone()).collect();
        assert_eq!(
            states,
            [down("a", 1), down("b", 2), down("b", 2), SourceState::Up]
        );
        assert!(seen[..3].iter().all(|health| health.since == seen[0].since));
        assert!(seen[3].since > seen[0].since && seen[3].since.since(seen[0].since) > Nanos::ZERO);
    }

    #[test]
    fn a_reason_with_a_random_name_in_it_is_not_logged_again() {
        let down = |class: &str, reason: &str| SourceState::Down {
            class: class.into(),
            reason: reason.into(),
            next_retry: None,
        };
        let states = [
            down("permission", "cannot create the map 7f3a"),
            down("permission", "cannot create the map 91c0"),
            down("btf", "there is none"),
            SourceState::Up,
            SourceState::Up,
            down("btf", "there is none"),
        ];
        let before = std::iter::once(None).chain(states.iter().map(Some));
        let logged: Vec<bool> = before
            .zip(&states)
            .map(|(last, state)| is_news(last, state))
            .collect();
        assert_eq!(logged, [true, false, true, true, false, true]);
    }

    #[tokio::test]
    async fn nobody_who_listens_is_an_end() {
        let (out, taken) = mpsc::channel(1);
        drop(taken);
        let mut reporter = HealthReporter::new(SourceId::Cri, out, clock::now).quiet();
        reporter.report(SourceState::Up, "").await.unwrap_err();
    }
}
