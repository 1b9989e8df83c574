//! When an amount is published, and under which labels: held back at first, then named, and never
//! with an empty label.
//!
//! ```text
//!            named within the grace
//!   Held ───────────────────────────────▶ Named
//!     │ grace over                          ▲
//!     └─────────────▶ IdOnly ───────────────┘ named late
//! ```
//!
//! A series' labels are frozen when it is first shown. It is shown at 0 for `zero_for`, so that a
//! scrape sees the 0 before the amount and `increase()` counts the whole of it, and never falls
//! after. An engine's amount is shown in the same way from its first use on, however late that is.
//! What went out under the ids stays there when names come late; the rest goes to the named
//! series, which starts at 0.

use std::sync::Arc;

use crate::account::{Account, Series};
use crate::input::Policy;
use crate::model::Clock;
use crate::snapshot::{Attribution, ContainerLabels};

/// Shows of an account what its owner's attribution allows now.
pub fn publish(
    account: &mut Account,
    attribution: Attribution,
    labels: &Arc<ContainerLabels>,
    policy: &Policy,
    clock: Clock,
) {
    match attribution {
        Attribution::Held => {}
        Attribution::IdOnly { .. } => {
            let series = account
                .id_only
                .get_or_insert_with(|| Series::new(Arc::clone(labels), account.opened, clock.boot));
            series.counter.show(account.amounts, policy, clock.boot);
        }
        Attribution::Named { .. } => publish_named(account, labels, policy, clock),
    }
}

/// Publishes an account whose names are known.
pub fn publish_named(
    account: &mut Account,
    labels: &Arc<ContainerLabels>,
    policy: &Policy,
    clock: Clock,
) {
    // What was published under the ids stays there. That series never changes again.
    let before = account
        .id_only
        .as_ref()
        .map(|series| series.counter.visible);
    let series = account.named.get_or_insert_with(|| {
        // It begins at 0 when the account does, or where the ids' series stopped.
        let start = if before.is_some() {
            clock.wall
        } else {
            account.opened
        };
        Series::new(Arc::clone(labels), start, clock.boot)
    });
    let amounts = account.amounts.minus(before.unwrap_or_default());
    series.counter.show(amounts, policy, clock.boot);
}

/// Whether an ended account can be closed: its whole amount has been shown for long enough.
#[must_use]
pub fn is_done(account: &Account, policy: &Policy, clock: Clock) -> bool {
    let Some(ended) = account.ended else {
        return false;
    };
    let series = [&account.id_only, &account.named];
    clock.boot.since(ended) >= policy.keep_for
        && account.published() == account.amounts
        && series.iter().any(|series| series.is_some())
        && series
            .into_iter()
            .flatten()
            .all(|series| series.counter.is_done(policy, clock.boot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amounts::Engine;
    use crate::input::IdentitySource;
    use crate::model::{BootTime, Nanos, UNRESOLVED, WallTime};
    use crate::snapshot::IdOnlyReason;

    const POLICY: Policy = Policy {
        grace: Nanos::from_secs(10),
        zero_for: Nanos::from_secs(60),
        keep_for: Nanos::from_secs(600),
    };
    const ID_ONLY: Attribution = Attribution::IdOnly {
        reason: IdOnlyReason::Timeout,
    };
    const NAMED: Attribution = Attribution::Named {
        source: IdentitySource::Docker,
    };

    fn clock(seconds: u64) -> Clock {
        Clock {
            boot: BootTime(seconds * 1_000_000_000),
            wall: WallTime((1_700_000_000 + seconds) * 1_000_000_000),
        }
    }

    fn labels(pod: &str) -> Arc<ContainerLabels> {
        Arc::new(ContainerLabels {
            namespace: "ml".into(),
            pod: pod.into(),
            container: "main".into(),
            pod_uid: "uid".into(),
            container_id: "id".into(),
        })
    }

    fn account() -> Account {
        Account::new(0, None, clock(1))
    }

    /// Plays (second, busy so far, attribution) and returns what is visible under the ids and
    /// under the names after each.
    fn play(story: &[(u64, u64, Attribution)]) -> Vec<(Option<u64>, Option<u64>)> {
        let mut account = account();
        story
            .iter()
            .map(|&(at, busy, attribution)| {
                account.amounts.busy = Nanos(busy);
                let pod = match attribution {
                    Attribution::Named { .. } => "train-0",
                    _ => UNRESOLVED,
                };
                publish(&mut account, attribution, &labels(pod), &POLICY, clock(at));
                let visible =
                    |series: &Option<Series>| series.as_ref().map(|s| s.counter.visible.busy.0);
                (visible(&account.id_only), visible(&account.named))
            })
            .collect()
    }

    #[test]
    fn held_back_then_zero_then_the_whole_amount() {
        assert_eq!(
            play(&[
                (1, 5, Attribution::Held),
                (8, 9, NAMED),
                (67, 20, NAMED),
                (68, 21, NAMED),
                (69, 30, NAMED),
            ]),
            [
                (None, None),
                (None, Some(0)),
                (None, Some(0)),
                (None, Some(21)),
                (None, Some(30)),
            ]
        );
    }

    #[test]
    fn what_went_out_under_the_ids_stays_there() {
        assert_eq!(
            play(&[
                (11, 5, ID_ONLY),
                (71, 40, ID_ONLY),
                (72, 42, ID_ONLY),
                (80, 50, NAMED),
                (139, 60, NAMED),
                (140, 61, NAMED),
            ]),
            [
                (Some(0), None),
                (Some(40), None),
                (Some(42), None),
                (Some(42), Some(0)),
                (Some(42), Some(0)),
                (Some(42), Some(19)),
            ]
        );
    }

    #[test]
    fn nothing_that_was_only_shown_as_zero_is_lost_to_the_ids() {
        assert_eq!(
            play(&[(11, 5, ID_ONLY), (20, 9, NAMED), (80, 12, NAMED)]),
            [(Some(0), None), (Some(0), Some(0)), (Some(0), Some(12)),]
        );
    }

    /// Visible busy time of a series, and the decoder's where it is shown.
    type Seen = (u64, Option<u64>);

    /// Plays (second, decoder's time so far, attribution) of an account that is busy all the time.
    /// Returns what is visible under the ids and under the names after each.
    fn play_decoder(story: &[(u64, u64, Attribution)]) -> Vec<[Option<Seen>; 2]> {
        let mut account = account();
        story
            .iter()
            .map(|&(at, decoder, attribution)| {
                account.amounts.busy = Nanos(at);
                account.amounts.engines.decoder = Nanos(decoder);
                publish(&mut account, attribution, &labels("p"), &POLICY, clock(at));
                [&account.id_only, &account.named].map(|series| {
                    let counter = &series.as_ref()?.counter;
                    let shown: Vec<_> = counter.engines.set().iter().collect();
                    assert!(shown.iter().all(|engine| *engine == Engine::Decoder));
                    let decoder = counter.visible.engines.decoder.0;
                    Some((
                        counter.visible.busy.0,
                        (!shown.is_empty()).then_some(decoder),
                    ))
                })
            })
            .collect()
    }

    /// `increase()` counts from the first value that it sees.
    #[test]
    fn an_engine_is_not_shown_before_its_first_use_and_shows_0_before_its_amount() {
        let named = [(1, 0), (61, 0), (100, 7), (159, 9), (160, 9), (161, 12)]
            .map(|(at, decoder)| (at, decoder, NAMED));
        let expected = [
            (0, None),
            (61, None),
            (100, Some(0)),
            (159, Some(0)),
            (160, Some(9)),
            (161, Some(12)),
        ];
        assert_eq!(
            play_decoder(&named),
            expected.map(|of_names| [None, Some(of_names)])
        );
    }

    #[test]
    fn an_engine_that_was_used_from_the_start_shows_its_amount_with_the_others() {
        let named = [(1, 3), (60, 4), (61, 5)].map(|(at, decoder)| (at, decoder, NAMED));
        let expected = [(0, Some(0)), (0, Some(0)), (61, Some(5))];
        assert_eq!(
            play_decoder(&named),
            expected.map(|of_names| [None, Some(of_names)])
        );
    }

    #[test]
    fn an_engine_that_only_showed_0_under_the_ids_shows_all_of_it_under_the_names() {
        assert_eq!(
            play_decoder(&[
                (1, 0, ID_ONLY),
                (61, 0, ID_ONLY),
                (70, 5, ID_ONLY),
                (80, 8, NAMED),
                (139, 8, NAMED),
                (140, 9, NAMED),
            ]),
            [
                [Some((0, None)), None],
                [Some((61, None)), None],
                [Some((70, Some(0))), None],
                [Some((70, Some(0))), Some((0, Some(0)))],
                [Some((70, Some(0))), Some((0, Some(0)))],
                [Some((70, Some(0))), Some((70, Some(9)))],
            ]
        );
    }

    #[test]
    fn an_account_is_not_done_while_an_engine_still_shows_0() {
        let mut account = account();
        let show = |account: &mut Account, at| {
            publish(account, NAMED, &labels("train-0"), &POLICY, clock(at));
        };
        account.amounts.busy = Nanos(7);
        show(&mut account, 10);
        show(&mut account, 70);
        account.amounts.engines.decoder = Nanos(7);
        account.ended = Some(clock(71).boot);
        show(&mut account, 1_000);
        assert!(!is_done(&account, &POLICY, clock(1_059)), "still at zero");
        show(&mut account, 1_060);
        assert!(!is_done(&account, &POLICY, clock(1_659)));
        assert!(is_done(&account, &POLICY, clock(1_660)));
    }

    #[test]
    fn labels_are_frozen_at_first_publication() {
        let mut account = account();
        publish(&mut account, NAMED, &labels("train-0"), &POLICY, clock(1));
        publish(&mut account, NAMED, &labels("renamed"), &POLICY, clock(2));
        assert_eq!(account.named.map(|s| s.labels), Some(labels("train-0")));
    }

    #[test]
    fn an_account_is_done_when_its_whole_amount_has_been_out_for_long_enough() {
        let mut account = account();
        account.amounts.busy = Nanos(7);
        account.ended = Some(clock(10).boot);
        publish(&mut account, NAMED, &labels("train-0"), &POLICY, clock(20));
        assert!(!is_done(&account, &POLICY, clock(5000)), "still at zero");
        publish(&mut account, NAMED, &labels("train-0"), &POLICY, clock(80));
        assert!(!is_done(&account, &POLICY, clock(679)));
        assert!(is_done(&account, &POLICY, clock(680)));
        account.ended = None;
        assert!(!is_done(&account, &POLICY, clock(680)), "it lives again");
    }
}
