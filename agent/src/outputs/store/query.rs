//! The ledger as it is read: by anybody, at any time, beside the agent that writes it or without one.
//!
//! A reader changes nothing, waits for no writer (WAL) and sees one commit: everything it is asked
//! comes from the one transaction that [`Ledger::open`] begins. It knows nothing of what a figure is
//! for; it turns rows into the nouns of the core, and refuses what cannot be true.
//!
//! Where the directory cannot be written, SQLite has no place for the index of its log. A ledger that
//! has no log beside it is then read as a file that nobody writes, which on such a directory is so.
//!
//! Units are those of the core: nanoseconds, byte-seconds, millijoules. Hours count from the Unix
//! epoch and are UTC's.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row};
use serde_json::Value;

use super::file::FILE;
use super::schema::{self, AMOUNTS, APPLICATION_ID, INSTANCES_SINCE, NODE_SINCE, SHARES_SINCE};
use super::sql::{amounts_from, keep_plans, unsigned};
use crate::core::amounts::{Amounts, Millijoules};
use crate::core::model::{GpuUuid, NONE, Nanos, UNRESOLVED, WallTime};

/// How long to wait for somebody who holds the whole file, which no agent does for longer than it
/// takes to mend it after a crash.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no ledger.
    #[error("there is no ledger at {} (--store names another place)", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is there, or may be, and the user may not read it.
    #[error("no permission to read the ledger at {} (root may read it)", path.display())]
    Denied {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file system does not give it.
    #[error("cannot read the file of the ledger at {}", path.display())]
    File {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Some other program's database.
    #[error(
        "{} is not a gpuacct ledger: application id {found:#x}, expected {APPLICATION_ID:#x}",
        path.display()
    )]
    Foreign {
        /// Path of the file.
        path: PathBuf,
        /// What it says of itself.
        found: i32,
    },
    /// An agent has made it and not committed to it yet.
    #[error("the ledger at {} holds no commit yet", path.display())]
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
    /// A newer gpuacct wrote it.
    #[error(
        "the ledger at {} has schema {found}, this gpuacct knows {} and older: use the gpuacct that wrote it",
        path.display(),
        schema::VERSION
    )]
    Newer {
        /// Path of the file.
        path: PathBuf,
        /// Schema version of the file.
        found: u32,
    },
    /// Somebody holds all of it.
    #[error(
        "the ledger at {} has been locked by another process for {} s",
        path.display(),
        LOCK_TIMEOUT.as_secs()
    )]
    Locked {
        /// Path of the file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// Not what SQLite wrote.
    #[error("the ledger at {} is damaged, or is not an SQLite file", path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// It is there and cannot be opened.
    #[error("cannot open the ledger at {}", path.display())]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// A figure that no ledger can hold.
    #[error("the ledger at {} has {found} as {column}, expected at least 0", path.display())]
    Negative {
        /// Path of the file.
        path: PathBuf,
        /// Which figure.
        column: String,
        /// What stands there.
        found: i64,
    },
    /// Something else went wrong.
    #[error("cannot read the ledger at {}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
}

/// A ledger, open for reading, at one commit.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
    path: PathBuf,
    standing: LedgerExtent,
    /// Of its schema: an older one lacks what was added since.
    version: u32,
}

/// Whose a ledger is, and how far it reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerExtent {
    /// Name of the node, or `(unresolved)` if no agent has written it yet.
    pub node: Arc<str>,
    /// The file.
    pub path: PathBuf,
    /// Random name that the file was given when it was made. A copy has the same.
    pub store: Arc<str>,
    /// When the last commit was made.
    pub committed: WallTime,
    /// Hour of the amounts that are not assigned to an earlier hour.
    pub hour: i64,
    /// The first hour of which anything is kept. On a node that has had no GPU, the hour in which its
    /// agent began.
    pub first_hour: i64,
}

/// A GPU or MIG instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuRecord {
    /// Name of its node, or `(unresolved)`.
    pub node: Arc<str>,
    /// The name of the node's cluster, or `(none)`: a ledger does not have it.
    pub cluster: Arc<str>,
    /// NVML's name of it.
    pub uuid: GpuUuid,
    /// NVML's index, as it was last; that of its GPU for a MIG instance.
    pub index: Arc<str>,
    /// What it is.
    pub model: Arc<str>,
    /// The profile of the MIG instance that stands under its UUID now, if it is one.
    pub profile: Option<Arc<str>>,
    /// The GPU that such an instance is a part of.
    pub parent: Option<GpuUuid>,
    /// The first hour of which it has a book.
    pub first_hour: i64,
    /// Last hour with a record of it.
    pub last_hour: i64,
}

/// An owner on a GPU, open or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRecord {
    /// The GPU's number in this ledger.
    pub gpu: i64,
    /// `container`, `pod` or `host`.
    pub kind: Arc<str>,
    /// The container's id, the pod's uid, the host's unit.
    pub owner: Arc<str>,
    /// Kubernetes namespace, or a marker in parentheses; so are the next four.
    pub namespace: Arc<str>,
    /// Pod name.
    pub pod: Arc<str>,
    /// Container name.
    pub container: Arc<str>,
    /// Pod uid.
    pub pod_uid: Arc<str>,
    /// Container id.
    pub container_id: Arc<str>,
    /// Image of the container, as its runtime names it.
    pub image: Arc<str>,
    /// Container runtime, by the form of the path.
    pub runtime: Arc<str>,
    /// `held`, `named`, `id_only` or `host`.
    pub attribution: Arc<str>,
    /// The runtime's labels, a JSON object.
    pub labels: Arc<str>,
    /// The profile of the MIG instance that it was on, if it was on one.
    pub profile: Option<Arc<str>>,
    /// What there is to know of its whole life.
    pub life: AccountLife,
}

/// Of the whole life of accounts, whatever part of it is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccountLife {
    /// Processes that were seen on the GPU.
    pub processes_started: u64,
    /// The end of the first window that charged one of them.
    pub first_used: Option<WallTime>,
    /// The end of the last.
    pub last_used: Option<WallTime>,
    /// The most device memory that one of them was seen to use at once, in bytes.
    pub memory_peak: Option<u64>,
}

impl AccountLife {
    /// Combines two lives.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let either = |one: Option<WallTime>, other: Option<WallTime>, pick: fn(_, _) -> _| {
            one.zip(other)
                .map_or(one.or(other), |(one, other)| Some(pick(one, other)))
        };
        Self {
            processes_started: self
                .processes_started
                .saturating_add(other.processes_started),
            first_used: either(self.first_used, other.first_used, WallTime::min),
            last_used: either(self.last_used, other.last_used, WallTime::max),
            memory_peak: self.memory_peak.max(other.memory_peak),
        }
    }
}

/// What an account used in an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The hour.
    pub hour: i64,
    /// The account's number.
    pub account: i64,
    /// Amounts used in the hour.
    pub amounts: Amounts,
}

/// What became of a GPU's hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuUsed {
    /// The hour.
    pub hour: i64,
    /// The GPU's number.
    pub gpu: i64,
    /// Time accounted for.
    pub elapsed: Nanos,
    /// Busy time, by the device's own samples.
    pub busy: Nanos,
    /// Idle time.
    pub idle: Nanos,
    /// All energy.
    pub energy: Millijoules,
    /// Energy of idle time. Energy that is in neither idle time nor an account has no owner.
    pub energy_idle: Millijoules,
}

/// Time of a GPU's hour that has no owner, or was not observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonUsed {
    /// The hour.
    pub hour: i64,
    /// The GPU's number.
    pub gpu: i64,
    /// Whether it was not observed; otherwise it has no owner.
    pub unobserved: bool,
    /// Why. Of any agent that ever wrote here, so that no list can be expected to have it.
    pub reason: Arc<str>,
    /// Time in nanoseconds.
    pub time: Nanos,
}

impl Ledger {
    /// The ledger's file in a store's directory, or the file itself.
    #[must_use]
    pub fn file_of(store: &Path) -> PathBuf {
        if store.is_dir() {
            store.join(FILE)
        } else {
            store.to_owned()
        }
    }

    /// Opens the ledger in a store's directory, or a ledger's file.
    ///
    /// # Errors
    /// If there is none, or none that can be read.
    pub fn open(store: &Path) -> Result<Self, ReadError> {
        let path = Self::file_of(store);
        // SQLite does not say whether it lacks the file or the permission to read it.
        std::fs::File::open(&path).map_err(|source| not_opened(&path, source))?;
        match begin(&path, false) {
            Err(error) if wants_to_write(&error) && !has_log(&path) => {
                begin(&path, true).map_err(|error| read_error(&path, error))
            }
            begun => begun.map_err(|error| read_error(&path, error)),
        }
        .and_then(|connection| Self::look(connection, path))
    }

    pub(super) fn look(connection: Connection, path: PathBuf) -> Result<Self, ReadError> {
        let failed = |error| read_error(&path, error);
        let id: i32 = connection
            .pragma_query_value(None, "application_id", |row| row.get(0))
            .map_err(failed)?;
        let version = schema::version(&connection).map_err(failed)?;
        if version == 0 && id == 0 {
            return Err(ReadError::Empty { path });
        }
        if id != APPLICATION_ID {
            return Err(ReadError::Foreign { path, found: id });
        }
        if version > schema::VERSION {
            return Err(ReadError::Newer {
                path,
                found: version,
            });
        }
        let node = match version {
            ..NODE_SINCE => "NULL",
            _ => "node",
        };
        let standing = connection
            .query_row(
                &format!(
                    "SELECT committed, hour, min(hour, coalesce((SELECT min(hour) FROM gpu_hours),
                        (SELECT min(began) / 3600000000000 FROM lives), hour)), {node}, store FROM meta"
                ),
                [],
                |row| {
                    let node: Option<Arc<str>> = row.get(3)?;
                    let node = node.filter(|node| !node.is_empty());
                    Ok(LedgerExtent {
                        node: node.unwrap_or_else(|| UNRESOLVED.into()),
                        path: path.clone(),
                        store: row.get(4)?,
                        committed: WallTime(unsigned(row, 0)?),
                        hour: row.get(1)?,
                        first_hour: row.get(2)?,
                    })
                },
            )
            .optional()
            .map_err(failed)?;
        match standing {
            Some(standing) => Ok(Self {
                connection,
                path,
                standing,
                version,
            }),
            None => Err(ReadError::Empty { path }),
        }
    }

    /// What it reads from.
    #[cfg(feature = "fuzzing")]
    pub(super) fn into_connection(self) -> Connection {
        self.connection
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is, and how far it reaches.
    #[must_use]
    pub const fn standing(&self) -> &LedgerExtent {
        &self.standing
    }

    /// Every GPU that ever had a book, by its number.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn gpus(&self) -> Result<HashMap<i64, GpuRecord>, ReadError> {
        let mut gpus = HashMap::new();
        self.each(
            "SELECT g.gpu, g.uuid, g.model,
                coalesce(min(u.hour), (SELECT hour FROM meta)),
                coalesce(max(u.hour), (SELECT hour FROM meta)), g.info, g.place
             FROM gpus g LEFT JOIN gpu_used u ON u.gpu = g.gpu AND u.elapsed > 0
             GROUP BY g.gpu",
            None,
            |row| {
                let uuid: Arc<str> = row.get(1)?;
                let info: Box<str> = row.get(5)?;
                // Of any agent that ever wrote here: what is not there is not known.
                let info: Value = serde_json::from_str(&info).unwrap_or_default();
                let of_mig = |key: &str| info["mig"][key].as_str().map(Arc::from);
                let record = GpuRecord {
                    node: Arc::clone(&self.standing.node),
                    cluster: NONE.into(),
                    uuid: GpuUuid(uuid),
                    index: row.get::<_, i64>(6)?.to_string().into(),
                    model: row.get(2)?,
                    profile: of_mig("profile"),
                    parent: of_mig("parent").map(GpuUuid),
                    first_hour: row.get(3)?,
                    last_hour: row.get(4)?,
                };
                gpus.insert(row.get(0)?, record);
                Ok(())
            },
        )?;
        Ok(gpus)
    }

    /// An account, by its number.
    ///
    /// # Errors
    /// If the file cannot be read, or names an account that it does not have.
    pub fn account(&self, account: i64) -> Result<AccountRecord, ReadError> {
        let record = |row: &Row<'_>| {
            Ok(AccountRecord {
                gpu: row.get(0)?,
                kind: row.get(1)?,
                owner: row.get(2)?,
                namespace: row.get(3)?,
                pod: row.get(4)?,
                container: row.get(5)?,
                pod_uid: row.get(6)?,
                container_id: row.get(7)?,
                image: row.get(8)?,
                runtime: row.get(9)?,
                attribution: row.get(10)?,
                labels: row.get(11)?,
                life: AccountLife {
                    processes_started: unsigned(row, 12)?,
                    first_used: unsigned_or_none(row, 13)?.map(WallTime),
                    last_used: unsigned_or_none(row, 14)?.map(WallTime),
                    memory_peak: unsigned_or_none(row, 15)?,
                },
                profile: row.get(16)?,
            })
        };
        self.connection
            .prepare_cached(&account_question(self.version))
            .and_then(|mut statement| statement.query_row([account], record))
            .map_err(|error| read_error(&self.path, error))
    }

    /// What each account used in each of these hours, in no order.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn used(&self, hours: &Range<i64>, mut each: impl FnMut(Used)) -> Result<(), ReadError> {
        let amounts = AMOUNTS.map(|amount| match (self.version, amount) {
            // Of what was there then it is not known with how many others it was shared.
            (..SHARES_SINCE, "allocated_share") => "allocated",
            (..SHARES_SINCE, "memory_high") => "0",
            _ => amount,
        });
        let amounts = amounts.join(", ");
        self.each(
            &format!("SELECT hour, account, {amounts} FROM used WHERE hour >= ?1 AND hour < ?2"),
            Some(hours),
            |row| {
                each(Used {
                    hour: row.get(0)?,
                    account: row.get(1)?,
                    amounts: amounts_from(row, 2)?,
                });
                Ok(())
            },
        )
    }

    /// Each GPU's time in each of these hours.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn gpu_used(&self, hours: &Range<i64>) -> Result<Vec<GpuUsed>, ReadError> {
        let mut found = Vec::new();
        // A new life's book begins within the hour in which an older one ended: two rows, one sum.
        self.each(
            "SELECT hour, gpu, sum(elapsed) AS elapsed, sum(busy) AS busy, sum(idle) AS idle,
                sum(energy) AS energy, sum(energy_idle) AS energy_idle
             FROM gpu_used WHERE hour >= ?1 AND hour < ?2 GROUP BY hour, gpu",
            Some(hours),
            |row| {
                found.push(GpuUsed {
                    hour: row.get(0)?,
                    gpu: row.get(1)?,
                    elapsed: Nanos(unsigned(row, 2)?),
                    busy: Nanos(unsigned(row, 3)?),
                    idle: Nanos(unsigned(row, 4)?),
                    energy: Millijoules(unsigned(row, 5)?),
                    energy_idle: Millijoules(unsigned(row, 6)?),
                });
                Ok(())
            },
        )?;
        Ok(found)
    }

    /// Why time of each GPU has no owner, or was not observed, in each of these hours.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn reasons_used(&self, hours: &Range<i64>) -> Result<Vec<ReasonUsed>, ReadError> {
        let mut found = Vec::new();
        self.each(
            "SELECT hour, gpu, kind, reason, sum(time) AS time FROM reasons_used
             WHERE hour >= ?1 AND hour < ?2 GROUP BY hour, gpu, kind, reason HAVING sum(time) <> 0",
            Some(hours),
            |row| {
                let kind: Box<str> = row.get(2)?;
                found.push(ReasonUsed {
                    hour: row.get(0)?,
                    gpu: row.get(1)?,
                    unobserved: &*kind == "unobserved",
                    reason: row.get(3)?,
                    time: Nanos(unsigned(row, 4)?),
                });
                Ok(())
            },
        )?;
        Ok(found)
    }

    /// Gives each row of a question, which may have the two ends of a range of hours as parameters.
    fn each(
        &self,
        question: &str,
        hours: Option<&Range<i64>>,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), ReadError> {
        let mut ask = || {
            let mut statement = self.connection.prepare(question)?;
            let mut rows = match hours {
                Some(hours) => statement.query([hours.start, hours.end])?,
                None => statement.query([])?,
            };
            while let Some(row) = rows.next()? {
                each(row)?;
            }
            Ok(())
        };
        ask().map_err(|error| read_error(&self.path, error))
    }
}

/// Asks a ledger of some schema version for an account, whose number is the parameter.
fn account_question(version: u32) -> String {
    let profile = match version {
        // Of what was there then no more is known than what is there now.
        ..INSTANCES_SINCE => {
            "SELECT CASE WHEN json_valid(info) THEN json_extract(info, '$.mig.profile') END
                FROM gpus g WHERE g.gpu = a.gpu"
        }
        _ => "SELECT profile FROM instances i WHERE i.account = a.account",
    };
    format!(
        "SELECT gpu, kind, owner, namespace, pod, container, pod_uid, container_id, image,
            runtime, attribution, labels, coalesce(processes_started, 0), first_used,
            last_used, memory_peak, ({profile})
         FROM accounts a LEFT JOIN totals USING (account) WHERE account = ?1"
    )
}

/// Opens a file and begins to read. `untouched`: nobody writes to it, nothing need be kept beside it.
fn begin(path: &Path, untouched: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let address = untouched
        .then(|| std::path::absolute(path).ok())
        .flatten()
        .and_then(|path| url::Url::from_file_path(path).ok());
    let connection = match address {
        Some(mut address) => {
            address.set_query(Some("immutable=1"));
            Connection::open_with_flags(address.as_str(), flags | OpenFlags::SQLITE_OPEN_URI)?
        }
        None => Connection::open_with_flags(path, flags)?,
    };
    connection.busy_timeout(LOCK_TIMEOUT)?;
    keep_plans(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    // One view of everything: it begins with the first question, which is asked here.
    connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
    Ok(connection)
}

/// Whether the file could be read if there were a place to write beside it.
fn wants_to_write(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)
    )
}

/// Whether commits may be in the log that are not in the file.
fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

/// Reads an unsigned number that may be missing.
fn unsigned_or_none(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    match row.get::<_, Option<i64>>(column)? {
        None => Ok(None),
        Some(_) => unsigned(row, column).map(Some),
    }
}

/// Why a file cannot be opened.
fn not_opened(path: &Path, source: std::io::Error) -> ReadError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => ReadError::Missing { path, source },
        ErrorKind::PermissionDenied => ReadError::Denied { path, source },
        _ => ReadError::File { path, source },
    }
}

/// What is wrong with a file, in words.
fn read_error(path: &Path, source: rusqlite::Error) -> ReadError {
    let path = path.to_owned();
    if let rusqlite::Error::IntegralValueOutOfRange(column, found) = source {
        let column = format!("figure {}", column + 1);
        return ReadError::Negative {
            path,
            column,
            found,
        };
    }
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            ReadError::Locked { path, source }
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            ReadError::Damaged { path, source }
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            ReadError::Open { path, source }
        }
        _ => ReadError::Read { path, source },
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    /// How often SQLite parses the question for an account anew, of five accounts.
    fn parsed_anew(keeps_plans: bool) -> i32 {
        let mut connection = Connection::open_in_memory().expect("memory is there");
        if keeps_plans {
            keep_plans(&connection).expect("a setting");
        }
        schema::migrate(&mut connection, 0).expect("tables");
        let question = account_question(schema::VERSION);
        let mut statement = connection.prepare(&question).expect("a statement");
        for account in 0..5 {
            assert!(!statement.exists([account]).expect("an answer"));
        }
        statement.get_status(StatementStatus::RePrepare)
    }

    #[test]
    fn the_question_for_an_account_was_parsed_anew_for_each_account() {
        assert_eq!(parsed_anew(true), 0);
        // If SQLite does that no longer, the setting is not needed.
        assert_ne!(parsed_anew(false), 0);
    }
}
