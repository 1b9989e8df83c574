//! Amounts in the units of people.

use crate::core::amounts::Millijoules;
use crate::core::model::{Nanos, WallTime};

/// As much of an id as people read.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

pub(crate) fn sum<R>(amounts: &[(R, Nanos)]) -> Nanos {
    amounts.iter().map(|(_, amount)| *amount).sum()
}

pub(crate) fn unknown() -> String {
    "-".to_owned()
}

/// A share as a percentage with one decimal.
pub(crate) fn share(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// An amount of time with the two units that matter.
pub(crate) fn duration(amount: Nanos) -> String {
    let nanos = amount.0;
    let seconds = nanos / 1_000_000_000;
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}us", nanos / 1_000),
        1_000_000..1_000_000_000 => format!("{}ms", nanos / 1_000_000),
        1_000_000_000..60_000_000_000 => {
            format!("{seconds}.{}s", nanos / 100_000_000 % 10)
        }
        60_000_000_000..3_600_000_000_000 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600_000_000_000..86_400_000_000_000 => {
            format!("{}h {}m", seconds / 3_600, seconds / 60 % 60)
        }
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// The time of day of an instant, in UTC.
pub(crate) fn clock_time(at: WallTime) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0))
        .map_or_else(|_| unknown(), |at| at.strftime("%H:%M:%S UTC").to_string())
}

const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// An amount of memory in the unit that fits.
pub(crate) fn bytes(amount: u64) -> String {
    let unit = byte_unit(amount);
    format!("{} {}", in_unit(amount, unit), BYTE_UNITS[unit])
}

/// What is used of what there is, in one unit.
pub(crate) fn memory_of(used: Option<u64>, size: Option<u64>) -> String {
    match (used, size) {
        (Some(used), Some(size)) => {
            let unit = byte_unit(size);
            let (used, size) = (in_unit(used, unit), in_unit(size, unit));
            format!("{used}/{size} {}", BYTE_UNITS[unit])
        }
        (Some(used), None) => bytes(used),
        (None, Some(size)) => format!("-/{}", bytes(size)),
        (None, None) => unknown(),
    }
}

/// An amount of energy in the unit that fits.
pub(crate) fn energy(amount: Millijoules) -> String {
    let joules = amount.0 / 1_000;
    match joules {
        0..3_600 => format!("{joules} J"),
        3_600..3_600_000 => format!("{}.{} Wh", joules / 3_600, joules % 3_600 / 360),
        _ => format!(
            "{}.{} kWh",
            joules / 3_600_000,
            joules % 3_600_000 / 360_000
        ),
    }
}

/// The largest unit of which there is at least one.
pub(crate) fn byte_unit(amount: u64) -> usize {
    (1..BYTE_UNITS.len())
        .take_while(|unit| amount >> (10 * unit) > 0)
        .last()
        .unwrap_or(0)
}

pub(crate) fn in_unit(amount: u64, unit: usize) -> String {
    let tenths = (u128::from(amount) * 10) >> (10 * unit);
    match (unit, tenths) {
        (0, _) | (_, 1_000..) => (tenths / 10).to_string(),
        _ if tenths.is_multiple_of(10) => (tenths / 10).to_string(),
        _ => format!("{}.{}", tenths / 10, tenths % 10),
    }
}
