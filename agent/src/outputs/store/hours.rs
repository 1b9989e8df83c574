//! What is moved into the tables of hours when an hour ends, when an account is closed, and when a
//! life of series ends.

use rusqlite::{Transaction, params};

use super::sql::{BOOK_COLUMNS, Result, int, list, number, sums};
use crate::core::model::WallTime;
use crate::core::records::Changes;

/// Moves all amounts that are not in the table `hours` into it, for that hour.
pub(super) fn end_hour(transaction: &Transaction<'_>, hour: i64) -> Result<()> {
    end_hour_of_accounts(transaction, hour, None)?;
    transaction.execute_batch("DELETE FROM settled;")?;
    let columns = list(str::to_owned);
    transaction.execute(
        &format!(
            "INSERT INTO settled (account, {columns})
            SELECT account, {} FROM totals t JOIN accounts USING (account) WHERE closed IS NULL",
            list(|amount| format!("t.{amount}"))
        ),
        [],
    )?;
    let each = |write: fn(&str) -> String| BOOK_COLUMNS.map(write).join(", ");
    transaction.execute(
        &format!(
            "INSERT INTO gpu_hours (hour, gpu, {}) SELECT ?1, gpu, {} FROM books WHERE true
            ON CONFLICT (hour, gpu) DO UPDATE SET {}",
            each(str::to_owned),
            each(|part| format!("coalesce({part}, 0) - settled_{part}")),
            each(|part| format!("{part} = {part} + excluded.{part}")),
        ),
        [hour],
    )?;
    let taken = each(|part| format!("settled_{part} = coalesce({part}, 0)"));
    transaction.execute(&format!("UPDATE books SET {taken}"), [])?;
    transaction.execute(
        "INSERT INTO reason_hours (hour, gpu, kind, reason, time)
        SELECT ?1, gpu, kind, reason, time - settled FROM reasons WHERE time <> settled
        ON CONFLICT (hour, gpu, kind, reason) DO UPDATE SET time = time + excluded.time",
        [hour],
    )?;
    transaction.execute("UPDATE reasons SET settled = time", [])?;
    Ok(())
}

/// Puts the amounts of one account, or of all, that are not in `hours` there.
fn end_hour_of_accounts(
    transaction: &Transaction<'_>,
    hour: i64,
    account: Option<i64>,
) -> Result<()> {
    let columns = list(str::to_owned);
    let sum = sums();
    transaction
        .prepare_cached(&format!(
            "INSERT INTO hours (hour, account, {columns})
            SELECT ?1, account, {columns} FROM unsettled WHERE ?2 IS NULL OR account = ?2
            ON CONFLICT (hour, account) DO UPDATE SET {sum}"
        ))?
        .execute(params![hour, account])?;
    Ok(())
}

/// Closes one account.
pub(super) fn close(
    transaction: &Transaction<'_>,
    account: i64,
    hour: i64,
    at: WallTime,
) -> Result<()> {
    end_hour_of_accounts(transaction, hour, Some(account))?;
    for table in ["settled", "series"] {
        transaction
            .prepare_cached(&format!("DELETE FROM {table} WHERE account = ?1"))?
            .execute([account])?;
    }
    transaction
        .prepare_cached("UPDATE accounts SET closed = ?2 WHERE account = ?1")?
        .execute(params![account, int(at.0)])?;
    Ok(())
}

/// Ends a life: all of it is in `hours`.
pub(super) fn close_open(transaction: &Transaction<'_>, at: WallTime) -> Result<()> {
    transaction.execute(
        "UPDATE accounts SET closed = ?1 WHERE closed IS NULL",
        [int(at.0)],
    )?;
    transaction.execute_batch(
        "DELETE FROM settled; DELETE FROM series; DELETE FROM namespaces;
        DELETE FROM books; DELETE FROM reasons;",
    )
}

/// Closes what is open and not among all that there is: its record was given up.
pub(super) fn close_unmentioned(
    transaction: &Transaction<'_>,
    life: i64,
    hour: i64,
    changes: &Changes,
) -> Result<()> {
    let mentioned: std::collections::HashSet<i64> = changes
        .accounts
        .iter()
        .map(|account| number(life, account.number))
        .collect();
    let open: Vec<i64> = transaction
        .prepare("SELECT account FROM accounts WHERE closed IS NULL")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_>>()?;
    for account in open.into_iter().filter(|open| !mentioned.contains(open)) {
        close(transaction, account, hour, changes.clock.wall)?;
    }
    Ok(())
}
