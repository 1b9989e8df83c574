//! How right the books are, beside what polling would have made of the same node: see
//! `gpuacct_tests::accuracy` for what is done.

use std::time::Duration;

use anyhow::{Context, Result};
use gpuacct::core::model::UnattributedReason;
use gpuacct_tests::accuracy::{
    self, Account, Outcome, POLLS, Plan, REUSE, SCENARIOS, SHORT, seconds,
};

use crate::report::Row;
use crate::{Bench, pause};

/// As long as the goal is about, and with as many short jobs.
const SECONDS: u32 = 600;
const SHORT_JOBS: u32 = 1_000;
/// Another length in seconds, for shorter runs.
const LENGTH: &str = "GPUACCT_ACCURACY_SECONDS";

/// All scenarios at once, for ten minutes.
pub(crate) fn accuracy(bench: &Bench) -> Result<Vec<Row>> {
    let length = match std::env::var(LENGTH) {
        Ok(length) => length
            .parse::<u32>()
            .with_context(|| format!("{LENGTH}: expected seconds, found {length:?}"))?,
        Err(_) => SECONDS,
    };
    let plan = Plan {
        length: Duration::from_secs(length.into()),
        short_jobs: SHORT_JOBS * length / SECONDS,
    };
    let poller = accuracy::beside("naive-poller")?;
    let dir = bench.dir("accuracy")?;
    let is_interrupted = || pause(Duration::ZERO).is_err();
    let outcome = accuracy::run(&dir, &bench.library, &poller, plan, &is_interrupted)?;
    pause(Duration::ZERO)?;
    let mut rows = Vec::new();
    for (gpu, scenario) in (0..).zip(SCENARIOS) {
        rows.extend(rows_of(&outcome, gpu, scenario));
    }
    let agent = &outcome.snapshot.agent;
    let events = &outcome.snapshot.events;
    let imbalances = agent.imbalances;
    rows.push(
        Row::new(
            "commits whose books did not balance",
            format!("{imbalances} of {}", agent.commits),
        )
        .goal("0", imbalances == 0),
    );
    rows.push(Row::new(
        "events lost; windows that were not awaited",
        format!(
            "{} of {}; {}",
            events.lost, events.seen, agent.windows_not_awaited
        ),
    ));
    Ok(rows)
}

fn rows_of(outcome: &Outcome, gpu: u32, scenario: &str) -> Vec<Row> {
    let accounts = outcome.on(gpu).count();
    let (done, sampled, booked) = (
        seconds(outcome.sum(gpu, |it| it.done)),
        seconds(outcome.sum(gpu, |it| it.sampled)),
        seconds(outcome.sum(gpu, |it| it.booked)),
    );
    let worst = outcome.worst(gpu);
    let what = format!("**{scenario}**: {accounts} accounts, done; sampled; booked");
    let mut rows = vec![Row::new(
        what,
        format!("{done:.2} s; {sampled:.2} s; {booked:.2} s"),
    )];
    let difference = Row::new(
        "— largest difference of an account to its samples, of the time",
        format!("{:.4} %", worst * 100.0),
    );
    // Where a pid had two containers in one window, nobody can tell whose the samples were.
    rows.push(if gpu == REUSE {
        difference
    } else {
        difference.goal("≤ 0.1 %", worst <= 0.001)
    });
    let errors = |figure: &dyn Fn(&Account) -> u64| {
        let errors = outcome.errors(gpu, figure);
        format!("{:+.2} % ± {:.2} s", errors.bias * 100.0, errors.spread)
    };
    let polled = (0..POLLS.len()).map(|at| errors(&|it: &Account| it.polled[at]));
    let polled: Vec<String> = polled.collect();
    rows.push(Row::new(
        "— bias ± spread against what was done: the samples; gpuacct; polled each 1, 5, 15 s",
        format!(
            "{}; {}; {}",
            errors(&|it| it.sampled),
            errors(&|it| it.booked),
            polled.join("; ")
        ),
    ));
    if gpu == SHORT {
        rows.push(Row::new(
            "— jobs of 50 to 500 ms",
            outcome.short_jobs.to_string(),
        ));
        let part = |busy: u64| format!("{:.1} %", seconds(busy) / sampled * 100.0);
        let polled = (0..POLLS.len()).map(|at| part(outcome.sum(gpu, |it| it.polled[at])));
        let polled: Vec<String> = polled.collect();
        rows.push(Row::new(
            "— of what was sampled, attributed: gpuacct; polled each 1, 5, 15 s",
            format!(
                "{}; {}",
                part(outcome.sum(gpu, |it| it.booked)),
                polled.join("; ")
            ),
        ));
        let unknown = outcome.unattributed(gpu, UnattributedReason::UnknownPid);
        rows.push(
            Row::new("— of jobs that nobody knew", format!("{} ns", unknown.0))
                .goal("0", unknown.is_zero()),
        );
    }
    if gpu == REUSE {
        let ambiguous = outcome.unattributed(gpu, UnattributedReason::AmbiguousPid);
        rows.push(Row::new(
            "— pids used again; sampled within 1.5 s of the pid's other holder; booked as ambiguous",
            format!(
                "{}; {:.2} s; {:.2} s",
                outcome.reused,
                seconds(outcome.close),
                ambiguous.as_secs_f64()
            ),
        ));
        let lost = sampled - booked - ambiguous.as_secs_f64();
        rows.push(
            Row::new(
                "— sampled, and neither booked nor ambiguous, of the time",
                format!("{:.4} %", lost / outcome.watched.as_secs_f64() * 100.0),
            )
            .goal(
                "≤ 0.1 %",
                lost.abs() / outcome.watched.as_secs_f64() <= 0.001,
            ),
        );
    }
    let reasons = UnattributedReason::ALL.iter();
    let reasons = reasons.map(|reason| (reason, outcome.unattributed(gpu, *reason)));
    let reasons: Vec<String> = reasons
        .filter(|(_, amount)| !amount.is_zero())
        .map(|(reason, amount)| format!("`{}` {:.3} s", reason.as_str(), amount.as_secs_f64()))
        .collect();
    if !reasons.is_empty() {
        rows.push(Row::new("— booked to nobody", reasons.join(", ")));
    }
    rows
}
