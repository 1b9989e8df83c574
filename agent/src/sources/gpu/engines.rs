//! Busy time of the engines beside the multiprocessors, from the percents in the processes' rows.

use super::answer::{EnginePercents, RawRow};
use super::credit::{apportion, scale};
use crate::core::amounts::Engines;
use crate::core::input::EngineUse;
use crate::core::model::{Nanos, Pid};

/// An engine: its percent in a row, and its place in what a process used.
type Engine = (fn(&EnginePercents) -> u32, fn(&mut Engines) -> &mut Nanos);

/// Every engine beside the multiprocessors.
const ENGINES: [Engine; 5] = [
    (|row| row.memory, |engines| &mut engines.memory),
    (|row| row.encoder, |engines| &mut engines.encoder),
    (|row| row.decoder, |engines| &mut engines.decoder),
    (|row| row.jpeg, |engines| &mut engines.jpeg),
    (|row| row.ofa, |engines| &mut engines.ofa),
];

/// A row's percent of an engine.
pub(super) fn shown(row: &RawRow, engine: fn(&EnginePercents) -> u32) -> u64 {
    u64::from(engine(&row.engines))
}

/// The engines' busy time by pid: each row's part of `covered`, of `whole` parts, and no more than that
/// in all on any engine.
pub(super) fn engines(
    rows: &[RawRow],
    covered: Nanos,
    whole: u64,
    part: impl Fn(&RawRow, fn(&EnginePercents) -> u32) -> u64,
) -> Vec<EngineUse> {
    let mut used: Vec<EngineUse> = rows
        .iter()
        .map(|row| EngineUse {
            pid: Pid(row.pid),
            engines: Engines::default(),
        })
        .collect();
    for (engine, place) in ENGINES {
        let parts: Vec<u64> = rows.iter().map(|row| part(row, engine)).collect();
        let sum: u64 = parts.iter().sum();
        let shares = apportion(Nanos(scale(covered.0, sum.min(whole), whole)), &parts);
        for (used, share) in used.iter_mut().zip(shares) {
            *place(&mut used.engines) = share;
        }
    }
    used.retain(|used| !used.engines.is_zero());
    used
}
