//! Which state the source reports, and when a state is new enough to be logged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::fault::{NvmlErrorKind, NvmlFailure};
use super::library::OpenError;
use super::namespace::INITIAL_PID_NAMESPACE;
use crate::core::input::SourceHealth;
use crate::core::model::{BootTime, SourceId, SourceState};
use crate::sources::clock;

/// Why there is no session of the library.
#[derive(Debug)]
pub(super) enum Failed {
    /// It cannot be opened.
    Open(OpenError),
    /// The one before had to be closed.
    Session(NvmlFailure),
}

impl Failed {
    /// The state of the source, until the library is opened again.
    pub(super) fn state(&self, next_retry: BootTime) -> SourceState {
        let class = match self {
            Self::Open(OpenError::Absent { .. }) => return SourceState::Absent,
            Self::Open(error) => error.class(),
            Self::Session(trouble) => trouble.class,
        };
        SourceState::Down {
            class: class.into(),
            reason: self.reason().into(),
            next_retry: Some(next_retry),
        }
    }

    /// Whether there is no driver, rather than one that fails.
    pub(super) fn is_unloaded(&self) -> bool {
        match self {
            Self::Open(error) => error.is_unloaded(),
            Self::Session(trouble) => trouble.class == "driver_not_loaded",
        }
    }

    /// What failed, in words.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Open(error) => error.reason(),
            Self::Session(trouble) => trouble.text.clone(),
        }
    }

    /// Where the library is, as far as that is known.
    pub(super) fn endpoint(&self, configured: Option<&PathBuf>) -> Arc<str> {
        let path = match self {
            Self::Open(OpenError::Load { path, .. } | OpenError::Init { path, .. }) => Some(path),
            _ => configured,
        };
        path.map_or("", |path| path.to_str().unwrap_or_default())
            .into()
    }
}

/// The most severe of the GPUs' failures, in words that name the GPU and say how many have failed.
pub(super) fn gravest(mut all: Vec<(String, NvmlFailure)>) -> Option<NvmlFailure> {
    // The sort is stable: of two equal failures that of the first GPU is reported.
    all.sort_by_key(|(_, trouble)| match trouble.fault {
        NvmlErrorKind::Library => 0,
        NvmlErrorKind::Lost => 1,
        NvmlErrorKind::Other => 2,
        NvmlErrorKind::Unsupported => 3,
    });
    let others = match all.len().saturating_sub(1) {
        0 => String::new(),
        others => format!(" (and {others} more GPUs in trouble)"),
    };
    let (name, gravest) = all.into_iter().next()?;
    Some(NvmlFailure {
        text: format!("{name}: {}{others}", gravest.text),
        ..gravest
    })
}

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Health(Option<SourceHealth>);

impl Health {
    /// Forgets it: whatever is said next is news.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }

    /// What is to be said of this state, and whether it is news for the log. A changed retry time
    /// alone is not new. It is reported once the previous one has passed.
    pub(super) fn tell(
        &mut self,
        state: SourceState,
        place: &Arc<str>,
        now: BootTime,
    ) -> Option<(SourceHealth, bool)> {
        let same = self
            .0
            .as_ref()
            .filter(|known| known.place == *place && same_trouble(&known.state, &state));
        if let Some(known) = same {
            let is_told = match &known.state {
                SourceState::Down { next_retry, .. } => next_retry.is_some_and(|at| at > now),
                _ => false,
            };
            if is_told || known.state == state {
                return None;
            }
        }
        let is_news = same.is_none();
        let health = SourceHealth {
            source: SourceId::Nvml,
            state,
            since: same.map_or(now, |known| known.since),
            place: Arc::clone(place),
        };
        self.0 = Some(health.clone());
        Some((health, is_news))
    }
}

/// The state of the source while the library answers: the gravest `trouble`, or that nobody can be
/// billed in this pid `namespace`.
pub(super) fn state(
    trouble: Option<NvmlFailure>,
    namespace: Option<&Arc<str>>,
    next_retry: BootTime,
) -> SourceState {
    match (trouble, namespace) {
        (Some(trouble), _) => SourceState::Down {
            class: trouble.class.into(),
            reason: trouble.text.into(),
            next_retry: Some(next_retry),
        },
        (None, Some(namespace)) => SourceState::Down {
            class: "pid_namespace".into(),
            reason: format!(
                "in pid namespace {namespace}, expected {INITIAL_PID_NAMESPACE}: NVML's pids \
                 cannot be told apart (run with hostPID)"
            )
            .into(),
            next_retry: None,
        },
        (None, None) => SourceState::Up,
    }
}

/// Whether a state is the one before it, but for the time of the next attempt.
fn same_trouble(one: &SourceState, other: &SourceState) -> bool {
    match (one, other) {
        (
            SourceState::Down { class, reason, .. },
            SourceState::Down {
                class: other_class,
                reason: other_reason,
                ..
            },
        ) => class == other_class && reason == other_reason,
        _ => one == other,
    }
}

/// The boot time after a wait.
pub(super) fn after(wait: Duration) -> BootTime {
    clock::now().boot.plus(wait.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_time_of_retry_is_no_news() {
        let down = |reason: &str, retry| SourceState::Down {
            class: "timeout".into(),
            reason: reason.into(),
            next_retry: Some(BootTime(retry)),
        };
        assert!(same_trouble(&down("a", 1), &down("a", 2)));
        assert!(!same_trouble(&down("a", 1), &down("b", 1)));
        assert!(same_trouble(&SourceState::Up, &SourceState::Up));
        assert!(!same_trouble(&SourceState::Up, &SourceState::Absent));

        let mut health = Health::default();
        let place = "/lib".into();
        let mut tell = |state: SourceState, now| {
            let health_now = health.tell(state, &place, BootTime(now));
            health_now.map(|(health_now, is_news)| (health_now.since.0, is_news))
        };
        assert_eq!(tell(down("a", 10), 1), Some((1, true)));
        assert_eq!(tell(down("a", 12), 2), None, "it is yet to be tried");
        assert_eq!(tell(down("a", 20), 11), Some((1, false)));
        assert_eq!(tell(down("b", 20), 12), Some((12, true)));
        assert_eq!(tell(SourceState::Up, 13), Some((13, true)));
        assert_eq!(tell(SourceState::Up, 14), None);
    }

    #[test]
    fn the_gravest_trouble_is_told_and_the_others_are_counted() {
        let trouble = |fault, text: &str| NvmlFailure {
            fault,
            class: "driver_error",
            text: text.to_owned(),
        };
        let health_now = |all: &[(&str, NvmlErrorKind)]| {
            let all = all.iter().map(|(name, fault)| {
                let text = format!("{fault:?}");
                ((*name).to_owned(), trouble(*fault, &text))
            });
            gravest(all.collect()).map(|trouble| trouble.text)
        };
        assert_eq!(health_now(&[]), None);
        let one = health_now(&[("GPU-a", NvmlErrorKind::Other)]);
        assert_eq!(one.as_deref(), Some("GPU-a: Other"));
        let three = health_now(&[
            ("GPU-a", NvmlErrorKind::Other),
            ("GPU-b", NvmlErrorKind::Lost),
            ("GPU-c", NvmlErrorKind::Lost),
        ]);
        let expected = "GPU-b: Lost (and 2 more GPUs in trouble)";
        assert_eq!(three.as_deref(), Some(expected));
    }
}
