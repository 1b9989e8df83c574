//! Which hours of accounts and GPUs are still to be sent as usage records.
//!
//! ```text
//!               offered to the exporter            acknowledged
//!   hour over ──▶ due ──────────────▶ offered ──────────────▶ settled
//!                  ▲                     │                       │
//!                  └──── the hour or its names change later ─────┘
//! ```
//!
//! A record is offered in a transaction of its own before it is sent. So an agent that is killed between
//! sending and its answer leaves the record as offered, and the next agent sends the same revision with
//! the same content. A change makes it due again, as the next revision.
//!
//! A commit has no work with it, but for one transaction when an hour is over: its rows are entered
//! ([`enter`]). The exporter asks for what is due ([`offer`]) and says what became of it ([`settle`]).
//! The schema's triggers make a row due again.
//!
//! An account whose names are still awaited is not offered. It is offered once they are known, or once
//! the next hour is over, without names.

use std::sync::Arc;

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use super::error::StoreError;
use super::sql::{HOUR, Result, amounts_from, int, list, unsigned};
use crate::core::amounts::Millijoules;
use crate::core::model::{Nanos, WallTime};
use crate::published::RecordsBook;
use crate::usage_record::{
    AccountHour, GpuHour, RecordContent, RecordKey, RecordedGpu, Subject, UsageRecord,
};

/// Accounts whose names are awaited and whose hour is the last one that is over.
const AWAITED: &str =
    "a.attribution = 'held' AND a.closed IS NULL AND r.hour >= (SELECT hour FROM meta) - 1";

/// Enters the hours that are over and have not been entered yet. Hours without any use are left out.
pub(super) fn enter(connection: &mut Connection) -> std::result::Result<(), StoreError> {
    try_enter(connection).map_err(StoreError::sqlite("enter usage records"))
}

fn try_enter(connection: &mut Connection) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let is_used = list(|amount| format!("{amount} <> 0")).replace(", ", " OR ");
    let of_hours = "hour >= coalesce((SELECT hour FROM records_through), hour)
        AND hour < (SELECT hour FROM meta)";
    transaction.execute_batch(&format!(
        "INSERT INTO account_records (account, hour, revision, state)
            SELECT account, hour, 0, 'due' FROM hours WHERE {of_hours} AND ({is_used})
            ON CONFLICT (account, hour) DO NOTHING;
        INSERT INTO gpu_records (gpu, hour, revision, state)
            SELECT gpu, hour, 0, 'due' FROM gpu_hours WHERE {of_hours} AND elapsed > 0
            ON CONFLICT (gpu, hour) DO NOTHING;
        INSERT INTO records_through (one, hour) SELECT 1, hour FROM meta WHERE true
            ON CONFLICT (one) DO UPDATE SET hour = max(hour, excluded.hour);"
    ))?;
    transaction.commit()
}

/// The oldest records that are due or were offered and not settled, `most` at most. They are noted as
/// offered.
pub(super) fn offer(
    connection: &mut Connection,
    most: usize,
) -> std::result::Result<Vec<UsageRecord>, StoreError> {
    try_offer(connection, most).map_err(StoreError::sqlite("offer usage records"))
}

fn try_offer(connection: &mut Connection, most: usize) -> Result<Vec<UsageRecord>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let records = due(&transaction, most)?;
    for UsageRecord { key, .. } in &records {
        let (table, column, number) = place(key.subject);
        transaction
            .prepare_cached(&format!(
                "UPDATE {table} SET revision = ?3, state = 'offered'
                WHERE {column} = ?1 AND hour = ?2"
            ))?
            .execute(params![number, key.hour, key.revision])?;
    }
    transaction.commit()?;
    Ok(records)
}

/// The oldest records that are due or were offered, `most` at most, with the revisions that they are
/// sent as.
pub(super) fn due(connection: &Connection, most: usize) -> Result<Vec<UsageRecord>> {
    let mut records = due_accounts(connection, most)?;
    records.extend(due_gpus(connection, most - records.len())?);
    Ok(records)
}

/// Notes that these revisions need not be sent again. One that has changed since it was offered is due
/// and stays so.
pub(super) fn settle(
    connection: &mut Connection,
    keys: &[RecordKey],
) -> std::result::Result<(), StoreError> {
    try_settle(connection, keys).map_err(StoreError::sqlite("settle usage records"))
}

fn try_settle(connection: &mut Connection, keys: &[RecordKey]) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for key in keys {
        let (table, column, number) = place(key.subject);
        transaction
            .prepare_cached(&format!(
                "UPDATE {table} SET state = 'settled' WHERE {column} = ?1 AND hour = ?2
                    AND revision = ?3 AND state = 'offered'"
            ))?
            .execute(params![number, key.hour, key.revision])?;
    }
    transaction.commit()
}

/// How many records are not settled, and when the hour of the oldest ended.
pub(super) fn standing(connection: &Connection) -> std::result::Result<RecordsBook, StoreError> {
    let (unsettled, oldest): (i64, Option<i64>) = connection
        .query_row(
            "SELECT count(*), min(hour) FROM (
                SELECT hour FROM account_records WHERE state <> 'settled'
                UNION ALL SELECT hour FROM gpu_records WHERE state <> 'settled'
            ) WHERE hour < (SELECT hour FROM meta)",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(StoreError::sqlite("count usage records"))?;
    Ok(RecordsBook {
        unsettled: u64::try_from(unsettled).unwrap_or(0),
        oldest_ended: oldest.map(end_of),
        dropped: 0,
    })
}

/// Forgets the records of hours before `before`, which are about to be dropped. Returns how many of
/// them were not settled.
pub(super) fn forget(transaction: &Transaction<'_>, before: i64) -> Result<u64> {
    let mut lost = 0;
    for table in ["account_records", "gpu_records"] {
        let unsettled: i64 = transaction.query_row(
            &format!("SELECT count(*) FROM {table} WHERE state <> 'settled' AND hour < ?1"),
            [before],
            |row| row.get(0),
        )?;
        lost += u64::try_from(unsettled).unwrap_or(0);
        transaction.execute(&format!("DELETE FROM {table} WHERE hour < ?1"), [before])?;
    }
    Ok(lost)
}

/// Table, column and number of a subject.
const fn place(subject: Subject) -> (&'static str, &'static str, i64) {
    match subject {
        Subject::Account(account) => ("account_records", "account", account),
        Subject::Gpu(gpu) => ("gpu_records", "gpu", gpu),
    }
}

/// When an hour ends. Hours of a wrong clock are cut.
fn end_of(hour: i64) -> WallTime {
    let hour = u64::try_from(hour).unwrap_or(0);
    WallTime(hour.saturating_add(1).saturating_mul(HOUR))
}

/// The revision that a row is sent as: a new one if it is due.
fn revision(row: &Row<'_>, column: usize) -> Result<i64> {
    let last: i64 = row.get(column)?;
    let state: Box<str> = row.get(column + 1)?;
    Ok(last.saturating_add(i64::from(&*state == "due")))
}

fn due_accounts(connection: &Connection, most: usize) -> Result<Vec<UsageRecord>> {
    // The number of an account has its life in the upper half. A life is known by when it began: its
    // number may be given anew after an older copy of the file was put back.
    let mut due = connection.prepare_cached(&format!(
        "SELECT r.account, r.hour, r.revision, r.state, (SELECT store FROM meta), l.began,
            g.uuid, g.model, i.profile, i.parent, a.kind, a.owner, a.namespace, a.pod, a.container,
            a.pod_uid, a.container_id, a.image, a.runtime, a.attribution, a.labels, {}
        FROM account_records r JOIN hours h USING (account, hour) JOIN accounts a USING (account)
            JOIN lives l USING (life) JOIN gpus g ON g.gpu = a.gpu
            LEFT JOIN instances i ON i.account = a.account
        WHERE r.state <> 'settled' AND r.hour < (SELECT hour FROM meta) AND NOT ({AWAITED})
        ORDER BY r.hour, r.account LIMIT ?1",
        list(|amount| format!("h.{amount}")),
    ))?;
    let rows = due.query_map([limit(most)], |row| {
        let key = RecordKey {
            subject: Subject::Account(row.get(0)?),
            hour: row.get(1)?,
            revision: revision(row, 2)?,
        };
        let (account, store, began): (i64, Box<str>, i64) = (row.get(0)?, row.get(4)?, row.get(5)?);
        let gpu = RecordedGpu {
            uuid: row.get(6)?,
            model: row.get(7)?,
            profile: row.get(8)?,
            parent: row.get(9)?,
        };
        Ok(UsageRecord {
            key,
            id: format!("{store}/{began}/{}/{account}/{}", gpu.uuid, key.hour),
            gpu,
            content: RecordContent::Account(Box::new(AccountHour {
                kind: row.get(10)?,
                owner: row.get(11)?,
                namespace: row.get(12)?,
                pod: row.get(13)?,
                container: row.get(14)?,
                pod_uid: row.get(15)?,
                container_id: row.get(16)?,
                image: row.get(17)?,
                runtime: row.get(18)?,
                attribution: row.get(19)?,
                labels: row.get(20)?,
                amounts: amounts_from(row, 21)?,
            })),
        })
    })?;
    rows.collect()
}

fn due_gpus(connection: &Connection, most: usize) -> Result<Vec<UsageRecord>> {
    let mut due = connection.prepare_cached(
        "SELECT r.gpu, r.hour, r.revision, r.state, (SELECT store FROM meta), g.uuid, g.model,
            CASE WHEN json_valid(g.info) THEN json_extract(g.info, '$.mig.profile') END,
            CASE WHEN json_valid(g.info) THEN json_extract(g.info, '$.mig.parent') END,
            h.elapsed, h.busy, h.idle, h.energy, h.energy_idle, h.energy_unattributed
        FROM gpu_records r JOIN gpu_hours h USING (gpu, hour) JOIN gpus g USING (gpu)
        WHERE r.state <> 'settled' AND r.hour < (SELECT hour FROM meta)
        ORDER BY r.hour, r.gpu LIMIT ?1",
    )?;
    let rows = due.query_map([limit(most)], |row| {
        let key = RecordKey {
            subject: Subject::Gpu(row.get(0)?),
            hour: row.get(1)?,
            revision: revision(row, 2)?,
        };
        let store: Box<str> = row.get(4)?;
        let gpu = RecordedGpu {
            uuid: row.get(5)?,
            model: row.get(6)?,
            profile: row.get(7)?,
            parent: row.get(8)?,
        };
        let nanos = |at| unsigned(row, at).map(Nanos);
        let energy = |at| unsigned(row, at).map(Millijoules);
        let hour = GpuHour {
            elapsed: nanos(9)?,
            busy: nanos(10)?,
            idle: nanos(11)?,
            energy: energy(12)?,
            energy_idle: energy(13)?,
            energy_unattributed: energy(14)?,
            ..GpuHour::default()
        };
        let id = format!("{store}/{}/{}", gpu.uuid, key.hour);
        Ok((key, id, gpu, hour))
    })?;
    let rows: Vec<_> = rows.collect::<Result<_>>()?;
    let mut reasons = connection.prepare_cached(
        "SELECT kind, reason, time FROM reason_hours WHERE hour = ?1 AND gpu = ?2 AND time <> 0
        ORDER BY kind, reason",
    )?;
    let mut records = Vec::with_capacity(rows.len());
    for (key, id, gpu, mut hour) in rows {
        let (_, _, number) = place(key.subject);
        let mut found = reasons.query([key.hour, number])?;
        while let Some(row) = found.next()? {
            let kind: Box<str> = row.get(0)?;
            let reason: (Arc<str>, Nanos) = (row.get(1)?, Nanos(unsigned(row, 2)?));
            match &*kind {
                "unobserved" => hour.unobserved.push(reason),
                _ => hour.unattributed.push(reason),
            }
        }
        records.push(UsageRecord {
            key,
            id,
            gpu,
            content: RecordContent::Gpu(hour),
        });
    }
    Ok(records)
}

/// A limit of rows as SQLite has it.
fn limit(most: usize) -> i64 {
    int(most as u64)
}

#[cfg(test)]
mod tests;
