//! The containers that a source has been asked about and has not answered yet.
//!
//! The kernel may know a container before its runtime admits to it, so a negative answer holds only
//! for a while and is asked again at growing intervals. Bounded; what finds no room is refused, and
//! the core asks again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::core::model::ContainerId;

/// Containers that wait for an answer. More are turned away and counted; the core asks again.
const MAX_WANTED: usize = 4096;
/// When to ask again for a container that the source did not know, and after the last to give up.
const MISS_LADDER: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(16),
    Duration::from_secs(60),
];

/// Containers to be looked up, each once, ordered by the time of the lookup.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    wants: HashMap<ContainerId, Want>,
    /// Those of `wants` that are not being asked for right now.
    queue: BTreeSet<(Instant, ContainerId)>,
}

#[derive(Debug)]
struct Want {
    /// When it is to be asked for; absent while it is.
    due: Option<Instant>,
    /// Whether the core looked it up, and so wants an answer if it is not known.
    asked: bool,
    /// Whether something has happened to it since it was asked for, so that the answer may be old.
    again: bool,
    /// Times that the daemon did not know it.
    misses: usize,
}

impl Wanted {
    /// Puts a container in line. False if the line is too long.
    pub(super) fn want(&mut self, id: ContainerId, asked: bool, now: Instant) -> bool {
        if let Some(want) = self.wants.get_mut(&id) {
            // Asked already, or a negative answer that still holds; an event ends its hold.
            want.asked |= asked;
            if !asked {
                if let Some(due) = &mut want.due {
                    self.queue.remove(&(*due, id.clone()));
                    *due = now;
                    self.queue.insert((now, id));
                } else {
                    want.again = true;
                }
            }
            return true;
        }
        if self.wants.len() >= MAX_WANTED {
            return false;
        }
        self.queue.insert((now, id.clone()));
        self.wants.insert(
            id,
            Want {
                due: Some(now),
                asked,
                again: false,
                misses: 0,
            },
        );
        true
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// The next to ask for, if its time has come.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<ContainerId> {
        if self.next_due()? > now {
            return None;
        }
        let (_, id) = self.queue.pop_first()?;
        if let Some(want) = self.wants.get_mut(&id) {
            want.due = None;
        }
        Some(id)
    }

    /// It has been answered. Whether anybody still wants to know.
    pub(super) fn answered(&mut self, id: &ContainerId, now: Instant) -> bool {
        match self.wants.get_mut(id) {
            Some(want) if want.again => {
                want.again = false;
                want.due = Some(now);
                self.queue.insert((now, id.clone()));
                true
            }
            Some(_) => self.forget(id),
            None => false,
        }
    }

    /// It is not of interest any more. Whether it was.
    pub(super) fn forget(&mut self, id: &ContainerId) -> bool {
        let Some(want) = self.wants.remove(id) else {
            return false;
        };
        if let Some(due) = want.due {
            self.queue.remove(&(due, id.clone()));
        }
        true
    }

    /// The daemon does not know it. Whether the core should be informed.
    pub(super) fn missed(&mut self, id: &ContainerId, now: Instant) -> bool {
        let Some(want) = self.wants.get_mut(id) else {
            return false;
        };
        let asked = want.asked;
        match MISS_LADDER.get(want.misses) {
            Some(pause) if asked => {
                want.misses += 1;
                want.due = Some(now + *pause);
                self.queue.insert((now + *pause, id.clone()));
            }
            // Given up, or known from an event only and gone since.
            _ => {
                self.wants.remove(id);
            }
        }
        asked
    }

    /// A session is over: what was being asked for has to be asked for again.
    pub(super) fn call_back(&mut self) {
        let now = Instant::now();
        for (id, want) in &mut self.wants {
            if want.due.is_none() {
                want.due = Some(now);
                self.queue.insert((now, id.clone()));
            }
        }
    }
}

/// The next lookup. Never returns once the channel is closed.
pub(super) async fn receive<T>(asked: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match asked {
        Some(asked) => asked.recv().await,
        None => std::future::pending().await,
    }
}

/// An id as the API gives it. It is looked up by its text, so it must be fit for a path.
pub(super) fn container_id(text: &str) -> Option<ContainerId> {
    let well_formed =
        text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    well_formed.then(|| ContainerId::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wanted_are_asked_for_once_and_again_at_growing_intervals() {
        let mut wanted = Wanted::default();
        let a = ContainerId::from(&*"a".repeat(64));
        let start = Instant::now();
        assert!(wanted.want(a.clone(), true, start));
        assert!(wanted.want(a.clone(), true, start), "it waits already");
        assert_eq!(wanted.take_due(start), Some(a.clone()));
        assert!(wanted.want(a.clone(), true, start), "it is being asked for");
        assert_eq!(wanted.take_due(start), None);

        let mut now = start;
        for pause in MISS_LADDER {
            assert!(wanted.missed(&a, now), "the core is informed each time");
            assert_eq!(wanted.next_due(), Some(now + pause));
            assert!(wanted.want(a.clone(), true, now), "the answer holds");
            assert_eq!(wanted.take_due(now), None);
            now += pause;
            assert_eq!(wanted.take_due(now), Some(a.clone()));
        }
        assert!(wanted.missed(&a, now));
        assert!(
            wanted.wants.is_empty() && wanted.queue.is_empty(),
            "given up"
        );

        // An event ends the pause at once.
        assert!(wanted.want(a.clone(), true, now));
        assert_eq!(wanted.take_due(now), Some(a.clone()));
        assert!(wanted.missed(&a, now));
        assert!(wanted.want(a.clone(), false, now));
        assert_eq!(wanted.take_due(now), Some(a.clone()));
        // The session ends before the answer: asked for again in the next one.
        wanted.call_back();
        assert_eq!(wanted.take_due(Instant::now()), Some(a.clone()));
        // Renamed while it is being asked for: the answer is passed on and asked for once more.
        assert!(wanted.want(a.clone(), false, now));
        assert!(wanted.answered(&a, now));
        assert_eq!(wanted.take_due(now), Some(a.clone()));
        // Removed: an answer that still comes is nobody's.
        assert!(wanted.forget(&a));
        assert!(!wanted.forget(&a) && !wanted.missed(&a, now) && !wanted.answered(&a, now));

        // Known from an event only: not missed by anybody.
        assert!(wanted.want(a.clone(), false, now));
        assert_eq!(wanted.take_due(now), Some(a.clone()));
        assert!(!wanted.missed(&a, now));
        assert!(wanted.wants.is_empty());
    }

    #[test]
    fn the_line_of_the_wanted_is_bounded() {
        let mut wanted = Wanted::default();
        let now = Instant::now();
        for i in 0..MAX_WANTED {
            assert!(wanted.want(ContainerId::from(&*format!("{i:064x}")), true, now));
        }
        let last = ContainerId::from(&*"f".repeat(64));
        assert!(!wanted.want(last.clone(), true, now));
        assert!(wanted.take_due(now).is_some_and(|id| wanted.forget(&id)));
        assert!(wanted.want(last, true, now));
    }
}
