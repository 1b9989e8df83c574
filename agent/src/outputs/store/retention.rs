//! What the ledger drops: what is older than the retention, and the oldest of what is too large.

use rusqlite::{Connection, TransactionBehavior};

use super::error::StoreError;
use super::outbox;
use super::sql::{HOUR, Result, hour, int};
use crate::core::model::WallTime;

/// What is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Hours that ended this many hours ago, and records that were closed before them, are dropped;
    /// nothing for its age if absent.
    pub(super) hours: Option<i64>,
    /// So are the oldest beyond this many bytes.
    pub(super) bytes: u64,
}

/// What was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Whether it is too much still and nothing could go.
    pub(super) is_stuck: bool,
    /// Usage records that were not settled.
    pub(super) records: u64,
}

/// Hours that are dropped at once where the file is too large.
const DROPPED_AT_ONCE: i64 = 24;

/// Closed accounts that are in no hour any more. One that was closed at the end of an hour may
/// have its last amounts in the next, and one that was closed while nothing could be written may have
/// them days later: for as long as an hour has it, its age is the hour's.
const UNTOLD: &str = "closed IS NOT NULL AND account NOT IN (SELECT account FROM hours)";

/// Drops what is too old, and the oldest of what is too much.
pub(super) fn drop_old(
    connection: &mut Connection,
    limits: Limits,
    now: WallTime,
) -> std::result::Result<Dropped, StoreError> {
    let failed = StoreError::sqlite;
    let act = "drop what is old";
    let mut all = Dropped::default();
    if let Some(hours) = limits.hours {
        let before = hour(now).saturating_sub(hours);
        drop_before(connection, before, &mut all).map_err(failed(act))?;
    }
    while used_bytes(connection).map_err(failed(act))? > limits.bytes {
        let oldest: Option<i64> = connection
            .query_row(
                &format!(
                    "SELECT min(hour) FROM (SELECT min(hour) AS hour FROM gpu_hours
                    UNION ALL SELECT min(hour) FROM hours
                    UNION ALL SELECT min(hour) FROM reason_hours
                    UNION ALL SELECT min(closed) / 3600000000000 FROM accounts WHERE {UNTOLD})"
                ),
                [],
                |row| row.get(0),
            )
            .map_err(failed(act))?;
        // What is left is open or of this hour: small, and needed to go on.
        let Some(oldest) = oldest.filter(|oldest| *oldest < hour(now)) else {
            all.is_stuck = true;
            break;
        };
        let before = oldest.saturating_add(DROPPED_AT_ONCE).min(hour(now));
        let dropped = drop_before(connection, before, &mut all).map_err(failed(act))?;
        if dropped == 0 {
            // The same would be found again, for ever.
            all.is_stuck = true;
            break;
        }
        if before == hour(now) {
            break;
        }
    }
    connection
        .execute_batch("PRAGMA incremental_vacuum")
        .map_err(failed("give space back"))?;
    Ok(all)
}

/// Returns how many rows went.
fn drop_before(connection: &mut Connection, before: i64, all: &mut Dropped) -> Result<usize> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let records = outbox::forget(&transaction, before)?;
    let mut dropped = 0;
    for table in ["hours", "gpu_hours", "reason_hours"] {
        dropped +=
            transaction.execute(&format!("DELETE FROM {table} WHERE hour < ?1"), [before])?;
    }
    let at = before.saturating_mul(int(HOUR));
    for table in ["totals", "instances"] {
        transaction.execute(
            &format!(
                "DELETE FROM {table} WHERE account IN
                    (SELECT account FROM accounts WHERE closed < ?1 AND {UNTOLD})"
            ),
            [at],
        )?;
    }
    dropped += transaction.execute(
        &format!("DELETE FROM accounts WHERE closed < ?1 AND {UNTOLD}"),
        [at],
    )?;
    transaction.execute(
        "DELETE FROM lives WHERE life < (SELECT life FROM meta)
            AND life NOT IN (SELECT life FROM accounts)",
        [],
    )?;
    transaction.commit()?;
    all.records += records;
    Ok(dropped)
}

/// What the file's tables take, free pages left out.
pub(super) fn used_bytes(connection: &Connection) -> Result<u64> {
    let pragma = |name| -> Result<u64> {
        let value: i64 = connection.pragma_query_value(None, name, |row| row.get(0))?;
        Ok(u64::try_from(value).unwrap_or(0))
    };
    let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
    Ok(pages.saturating_mul(pragma("page_size")?))
}
