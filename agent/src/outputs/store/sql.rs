//! How the core's values become SQLite's, and the pieces of statements that several files share.

use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, Transaction};

use super::schema::{AMOUNTS, MEMORY_LOW_BITS};
use crate::core::amounts::{Amounts, ByteSeconds, Engines, Millijoules};
use crate::core::model::{GpuUuid, Nanos, WallTime};

/// The columns of a GPU's book that are moved into its hours: nanoseconds, and millijoules of energy.
pub(super) const BOOK_COLUMNS: [&str; 6] = [
    "elapsed",
    "busy",
    "idle",
    "energy",
    "energy_idle",
    "energy_unattributed",
];

/// What SQLite answers.
pub(super) type Result<T> = rusqlite::Result<T>;

/// Nanoseconds of an hour.
pub(super) const HOUR: u64 = 3_600_000_000_000;

/// The hour, UTC, that an instant is in.
pub(super) const fn hour(at: WallTime) -> i64 {
    int(at.0 / HOUR)
}

/// A number as SQLite has them: the largest stands for all that are larger.
pub(super) const fn int(number: u64) -> i64 {
    if number > i64::MAX as u64 {
        i64::MAX
    } else {
        number.cast_signed()
    }
}

/// The row of an account: its life and its number within the life.
pub(super) const fn number(life: i64, account: u32) -> i64 {
    (life << 32) | account as i64
}

/// Memory over time as the two columns have it: the lower bits, and what is above them.
const fn memory(ByteSeconds(memory): ByteSeconds) -> (i64, i64) {
    let high = memory >> MEMORY_LOW_BITS;
    let low = memory & ((1 << MEMORY_LOW_BITS) - 1);
    let high = if high > i64::MAX as u128 {
        i64::MAX
    } else {
        high as i64
    };
    (low as i64, high)
}

/// Amounts in the order of [`AMOUNTS`].
pub(super) fn amounts(amounts: &Amounts) -> [i64; AMOUNTS.len()] {
    let (memory, memory_high) = memory(amounts.memory);
    [
        int(amounts.busy.0),
        int(amounts.engines.memory.0),
        int(amounts.engines.encoder.0),
        int(amounts.engines.decoder.0),
        int(amounts.engines.jpeg.0),
        int(amounts.engines.ofa.0),
        int(amounts.held.0),
        int(amounts.allocated.0),
        memory,
        int(amounts.energy.0),
        int(amounts.allocated_share.0),
        memory_high,
    ]
}

/// The amounts, each written by `each` and set apart by commas.
pub(super) fn list(each: impl Fn(&'static str) -> String) -> String {
    AMOUNTS.map(each).join(", ")
}

/// Adds the amounts of a row that was to be inserted to those of the row that is there, for `DO UPDATE
/// SET`. Of memory the lower column carries into the higher one: each is below 2^62 in either row.
pub(super) fn sums() -> String {
    list(|amount| match amount {
        "memory" => "memory = (memory + excluded.memory) & 0x3FFFFFFFFFFFFFFF".to_owned(),
        "memory_high" => "memory_high = memory_high + excluded.memory_high
            + ((memory + excluded.memory) >> 62)"
            .to_owned(),
        amount => format!("{amount} = {amount} + excluded.{amount}"),
    })
}

/// The amounts set to parameters, the first of which has the number `first`.
pub(super) fn list_of(prefix: &str, first: usize) -> String {
    let each = AMOUNTS.iter().enumerate();
    let each = each.map(|(at, amount)| format!("{prefix}{amount} = ?{}", first + at));
    each.collect::<Vec<_>>().join(", ")
}

/// A parameter for each amount, the first of which has the number `first`.
pub(super) fn parameters(first: usize) -> String {
    let each = (first..first + AMOUNTS.len()).map(|at| format!("?{at}"));
    each.collect::<Vec<_>>().join(", ")
}

/// Lets statements of a connection keep their plan whatever their parameters are. Otherwise SQLite parses a
/// statement anew for each value of a parameter that it compares with the condition of a partial index.
pub(super) fn keep_plans(connection: &Connection) -> Result<()> {
    let is_on = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    debug_assert!(is_on, "SQLite has known it since 3.20");
    Ok(())
}

/// A text as a parameter.
pub(super) fn text(text: &Arc<str>) -> Value {
    Value::Text(text.to_string())
}

/// The number of a GPU.
pub(super) fn gpu(transaction: &Transaction<'_>, uuid: &GpuUuid) -> Result<i64> {
    transaction
        .prepare_cached("SELECT gpu FROM gpus WHERE uuid = ?1")?
        .query_row([uuid.as_str()], |row| row.get(0))
}

/// A figure that cannot be negative.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Result<u64> {
    let found: i64 = row.get(column)?;
    u64::try_from(found).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, found))
}

/// The amounts, from the column at which they begin.
pub(super) fn amounts_from(row: &Row<'_>, first: usize) -> Result<Amounts> {
    let nanos = |at| unsigned(row, first + at).map(Nanos);
    Ok(Amounts {
        busy: nanos(0)?,
        engines: Engines {
            memory: nanos(1)?,
            encoder: nanos(2)?,
            decoder: nanos(3)?,
            jpeg: nanos(4)?,
            ofa: nanos(5)?,
        },
        held: nanos(6)?,
        allocated: nanos(7)?,
        memory: ByteSeconds(
            u128::from(unsigned(row, first + 8)?)
                + (u128::from(unsigned(row, first + 11)?) << MEMORY_LOW_BITS),
        ),
        energy: Millijoules(unsigned(row, first + 9)?),
        allocated_share: nanos(10)?,
    })
}
