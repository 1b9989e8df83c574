//! What is kept as open, read back.
//!
//! The file is outside data: an impossible value is an error with its place and value, and the
//! caller begins a new life.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::error::StoreError;
use super::schema::MEMORY_LOW_BITS;
use super::sql::list;
use crate::core::amounts::{Amounts, ByteSeconds, Engines, Millijoules};
use crate::core::input::{GpuInfo, IdentitySource, MigInfo};
use crate::core::model::{
    BootTime, Clock, ContainerId, GpuUuid, Nanos, Pid, UnattributedReason, UnobservedReason,
    WallTime,
};
use crate::core::records::{
    Cgroups, GivenName, KeptAccount, KeptAllocation, KeptBook, KeptNamespace, KeptProcess,
    KeptReason, KeptSeries, KeptTime, KeptTotals, OwnerKind, PersistedState,
};
use crate::core::snapshot::{Attribution, ContainerLabels, EnergyBook, IdOnlyReason};

/// The one row of `meta`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) store: String,
    pub(super) life: i64,
    pub(super) hour: i64,
    pub(super) sequence: u64,
    pub(super) clock: Clock,
}

type Result<T> = std::result::Result<T, StoreError>;

/// Reads columns one after another.
struct Columns<'a, 'r> {
    table: &'static str,
    row: &'a Row<'r>,
    at: usize,
}

impl<'a, 'r> Columns<'a, 'r> {
    const fn new(table: &'static str, row: &'a Row<'r>) -> Self {
        Self { table, row, at: 0 }
    }

    fn next<T: rusqlite::types::FromSql>(&mut self) -> Result<T> {
        let at = self.at;
        self.at += 1;
        self.row
            .get(at)
            .map_err(StoreError::sqlite("read a column"))
    }

    fn wrong(&self, found: impl Into<String>) -> StoreError {
        StoreError::Content {
            table: self.table,
            found: found.into(),
        }
    }

    fn number(&mut self) -> Result<u64> {
        let number: i64 = self.next()?;
        u64::try_from(number).map_err(|_| self.wrong(format!("the number {number}")))
    }

    fn number_or_none(&mut self) -> Result<Option<u64>> {
        let number: Option<i64> = self.next()?;
        let number = number.map(|number| {
            u64::try_from(number).map_err(|_| self.wrong(format!("the number {number}")))
        });
        number.transpose()
    }

    fn text(&mut self) -> Result<Arc<str>> {
        self.next::<String>().map(Arc::from)
    }

    fn flag(&mut self) -> Result<bool> {
        self.next()
    }

    fn wall(&mut self) -> Result<WallTime> {
        self.number().map(WallTime)
    }

    fn boot(&mut self) -> Result<BootTime> {
        self.number().map(BootTime)
    }

    fn nanos(&mut self) -> Result<Nanos> {
        self.number().map(Nanos)
    }

    fn labels(&mut self) -> Result<ContainerLabels> {
        Ok(ContainerLabels {
            namespace: self.text()?,
            pod: self.text()?,
            container: self.text()?,
            pod_uid: self.text()?,
            container_id: self.text()?,
        })
    }

    /// The amounts, in the order in which [`list`] names them.
    fn amounts(&mut self) -> Result<Amounts> {
        let mut amounts = Amounts {
            busy: self.nanos()?,
            engines: Engines {
                memory: self.nanos()?,
                encoder: self.nanos()?,
                decoder: self.nanos()?,
                jpeg: self.nanos()?,
                ofa: self.nanos()?,
            },
            held: self.nanos()?,
            allocated: self.nanos()?,
            memory: ByteSeconds(self.number()?.into()),
            energy: Millijoules(self.number()?),
            allocated_share: self.nanos()?,
        };
        amounts.memory.0 += u128::from(self.number()?) << MEMORY_LOW_BITS;
        Ok(amounts)
    }
}

/// Converts every row of a query.
fn rows<T>(
    connection: &Connection,
    table: &'static str,
    sql: &str,
    parameters: impl rusqlite::Params,
    mut each: impl FnMut(&mut Columns<'_, '_>) -> Result<T>,
) -> Result<Vec<T>> {
    let failed = StoreError::sqlite;
    let mut statement = connection.prepare(sql).map_err(failed("ask for rows"))?;
    let mut found = statement
        .query(parameters)
        .map_err(failed("ask for rows"))?;
    let mut all = Vec::new();
    while let Some(row) = found.next().map_err(failed("read a row"))? {
        all.push(each(&mut Columns::new(table, row))?);
    }
    Ok(all)
}

/// The row of `meta`, if anything has ever been kept.
pub(super) fn meta(connection: &Connection) -> Result<Option<Meta>> {
    let sql = "SELECT store, life, hour, sequence, commit_boot, committed FROM meta";
    let mut found = rows(connection, "meta", sql, [], |columns| {
        Ok(Meta {
            store: columns.next()?,
            life: columns.next()?,
            hour: columns.next()?,
            sequence: columns.number()?,
            clock: Clock {
                boot: columns.boot()?,
                wall: columns.wall()?,
            },
        })
    })?;
    Ok(found.pop())
}

/// Since when the wall clock has held, in the boot of the last commit.
pub(super) fn held(connection: &Connection) -> Result<Option<BootTime>> {
    let sql = "SELECT since_boot FROM held";
    let mut found = rows(connection, "held", sql, [], |columns| columns.boot())?;
    Ok(found.pop())
}

/// The boot in which a life began.
pub(super) fn boot_of(connection: &Connection, life: i64) -> Result<Option<String>> {
    let sql = "SELECT boot FROM lives WHERE life = ?1";
    let mut found = rows(connection, "lives", sql, [life], |columns| columns.next())?;
    Ok(found.pop())
}

/// Everything of a life that is open.
pub(super) fn state(connection: &Connection, meta: &Meta) -> Result<PersistedState> {
    let gpus = gpus(connection)?;
    let gpu = |columns: &mut Columns<'_, '_>| -> Result<GpuUuid> {
        let number: i64 = columns.next()?;
        let known = gpus.get(&number).map(|info| info.uuid.clone());
        known.ok_or_else(|| columns.wrong(format!("the gpu {number}, which is not in gpus")))
    };
    let sql = format!(
        "SELECT gpu, start, through_boot, elapsed, busy, idle, energy, energy_idle,
            energy_unattributed, windows, torn_windows, invalid_rows, cut, {}
        FROM books JOIN gpus USING (gpu) ORDER BY place, gpu",
        list(|amount| format!("closed_{amount}")),
    );
    let books = rows(connection, "books", &sql, [], |columns| {
        let uuid = gpu(columns)?;
        let info = gpus.values().find(|info| info.uuid == uuid).cloned();
        let start = columns.wall()?;
        let through = columns.number_or_none()?.map(BootTime);
        let (elapsed, busy, idle) = (columns.nanos()?, columns.nanos()?, columns.nanos()?);
        let total = columns.number_or_none()?.map(Millijoules);
        let (of_idle, of_nobody) = (columns.number()?, columns.number()?);
        Ok(KeptBook {
            gpu: info.ok_or_else(|| columns.wrong("a gpu that is not in gpus"))?,
            start,
            through,
            elapsed,
            busy,
            idle,
            energy: total.map(|total| EnergyBook {
                total,
                idle: Millijoules(of_idle),
                unattributed: Millijoules(of_nobody),
            }),
            windows: columns.number()?,
            torn_windows: columns.number()?,
            invalid_rows: columns.number()?,
            cut: columns.nanos()?,
            closed: columns.amounts()?,
        })
    })?;
    let sql = "SELECT gpu, kind, reason, time FROM reasons";
    let times = rows(connection, "reasons", sql, [], |columns| {
        Ok(KeptTime {
            gpu: gpu(columns)?,
            reason: reason(columns)?,
            time: columns.nanos()?,
        })
    })?;
    let mut series = series(connection)?;
    let mut totals = totals(connection)?;
    let sql = "SELECT account, gpu, kind, owner, namespace, pod, container, pod_uid, container_id,
            image, runtime, attribution, source, labels, opened, held_since_boot, ended_boot, fed,
            profile, parent, gpu_instance, compute_instance
        FROM accounts LEFT JOIN instances USING (account) WHERE closed IS NULL AND life = ?1";
    let accounts = rows(connection, "accounts", sql, [meta.life], |columns| {
        let account: i64 = columns.next()?;
        let number = u32::try_from(account & i64::from(u32::MAX))
            .map_err(|_| columns.wrong(format!("the account {account}")))?;
        let totals = totals
            .remove(&account)
            .ok_or_else(|| columns.wrong(format!("the account {account} without totals")))?;
        let kept = KeptAccount {
            number,
            gpu: gpu(columns)?,
            kind: kind(columns)?,
            owner_id: columns.text()?,
            labels: Arc::new(columns.labels()?),
            image: columns.text()?,
            runtime: columns.text()?,
            attribution: attribution(columns)?,
            runtime_labels: json(columns)?,
            opened: columns.wall()?,
            held_since: columns.boot()?,
            ended: columns.number_or_none()?.map(BootTime),
            fed: columns.flag()?,
            mig: mig(columns)?,
            id_only: series.remove(&(account, "id_only".into())),
            named: series.remove(&(account, "named".into())),
        };
        Ok((kept, KeptTotals { number, ..totals }))
    })?;
    let sql = format!(
        "SELECT gpu, namespace, start, shown_boot, changed_boot, {}, {} FROM namespaces",
        list(str::to_owned),
        list(|amount| format!("shown_{amount}")),
    );
    let namespaces = rows(connection, "namespaces", &sql, [], |columns| {
        Ok(KeptNamespace {
            gpu: gpu(columns)?,
            namespace: columns.text()?,
            start: columns.wall()?,
            shown: columns.boot()?,
            changed: columns.boot()?,
            amounts: columns.amounts()?,
            shows: columns.amounts()?,
        })
    })?;
    Ok(PersistedState {
        sequence: meta.sequence,
        clock: meta.clock,
        books,
        times,
        accounts,
        namespaces,
        processes: processes(connection)?,
        allocations: allocations(connection)?,
        last_number: last_number(connection, meta.life)?,
    })
}

fn processes(connection: &Connection) -> Result<Vec<KeptProcess>> {
    let sql =
        "SELECT pid, start_boot, by_event, exit_boot, exit_reported, cgroups, before, moved_boot,
            accounts
        FROM processes ORDER BY start_boot, pid";
    rows(connection, "processes", sql, [], |columns| {
        let pid = columns.number()?;
        let pid = u32::try_from(pid).map_err(|_| columns.wrong(format!("the pid {pid}")))?;
        Ok(KeptProcess {
            pid: Pid(pid),
            start: columns.boot()?,
            by_event: columns.flag()?,
            exit: columns.number_or_none()?.map(BootTime),
            exit_reported: columns.flag()?,
            cgroups: json::<Vec<_>>(columns)?.into(),
            moved: moved(columns)?,
            accounts: json(columns)?,
        })
    })
}

fn allocations(connection: &Connection) -> Result<Vec<KeptAllocation>> {
    let sql = "SELECT container, namespace, pod, name, devices FROM allocations ORDER BY container";
    rows(connection, "allocations", sql, [], |columns| {
        Ok(KeptAllocation {
            container: ContainerId(columns.text()?),
            name: GivenName {
                namespace: columns.text()?,
                pod: columns.text()?,
                container: columns.text()?,
            },
            grants: json(columns)?,
        })
    })
}

fn moved(columns: &mut Columns<'_, '_>) -> Result<Option<(Cgroups, Option<BootTime>)>> {
    let before: Option<String> = columns.next()?;
    let seen = columns.number_or_none()?.map(BootTime);
    let Some(before) = before else {
        return Ok(None);
    };
    let cgroups: Vec<_> = serde_json::from_str(&before)
        .map_err(|error| columns.wrong(format!("{before:?}: {error}")))?;
    Ok(Some((cgroups.into(), seen)))
}

/// The largest number that an account of a life has had.
fn last_number(connection: &Connection, life: i64) -> Result<u32> {
    let sql = "SELECT max(account) FROM accounts WHERE account BETWEEN ?1 AND ?2";
    let range = [life << 32, (life << 32) | i64::from(u32::MAX)];
    let found = rows(connection, "accounts", sql, range, |columns| {
        let last: Option<i64> = columns.next()?;
        let last = last.unwrap_or(0) & i64::from(u32::MAX);
        u32::try_from(last).map_err(|_| columns.wrong(format!("the account {last}")))
    })?;
    Ok(found.into_iter().next().unwrap_or(0))
}

fn gpus(connection: &Connection) -> Result<HashMap<i64, GpuInfo>> {
    let sql = "SELECT gpu, info, uuid, place, model, driver FROM gpus";
    let all = rows(connection, "gpus", sql, [], |columns| {
        let gpu = columns.next()?;
        let info: String = columns.next()?;
        let plain = GpuInfo {
            uuid: GpuUuid(columns.text()?),
            index: u32::try_from(columns.number()?).unwrap_or(u32::MAX),
            model: columns.text()?,
            driver: columns.text()?,
            simulated: false,
            memory_total: None,
            minor: None,
            pci: None,
            mig: None,
            engines: Vec::new(),
        };
        // A file of another version may lack this. NVML reports it again soon.
        Ok((gpu, serde_json::from_str(&info).unwrap_or(plain)))
    })?;
    Ok(all.into_iter().collect())
}

fn totals(connection: &Connection) -> Result<HashMap<i64, KeptTotals>> {
    let sql = format!(
        "SELECT account, {}, t.memory_peak, t.processes_started, t.first_used, t.last_used,
            t.changed_boot, t.since_boot, t.allocated_through_boot
        FROM totals t JOIN accounts USING (account) WHERE closed IS NULL",
        list(|amount| format!("t.{amount}")),
    );
    let all = rows(connection, "totals", &sql, [], |columns| {
        let account: i64 = columns.next()?;
        let totals = KeptTotals {
            number: 0,
            amounts: columns.amounts()?,
            memory_peak: columns.number_or_none()?,
            processes_started: columns.number()?,
            first_used: columns.number_or_none()?.map(WallTime),
            last_used: columns.number_or_none()?.map(WallTime),
            changed: columns.boot()?,
            since: columns.number_or_none()?.map(BootTime),
            allocated_through: columns.number_or_none()?.map(BootTime),
        };
        Ok((account, totals))
    })?;
    Ok(all.into_iter().collect())
}

fn series(connection: &Connection) -> Result<HashMap<(i64, Arc<str>), KeptSeries>> {
    let sql = format!(
        "SELECT account, kind, namespace, pod, container, pod_uid, container_id, start,
            shown_boot, changed_boot, follows, {} FROM series",
        list(str::to_owned),
    );
    let all = rows(connection, "series", &sql, [], |columns| {
        let key = (columns.next()?, columns.text()?);
        let series = KeptSeries {
            labels: Arc::new(columns.labels()?),
            start: columns.wall()?,
            shown: columns.boot()?,
            changed: columns.boot()?,
            follows: columns.flag()?,
            shows: columns.amounts()?,
        };
        let shows = if series.follows {
            Amounts::ZERO
        } else {
            series.shows
        };
        Ok((key, KeptSeries { shows, ..series }))
    })?;
    Ok(all.into_iter().collect())
}

fn json<T: serde::de::DeserializeOwned>(columns: &mut Columns<'_, '_>) -> Result<T> {
    let text: String = columns.next()?;
    serde_json::from_str(&text).map_err(|error| columns.wrong(format!("{text:?}: {error}")))
}

fn mig(columns: &mut Columns<'_, '_>) -> Result<Option<MigInfo>> {
    let (profile, parent) = (columns.next()?, columns.next()?);
    let ids = [columns.number_or_none()?, columns.number_or_none()?];
    let ids = ids.map(|id| id.and_then(|id| u32::try_from(id).ok()));
    let (Some::<String>(profile), Some::<String>(parent), [Some(gpu), Some(compute)]) =
        (profile, parent, ids)
    else {
        return Ok(None);
    };
    Ok(Some(MigInfo {
        parent: GpuUuid(parent.into()),
        profile: profile.into(),
        gpu_instance: gpu,
        compute_instance: compute,
    }))
}

fn kind(columns: &mut Columns<'_, '_>) -> Result<OwnerKind> {
    let text = columns.text()?;
    let known = OwnerKind::ALL.into_iter().find(|k| k.as_str() == &*text);
    known.ok_or_else(|| columns.wrong(format!("the kind of owner {text:?}")))
}

fn attribution(columns: &mut Columns<'_, '_>) -> Result<Option<Attribution>> {
    let state = columns.text()?;
    let detail: Option<String> = columns.next()?;
    let detail = detail.unwrap_or_default();
    let source = IdentitySource::ALL
        .into_iter()
        .find(|source| source.as_str() == detail);
    let reason: Option<IdOnlyReason> = serde_json::from_value(detail.clone().into()).ok();
    match (&*state, source, reason) {
        ("host", _, _) => Ok(None),
        ("held", _, _) => Ok(Some(Attribution::Held)),
        ("named", Some(source), _) => Ok(Some(Attribution::Named { source })),
        ("id_only", _, Some(reason)) => Ok(Some(Attribution::IdOnly { reason })),
        _ => Err(columns.wrong(format!("the attribution {state:?} by {detail:?}"))),
    }
}

fn reason(columns: &mut Columns<'_, '_>) -> Result<KeptReason> {
    let (kind, reason) = (columns.text()?, columns.text()?);
    let known = match &*kind {
        "unattributed" => UnattributedReason::ALL
            .into_iter()
            .find(|known| known.as_str() == &*reason)
            .map(KeptReason::Unattributed),
        "unobserved" => UnobservedReason::ALL
            .into_iter()
            .find(|known| known.as_str() == &*reason)
            .map(KeptReason::Unobserved),
        _ => None,
    };
    known.ok_or_else(|| columns.wrong(format!("{kind} time for the reason {reason:?}")))
}
