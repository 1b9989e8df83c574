//! What crashes of the agent cost and, above all, do not add: see `gpuacct_tests::crashes` for what is
//! done.

use std::time::Duration;

use anyhow::{Context, Result};
use gpuacct::config::OtlpTemporality;
use gpuacct_tests::accuracy::seconds;
use gpuacct_tests::crashes::{self, FAMILIES, Outcome, Plan, Receiver};
use gpuacct_tests::{collector, docker, prometheus, rotel};

use crate::report::Row;
use crate::{Bench, pause};

/// As many as the goal is about.
const KILLS: u32 = 100;
/// Another number of kills, for shorter runs. There are a tenth as many restarts after a store that
/// could not be written.
const KILLS_VARIABLE: &str = "GPUACCT_KILLS";
/// The moments are the same in every run.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// How far beyond the truth an amount may be, in parts of it.
const GOAL: f64 = 0.01;

/// Once with each temporality.
pub(crate) fn crashes(_: &Bench) -> Result<Vec<Row>> {
    docker::available()?;
    prometheus::available()?;
    let kills = match std::env::var(KILLS_VARIABLE) {
        Ok(kills) => kills
            .parse::<u32>()
            .with_context(|| format!("{KILLS_VARIABLE}: expected a number, found {kills:?}"))?,
        Err(_) => KILLS,
    };
    let receiver = match collector::binary() {
        Ok(binary) => Receiver::Collector(binary),
        Err(_) => Receiver::Rotel(rotel::available()?),
    };
    let is_interrupted = || pause(Duration::ZERO).is_err();
    let mut rows = Vec::new();
    for (name, temporality) in [
        ("cumulative", OtlpTemporality::Cumulative),
        ("delta", OtlpTemporality::Delta),
    ] {
        for (kills, read_only) in [(kills, 0), (0, kills.div_ceil(10))] {
            let plan = Plan {
                kills,
                read_only,
                temporality,
                seed: SEED,
            };
            let outcome = crashes::run(receiver.clone(), plan, &is_interrupted)?;
            rows.extend(rows_of(name, plan, &outcome)?);
        }
    }
    rows.push(Row::new(
        "the receiver",
        match receiver {
            Receiver::Collector(_) => "OpenTelemetry Collector",
            Receiver::Rotel(_) => "rotel",
        },
    ));
    Ok(rows)
}

fn rows_of(name: &str, plan: Plan, outcome: &Outcome) -> Result<Vec<Row>> {
    let truth = outcome.credited;
    let what = match plan.read_only {
        0 => format!("{} kills", plan.kills),
        restarts => format!("{restarts} restarts after a store that could not be written"),
    };
    let mut rows = vec![Row::new(
        format!("**{name}**, {what}: the driver's samples, which are the truth"),
        format!("{:.3} s", seconds(truth)),
    )];
    if plan.read_only == 0 {
        // Otherwise what was booked in between is in no book any more.
        let booked = seconds(outcome.booked);
        rows.push(Row::new("— booked", format!("{booked:.3} s")));
    }
    for (at, (family, pushed)) in FAMILIES.iter().enumerate() {
        let figures = [
            ("Prometheus, `increase()`", outcome.scraped[at]),
            ("the receiver's sum", outcome.received[at]),
        ];
        for (who, amount) in figures {
            let part = |nanos: u64| seconds(nanos) / seconds(truth);
            let beyond = part(amount.saturating_sub(truth));
            let short = part(truth.saturating_sub(amount));
            rows.push(
                Row::new(
                    format!("— `{family}`, {who}; beyond the truth; short of it"),
                    format!(
                        "{:.3} s; {:.2} %; {:.2} %",
                        seconds(amount),
                        beyond * 100.0,
                        short * 100.0
                    ),
                )
                .goal("beyond ≤ 1 %", beyond <= GOAL),
            );
        }
        if plan.temporality == OtlpTemporality::Delta && plan.read_only == 0 {
            let gaps = crashes::gaps(&outcome.messages, pushed)?;
            let longest = gaps.iter().map(|gap| gap.to - gap.from).max();
            rows.push(Row::new(
                "— intervals that were told by nobody, the longest",
                format!("{}, {:.1} s", gaps.len(), seconds(longest.unwrap_or(0))),
            ));
        }
    }
    Ok(rows)
}
