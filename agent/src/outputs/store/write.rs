//! One commit of the core, written as one transaction.
//!
//! Either all of a commit is in the file or nothing of it. Amounts are written whole, never added
//! to what is there, so a commit that is written twice is written once.
//!
//! # What it costs
//!
//! Where processes hold a GPU, each commit has the totals of every open account. Two
//! things decide what that takes. A row that is there is updated in place: `INSERT OR REPLACE` would
//! delete it and insert another, which with foreign keys, that are on here, is looked up in every
//! table that refers or is referred to. And what is written for many rows is prepared once for all
//! of them.

use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::error::StoreError;
use super::hours::{close, close_open, close_unmentioned, end_hour};
use super::read::Meta;
use super::rollup;
use super::schema::AMOUNTS;
use super::sql::{Result, amounts, gpu, hour, int, list, list_of, number, parameters, text};
use super::watermark::Baseline;
use crate::core::input::GpuInfo;
use crate::core::model::{BootTime, ProcessId};
use crate::core::records::{
    Changes, KeptAccount, KeptBook, KeptNamespace, KeptReason, KeptSeries, KeptTime, KeptTotals,
};
use crate::core::snapshot::Attribution;

/// Where a commit goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Into<'a> {
    /// The present life.
    Life(&'a Meta),
    /// A new one, which begins with it. `before` is what the file holds, if anything.
    New {
        before: Option<&'a Meta>,
        /// The kernel's boot id.
        boot: &'a str,
        /// Why a new life begins.
        reason: &'static str,
    },
}

/// Writes a commit of the agent on `node` and returns the row of `meta` that is in force after it.
pub(super) fn write(
    connection: &mut Connection,
    into: Into<'_>,
    node: &str,
    before: Baseline<'_>,
    changes: &Changes,
) -> std::result::Result<Meta, StoreError> {
    transact(connection, into, node, before, changes).map_err(StoreError::sqlite("write a commit"))
}

fn transact(
    connection: &mut Connection,
    into: Into<'_>,
    node: &str,
    before: Baseline<'_>,
    changes: &Changes,
) -> Result<Meta> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let hour = hour(changes.clock.wall);
    let (store, life) = match into {
        Into::Life(meta) => {
            if meta.hour != hour {
                end_hour(&transaction, meta.hour)?;
            }
            (meta.store.clone(), meta.life)
        }
        Into::New {
            before,
            boot,
            reason,
        } => {
            if let Some(before) = before {
                end_hour(&transaction, before.hour)?;
                // Nothing is known of them since.
                close_open(&transaction, before.clock.wall)?;
            }
            let began = int(changes.clock.wall.0);
            transaction.execute(
                "INSERT INTO lives (boot, began, reason) VALUES (?1, ?2, ?3)",
                params![boot, began, reason],
            )?;
            let life = transaction.last_insert_rowid();
            let store = match before {
                Some(before) => before.store.clone(),
                None => {
                    transaction.query_row("SELECT lower(hex(randomblob(16)))", [], |r| r.get(0))?
                }
            };
            (store, life)
        }
    };
    let meta = Meta {
        store,
        life,
        hour,
        sequence: changes.sequence,
        clock: changes.clock,
    };
    transaction
        .prepare_cached(
            "INSERT INTO meta (one, store, life, hour, sequence, commit_boot, committed, version,
                node)
            VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
            ON CONFLICT (one) DO UPDATE SET store = ?1, life = ?2, hour = ?3, sequence = ?4,
                commit_boot = ?5, committed = ?6, version = ?7, node = ?8",
        )?
        .execute(params![
            meta.store,
            meta.life,
            meta.hour,
            int(meta.sequence),
            int(meta.clock.boot.0),
            int(meta.clock.wall.0),
            env!("CARGO_PKG_VERSION"),
            node,
        ])?;
    if changes.whole {
        transaction.execute_batch("DELETE FROM namespaces; DELETE FROM series;")?;
    }
    for book in &changes.books {
        put_book(&transaction, book)?;
    }
    for time in &changes.times {
        put_time(&transaction, time)?;
    }
    let is_new = matches!(into, Into::New { .. });
    let mut known_closed = Vec::new();
    let mut to_close = Vec::new();
    for closed in &changes.closed {
        let account = number(life, closed.account.number);
        let known = transaction
            .prepare_cached("SELECT closed FROM accounts WHERE account = ?1")?
            .query_row([account], |row| row.get::<_, Option<i64>>(0));
        if let Ok(Some(_)) = known {
            // Handed over again, since nobody said that it was kept.
            known_closed.push(closed.account.number);
            continue;
        }
        put_account(&transaction, life, &closed.account)?;
        put_totals(&transaction, life, std::slice::from_ref(&closed.totals))?;
        to_close.push((account, closed.at));
    }
    for account in &changes.accounts {
        put_account(&transaction, life, account)?;
    }
    put_totals(&transaction, life, &changes.totals)?;
    if is_new {
        rollup::elsewhere(&transaction, life, before.reached, changes)?;
    }
    rollup::before(&transaction, life, hour, before, changes, &known_closed)?;
    for (account, at) in to_close {
        close(&transaction, account, hour, at)?;
    }
    if changes.whole {
        close_unmentioned(&transaction, life, hour, changes)?;
    }
    put_namespaces(&transaction, &changes.namespaces)?;
    put_processes(&transaction, changes)?;
    put_allocations(&transaction, changes)?;
    transaction.commit()?;
    Ok(meta)
}

/// The number of a GPU of which that is known, which is given one if it has none.
fn put_gpu(transaction: &Transaction<'_>, info: &GpuInfo) -> Result<i64> {
    let text = serde_json::to_string(info)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let known = transaction
        .prepare_cached("SELECT gpu FROM gpus WHERE uuid = ?1 AND info = ?2")?
        .query_row(params![info.uuid.as_str(), text], |row| row.get(0))
        .optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    transaction
        .prepare_cached(
            "INSERT INTO gpus (uuid, place, model, driver, info) VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (uuid) DO UPDATE SET place = ?2, model = ?3, driver = ?4, info = ?5",
        )?
        .execute(params![
            info.uuid.as_str(),
            info.index,
            info.model,
            info.driver,
            text,
        ])?;
    gpu(transaction, &info.uuid)
}

fn put_book(transaction: &Transaction<'_>, book: &KeptBook) -> Result<()> {
    let gpu = put_gpu(transaction, &book.gpu)?;
    let energy = book.energy.unwrap_or_default();
    let of_energy = book.energy.map(|energy| int(energy.total.0));
    let mut values = vec![
        Some(gpu),
        Some(int(book.start.0)),
        book.through.map(|through| int(through.0)),
        Some(int(book.elapsed.0)),
        Some(int(book.busy.0)),
        Some(int(book.idle.0)),
        of_energy,
        Some(int(energy.idle.0)),
        Some(int(energy.unattributed.0)),
        Some(int(book.windows)),
        Some(int(book.torn_windows)),
        Some(int(book.invalid_rows)),
        Some(int(book.cut.0)),
    ];
    let first = values.len() + 1;
    values.extend(amounts(&book.closed).map(Some));
    transaction
        .prepare_cached(&format!(
            "INSERT INTO books (gpu, start, through_boot, elapsed, busy, idle, energy, energy_idle,
                energy_unattributed, windows, torn_windows, invalid_rows, cut, {})
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, {})
            ON CONFLICT (gpu) DO UPDATE SET start = ?2, through_boot = ?3, elapsed = ?4, busy = ?5,
                idle = ?6, energy = ?7, energy_idle = ?8, energy_unattributed = ?9, windows = ?10,
                torn_windows = ?11, invalid_rows = ?12, cut = ?13, {}",
            list(|amount| format!("closed_{amount}")),
            parameters(first),
            list_of("closed_", first),
        ))?
        .execute(rusqlite::params_from_iter(values))?;
    Ok(())
}

fn put_time(transaction: &Transaction<'_>, time: &KeptTime) -> Result<()> {
    let (kind, reason) = match time.reason {
        KeptReason::Unattributed(reason) => ("unattributed", reason.as_str()),
        KeptReason::Unobserved(reason) => ("unobserved", reason.as_str()),
    };
    let gpu = gpu(transaction, &time.gpu)?;
    transaction
        .prepare_cached(
            "INSERT INTO reasons (gpu, kind, reason, time) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (gpu, kind, reason) DO UPDATE SET time = ?4",
        )?
        .execute(params![gpu, kind, reason, int(time.time.0)])?;
    Ok(())
}

fn put_account(transaction: &Transaction<'_>, life: i64, kept: &KeptAccount) -> Result<()> {
    let account = number(life, kept.number);
    let (attribution, source) = match kept.attribution {
        None => ("host", None),
        Some(Attribution::Held) => ("held", None),
        Some(Attribution::Named { source }) => ("named", Some(source.as_str())),
        Some(Attribution::IdOnly { reason }) => ("id_only", Some(reason.as_str())),
    };
    let labels = serde_json::to_string(&*kept.runtime_labels)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    transaction
        .prepare_cached(
            "INSERT INTO accounts (account, life, gpu, kind, owner, namespace, pod, container,
                pod_uid, container_id, image, runtime, attribution, source, labels, opened,
                held_since_boot, ended_boot, fed)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                ?18, ?19)
            ON CONFLICT (account) DO UPDATE SET namespace = ?6, pod = ?7, container = ?8,
                pod_uid = ?9, container_id = ?10, image = ?11, runtime = ?12, attribution = ?13,
                source = ?14, labels = ?15, held_since_boot = ?17, ended_boot = ?18, fed = ?19",
        )?
        .execute(params![
            account,
            life,
            gpu(transaction, &kept.gpu)?,
            kept.kind.as_str(),
            kept.owner_id,
            kept.labels.namespace,
            kept.labels.pod,
            kept.labels.container,
            kept.labels.pod_uid,
            kept.labels.container_id,
            kept.image,
            kept.runtime,
            attribution,
            source,
            labels,
            int(kept.opened.0),
            int(kept.held_since.0),
            kept.ended.map(|BootTime(ended)| int(ended)),
            kept.fed,
        ])?;
    if let Some(mig) = &kept.mig {
        transaction
            .prepare_cached(
                "INSERT INTO instances (account, profile, parent, gpu_instance, compute_instance)
                VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (account) DO NOTHING",
            )?
            .execute(params![
                account,
                mig.profile,
                mig.parent.as_str(),
                mig.gpu_instance,
                mig.compute_instance,
            ])?;
    }
    for (kind, series) in [("id_only", &kept.id_only), ("named", &kept.named)] {
        if let Some(series) = series {
            put_series(transaction, account, kind, series)?;
        }
    }
    Ok(())
}

fn put_series(
    transaction: &Transaction<'_>,
    account: i64,
    kind: &str,
    kept: &KeptSeries,
) -> Result<()> {
    transaction
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO series (account, kind, namespace, pod, container, pod_uid,
                container_id, start, shown_boot, changed_boot, follows, {})
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, {})",
            list(str::to_owned),
            parameters(12),
        ))?
        .execute(rusqlite::params_from_iter(
            [
                Value::from(account),
                text(&Arc::from(kind)),
                text(&kept.labels.namespace),
                text(&kept.labels.pod),
                text(&kept.labels.container),
                text(&kept.labels.pod_uid),
                text(&kept.labels.container_id),
                int(kept.start.0).into(),
                int(kept.shown.0).into(),
                int(kept.changed.0).into(),
                kept.follows.into(),
            ]
            .into_iter()
            .chain(amounts(&kept.shows).map(Value::from)),
        ))?;
    Ok(())
}

fn put_totals(transaction: &Transaction<'_>, life: i64, all: &[KeptTotals]) -> Result<()> {
    let first = 9;
    let mut put = transaction.prepare_cached(&format!(
        "INSERT INTO totals (account, memory_peak, processes_started, first_used, last_used,
            changed_boot, since_boot, allocated_through_boot, {})
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, {})
        ON CONFLICT (account) DO UPDATE SET memory_peak = ?2, processes_started = ?3,
            first_used = ?4, last_used = ?5, changed_boot = ?6, since_boot = ?7,
            allocated_through_boot = ?8, {}",
        list(str::to_owned),
        parameters(first),
        list_of("", first),
    ))?;
    for kept in all {
        let others = [
            Some(number(life, kept.number)),
            kept.memory_peak.map(int),
            Some(int(kept.processes_started)),
            kept.first_used.map(|at| int(at.0)),
            kept.last_used.map(|at| int(at.0)),
            Some(int(kept.changed.0)),
            kept.since.map(|at| int(at.0)),
            kept.allocated_through.map(|at| int(at.0)),
        ];
        let amounts = amounts(&kept.amounts).map(Some);
        put.execute(rusqlite::params_from_iter(
            others.into_iter().chain(amounts),
        ))?;
    }
    Ok(())
}

fn put_namespaces(transaction: &Transaction<'_>, all: &[KeptNamespace]) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let (whole, shown) = (6, 6 + AMOUNTS.len());
    let mut put = transaction.prepare_cached(&format!(
        "INSERT INTO namespaces (gpu, namespace, start, shown_boot, changed_boot, {}, {})
        VALUES (?1, ?2, ?3, ?4, ?5, {}, {})
        ON CONFLICT (gpu, namespace) DO UPDATE SET start = ?3, shown_boot = ?4, changed_boot = ?5,
            {}, {}",
        list(str::to_owned),
        list(|amount| format!("shown_{amount}")),
        parameters(whole),
        parameters(shown),
        list_of("", whole),
        list_of("shown_", shown),
    ))?;
    for kept in all {
        put.execute(rusqlite::params_from_iter(
            [
                Value::from(gpu(transaction, &kept.gpu)?),
                text(&kept.namespace),
                int(kept.start.0).into(),
                int(kept.shown.0).into(),
                int(kept.changed.0).into(),
            ]
            .into_iter()
            .chain(amounts(&kept.amounts).map(Value::from))
            .chain(amounts(&kept.shows).map(Value::from)),
        ))?;
    }
    Ok(())
}

/// Processes, only those of which there is news.
fn put_processes(transaction: &Transaction<'_>, changes: &Changes) -> Result<()> {
    if changes.whole {
        transaction.execute("DELETE FROM processes", [])?;
    }
    for ProcessId { pid, start } in &changes.gone {
        transaction
            .prepare_cached("DELETE FROM processes WHERE pid = ?1 AND ticks = ?2")?
            .execute(params![pid.0, int(start.0)])?;
    }
    let json = |text: serde_json::Result<String>| {
        text.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
    };
    for kept in &changes.processes {
        let moved = kept.moved.as_ref();
        let before = moved.map(|(cgroups, _)| json(serde_json::to_string(&**cgroups)));
        transaction
            .prepare_cached(
                "INSERT INTO processes (pid, ticks, start_boot, by_event, exit_boot, exit_reported,
                    cgroups, before, moved_boot, accounts)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                ON CONFLICT (pid, ticks) DO UPDATE SET start_boot = ?3, by_event = ?4,
                    exit_boot = ?5, exit_reported = ?6, cgroups = ?7, before = ?8,
                    moved_boot = ?9, accounts = ?10",
            )?
            .execute(params![
                kept.pid.0,
                int(kept.process().start.0),
                int(kept.start.0),
                kept.by_event,
                kept.exit.map(|BootTime(exit)| int(exit)),
                kept.exit_reported,
                json(serde_json::to_string(&*kept.cgroups))?,
                before.transpose()?,
                moved.and_then(|(_, seen)| seen.map(|BootTime(seen)| int(seen))),
                json(serde_json::to_string(&kept.accounts))?,
            ])?;
    }
    Ok(())
}

/// What the kubelet has given, only of those of which there is news.
fn put_allocations(transaction: &Transaction<'_>, changes: &Changes) -> Result<()> {
    if changes.whole {
        transaction.execute("DELETE FROM allocations", [])?;
    }
    for container in &changes.allocations_gone {
        transaction
            .prepare_cached("DELETE FROM allocations WHERE container = ?1")?
            .execute([container.as_str()])?;
    }
    for kept in &changes.allocations {
        let devices = serde_json::to_string(&kept.grants)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        transaction
            .prepare_cached(
                "INSERT INTO allocations (container, namespace, pod, name, devices)
                VALUES (?1, ?2, ?3, ?4, ?5)
                ON CONFLICT (container) DO UPDATE SET namespace = ?2, pod = ?3, name = ?4,
                    devices = ?5",
            )?
            .execute(params![
                kept.container.as_str(),
                kept.name.namespace,
                kept.name.pod,
                kept.name.container,
                devices,
            ])?;
    }
    Ok(())
}

/// Since when the wall clock has held.
pub(super) fn put_held(
    connection: &Connection,
    since: Option<BootTime>,
) -> std::result::Result<(), StoreError> {
    let since = since.map(|BootTime(since)| int(since));
    connection
        .execute(
            "INSERT OR REPLACE INTO held (one, since_boot) SELECT 1, ?1 WHERE ?1 IS NOT NULL",
            [since],
        )
        .map(drop)
        .map_err(StoreError::sqlite("note the clock"))
}
