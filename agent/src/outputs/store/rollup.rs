//! Assigns amounts of a commit to earlier hours, or to no hour of this file.
//!
//! A commit has totals. The difference to the totals that are already assigned to hours belongs to
//! the present hour. This is wrong if the file is new within a life, if nothing could be written
//! for hours, or if no agent ran. Then this module assigns the difference to the hours in which it
//! was booked: see [`super::watermark`].
//!
//! If more accounts were closed than could be kept while the store failed, their amounts are
//! recorded under the owner `(overflow)`, so that a report still adds up.

use std::collections::{HashMap, HashSet};

use rusqlite::types::Value;
use rusqlite::{Transaction, params, params_from_iter};

use super::sql::{BOOK_COLUMNS, Result, amounts, gpu, int, list, number, parameters, sums};
use super::watermark::{Baseline, BookWatermark, MissedHour, Watermark, spread};
use crate::core::amounts::Amounts;
use crate::core::model::{Clock, GpuUuid, Nanos, UnobservedReason, WallTime};
use crate::core::records::{Changes, KeptReason};

/// Owner, and every other name, of amounts that could not be kept by name.
const OVERFLOW: &str = "(overflow)";

/// What a file that this one has taken the place of holds is not billed in this one too: it is
/// settled, and in no hour.
pub(super) fn elsewhere(
    transaction: &Transaction<'_>,
    life: i64,
    reached: &Watermark,
    changes: &Changes,
) -> Result<()> {
    for account in numbers(changes) {
        if let Some(before) = reached.accounts.get(&account) {
            roll_up_account(transaction, number(life, account), None, &before.amounts)?;
        }
    }
    for book in &changes.books {
        if let Some(before) = reached.books.get(&book.gpu.uuid) {
            roll_up_book(
                transaction,
                gpu(transaction, &book.gpu.uuid)?,
                None,
                parts(before),
            )?;
        }
    }
    for time in &changes.times {
        if let Some(before) = reached.times.get(&(time.gpu.clone(), time.reason)) {
            let gpu = gpu(transaction, &time.gpu)?;
            roll_up_time(transaction, gpu, None, time.reason, *before)?;
        }
    }
    Ok(())
}

/// Settles what a commit has of hours before the present one, and names what was given up.
pub(super) fn before(
    transaction: &Transaction<'_>,
    life: i64,
    present: i64,
    before: Baseline<'_>,
    changes: &Changes,
    known_closed: &[u32],
) -> Result<()> {
    let mut books = before.reached.books.clone();
    let mut times = before.reached.times.clone();
    for missed in before.missed {
        let MissedHour { hour, clock, .. } = *missed;
        for (uuid, reached) in &missed.reached.books {
            let was = books.insert(uuid.clone(), *reached).unwrap_or_default();
            let gpu = gpu(transaction, uuid)?;
            let mut grown = Vec::new();
            let of_it = missed.reached.times.iter();
            for ((_, reason), time) in of_it.filter(|((of, _), _)| of == uuid) {
                let was = times.insert((uuid.clone(), *reason), *time);
                grown.push((*reason, time.minus(was.unwrap_or_default())));
            }
            let span = Span {
                was,
                reached: *reached,
                clock,
                hour,
            };
            let moved = roll_up_unobserved(transaction, uuid, span, &mut grown)?;
            let (now, was) = (parts(reached), parts(&was));
            let mut rest: [i64; BOOK_COLUMNS.len()] =
                std::array::from_fn(|at| (now[at] - was[at]).max(0));
            rest[0] = (rest[0] - int(moved.0)).max(0);
            roll_up_book(transaction, gpu, Some(hour), rest)?;
            for (reason, time) in grown {
                roll_up_time(transaction, gpu, Some(hour), reason, time)?;
            }
        }
    }
    for book in &changes.books {
        let uuid = &book.gpu.uuid;
        let Some(was) = books.get(uuid) else { continue };
        let of_it = changes.times.iter().filter(|time| time.gpu == *uuid);
        let mut grown: Vec<_> = of_it
            .map(|time| {
                let was = times.get(&(time.gpu.clone(), time.reason));
                let was = was.copied().unwrap_or_default();
                (time.reason, time.time.minus(was))
            })
            .collect();
        let span = Span {
            was: *was,
            reached: book.into(),
            clock: changes.clock,
            hour: present,
        };
        // The rest of it is the present hour's, and not settled.
        roll_up_unobserved(transaction, uuid, span, &mut grown)?;
    }
    if changes.whole {
        roll_up_accounts(transaction, life, present, before, changes, known_closed)?;
    }
    Ok(())
}

/// Assigns amounts of accounts to the past hours in which they were booked, and writes records for
/// closed accounts that could not be kept.
fn roll_up_accounts(
    transaction: &Transaction<'_>,
    life: i64,
    present: i64,
    before: Baseline<'_>,
    changes: &Changes,
    known_closed: &[u32],
) -> Result<()> {
    let mentioned: HashSet<u32> = numbers(changes)
        .filter(|account| !known_closed.contains(account))
        .collect();
    let mut so_far: HashMap<u32, Amounts> = HashMap::new();
    let mut grow = |account: u32, now: Amounts| {
        let was = so_far.entry(account).or_insert_with(|| {
            let reached = before.reached.accounts.get(&account);
            reached.map_or(Amounts::ZERO, |reached| reached.amounts)
        });
        let grown = now.minus(*was);
        *was = was.max(now);
        grown
    };
    let mut owners = before.reached.owners();
    let mut given_up: HashMap<GpuUuid, Vec<(i64, Amounts)>> = HashMap::new();
    let mut give_up = |hour: i64, all: HashMap<GpuUuid, Amounts>, owned: Owned| {
        for (gpu, now) in all {
            let was = owners.insert(gpu.clone(), now).unwrap_or_default();
            let known = owned.get(&gpu).copied().unwrap_or_default();
            let lost = now.minus(was).minus(known);
            if !lost.is_zero() {
                given_up.entry(gpu).or_default().push((hour, lost));
            }
        }
    };
    for missed in before.missed {
        let mut owned = Owned::new();
        for (&account, reached) in &missed.reached.accounts {
            let grown = grow(account, reached.amounts);
            if mentioned.contains(&account) && !grown.is_zero() {
                *owned.entry(reached.gpu.clone()).or_default() += grown;
                let account = number(life, account);
                roll_up_account(transaction, account, Some(missed.hour), &grown)?;
            }
        }
        give_up(missed.hour, missed.owners.clone(), owned);
    }
    let mut now = Watermark::default();
    now.take(changes);
    let mut owned = Owned::new();
    for (&account, reached) in &now.accounts {
        if mentioned.contains(&account) {
            *owned.entry(reached.gpu.clone()).or_default() += grow(account, reached.amounts);
        }
    }
    give_up(present, now.owners(), owned);
    for (uuid, lost) in given_up {
        let gpu = gpu(transaction, &uuid)?;
        put_given_up(transaction, life, gpu, changes.clock.wall, &lost)?;
    }
    Ok(())
}

type Owned = HashMap<GpuUuid, Amounts>;

/// A record of what accounts held that nobody knows by name any more.
fn put_given_up(
    transaction: &Transaction<'_>,
    life: i64,
    gpu: i64,
    at: WallTime,
    lost: &[(i64, Amounts)],
) -> Result<()> {
    // Numbers that no account of the core has.
    transaction.execute(
        "INSERT INTO accounts (account, life, gpu, kind, owner, namespace, pod, container, pod_uid,
            container_id, image, runtime, attribution, source, labels, opened, held_since_boot, fed,
            closed)
        SELECT min(coalesce(min(account), 0), 0) - 1, ?1, ?2, 'container', ?3, ?3, ?3, ?3, ?3, ?3,
            ?3, ?3, 'overflow', NULL, '{}', ?4, 0, 0, ?4 FROM accounts",
        params![life, gpu, OVERFLOW, int(at.0)],
    )?;
    let account = transaction.last_insert_rowid();
    // Which instances they were on is given up with them; what is there now has the price.
    transaction.execute(
        "INSERT INTO instances (account, profile, parent, gpu_instance, compute_instance)
        SELECT ?1, profile, parent, gpu_instance, compute_instance
        FROM (SELECT json_extract(info, '$.mig.profile') AS profile,
                json_extract(info, '$.mig.parent') AS parent,
                json_extract(info, '$.mig.gpu_instance') AS gpu_instance,
                json_extract(info, '$.mig.compute_instance') AS compute_instance
            FROM gpus WHERE gpu = ?2 AND json_valid(info))
        WHERE profile IS NOT NULL AND parent IS NOT NULL AND gpu_instance IS NOT NULL
            AND compute_instance IS NOT NULL",
        [account, gpu],
    )?;
    let all: Amounts = lost.iter().map(|(_, amounts)| *amounts).sum();
    let values = [Value::from(account)]
        .into_iter()
        .chain(amounts(&all).map(Value::from));
    transaction.execute(
        &format!(
            "INSERT INTO totals (account, {}) VALUES (?1, {})",
            list(str::to_owned),
            parameters(2)
        ),
        params_from_iter(values),
    )?;
    for (hour, amounts) in lost {
        add_hour(transaction, account, *hour, amounts)?;
    }
    Ok(())
}

/// The accounts that a commit has something of, in no order.
fn numbers(changes: &Changes) -> impl Iterator<Item = u32> {
    let open = changes.accounts.iter().map(|account| account.number);
    open.chain(changes.closed.iter().map(|closed| closed.account.number))
}

/// From where to where a book has gone on.
#[derive(Clone, Copy)]
struct Span {
    was: BookWatermark,
    reached: BookWatermark,
    clock: Clock,
    hour: i64,
}

/// Puts unobserved time into the hours before the span's that it was in, and takes it out of `grown`.
/// Returns how much that was.
fn roll_up_unobserved(
    transaction: &Transaction<'_>,
    uuid: &GpuUuid,
    span: Span,
    grown: &mut [(KeptReason, Nanos)],
) -> Result<Nanos> {
    let unobserved: Vec<(UnobservedReason, Nanos)> = grown
        .iter()
        .filter_map(|(reason, time)| match reason {
            KeptReason::Unobserved(reason) => Some((*reason, *time)),
            KeptReason::Unattributed(_) => None,
        })
        .collect();
    let Span {
        was,
        reached,
        clock,
        hour,
    } = span;
    let mut moved = Nanos::ZERO;
    for (hour, reason, time) in spread(was.through, reached.through, unobserved, clock, hour) {
        let gpu = gpu(transaction, uuid)?;
        let mut of = [0; BOOK_COLUMNS.len()];
        of[0] = int(time.0);
        roll_up_book(transaction, gpu, Some(hour), of)?;
        let reason = KeptReason::Unobserved(reason);
        roll_up_time(transaction, gpu, Some(hour), reason, time)?;
        if let Some((_, left)) = grown.iter_mut().find(|(of, _)| *of == reason) {
            *left = left.minus(time);
        }
        moved += time;
    }
    Ok(moved)
}

/// An account's amounts, settled in an hour of this file or in none.
fn roll_up_account(
    transaction: &Transaction<'_>,
    account: i64,
    hour: Option<i64>,
    settled: &Amounts,
) -> Result<()> {
    if let Some(hour) = hour {
        add_hour(transaction, account, hour, settled)?;
    }
    let values = [Value::from(account)]
        .into_iter()
        .chain(amounts(settled).map(Value::from));
    transaction
        .prepare_cached(&format!(
            "INSERT INTO settled (account, {}) VALUES (?1, {})
            ON CONFLICT (account) DO UPDATE SET {}",
            list(str::to_owned),
            parameters(2),
            sums(),
        ))?
        .execute(params_from_iter(values))?;
    Ok(())
}

fn add_hour(transaction: &Transaction<'_>, account: i64, hour: i64, used: &Amounts) -> Result<()> {
    let values = [Value::from(hour), Value::from(account)]
        .into_iter()
        .chain(amounts(used).map(Value::from));
    transaction
        .prepare_cached(&format!(
            "INSERT INTO hours (hour, account, {}) VALUES (?1, ?2, {})
            ON CONFLICT (hour, account) DO UPDATE SET {}",
            list(str::to_owned),
            parameters(3),
            sums(),
        ))?
        .execute(params_from_iter(values))?;
    Ok(())
}

fn parts(book: &BookWatermark) -> [i64; BOOK_COLUMNS.len()] {
    [
        int(book.elapsed.0),
        int(book.busy.0),
        int(book.idle.0),
        int(book.energy.total.0),
        int(book.energy.idle.0),
        int(book.energy.unattributed.0),
    ]
}

/// Settles a book: the hour, if there is one, gets what was not settled.
fn roll_up_book(
    transaction: &Transaction<'_>,
    gpu: i64,
    hour: Option<i64>,
    settled: [i64; BOOK_COLUMNS.len()],
) -> Result<()> {
    let each = |write: fn(usize, &str) -> String| {
        let all = BOOK_COLUMNS.iter().enumerate();
        let all: Vec<_> = all.map(|(at, part)| write(at + 1, part)).collect();
        all.join(", ")
    };
    let values = || settled.into_iter().map(Value::from);
    let rest = [Value::from(gpu)];
    if let Some(hour) = hour {
        transaction
            .prepare_cached(&format!(
                "INSERT INTO gpu_hours ({}, gpu, hour) VALUES ({}, ?7, ?8)
                ON CONFLICT (hour, gpu) DO UPDATE SET {}",
                each(|_, part| part.to_owned()),
                each(|at, _| format!("?{at}")),
                each(|_, part| format!("{part} = {part} + excluded.{part}")),
            ))?
            .execute(params_from_iter(
                values().chain(rest.clone()).chain([Value::from(hour)]),
            ))?;
    }
    transaction
        .prepare_cached(&format!(
            "UPDATE books SET {} WHERE gpu = ?7",
            each(|at, part| format!("settled_{part} = settled_{part} + ?{at}")),
        ))?
        .execute(params_from_iter(values().chain(rest)))?;
    Ok(())
}

/// Settles the time of one reason in the same way.
fn roll_up_time(
    transaction: &Transaction<'_>,
    gpu: i64,
    hour: Option<i64>,
    reason: KeptReason,
    time: Nanos,
) -> Result<()> {
    if time.is_zero() {
        return Ok(());
    }
    let (kind, reason) = reason_words(reason);
    let time = int(time.0);
    if let Some(hour) = hour {
        transaction
            .prepare_cached(
                "INSERT INTO reason_hours (hour, gpu, kind, reason, time)
                VALUES (?1, ?2, ?3, ?4, ?5)
                ON CONFLICT (hour, gpu, kind, reason) DO UPDATE SET time = time + excluded.time",
            )?
            .execute(params![hour, gpu, kind, reason, time])?;
    }
    transaction
        .prepare_cached(
            "UPDATE reasons SET settled = settled + ?4
            WHERE gpu = ?1 AND kind = ?2 AND reason = ?3",
        )?
        .execute(params![gpu, kind, reason, time])?;
    Ok(())
}

const fn reason_words(reason: KeptReason) -> (&'static str, &'static str) {
    match reason {
        KeptReason::Unattributed(reason) => ("unattributed", reason.as_str()),
        KeptReason::Unobserved(reason) => ("unobserved", reason.as_str()),
    }
}
