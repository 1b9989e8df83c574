//! The store's directory and its file: how it is locked, opened, written, synced and set aside.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tracing::warn;

use super::error::StoreError;
use super::mark::{LifeId, MarkerFile};
use super::outbox;
use super::read::{self, Meta};
use super::retention::{self, Limits};
use super::schema;
use super::sql;
use super::watermark::{Baseline, Missed, Watermark};
use super::write::{self, Into};
use crate::core::model::{BootTime, Clock, Nanos};
use crate::core::records::{Changes, PersistedState};
use crate::published::RecordsBook;
use crate::usage_record::{RecordKey, UsageRecord};

/// The file's name in the store's directory.
pub const FILE: &str = "gpuacct.db";
/// The lock's name beside it.
const LOCK: &str = "gpuacct.lock";
/// How often what was written is synced to the disk.
pub const SYNC_EVERY: Duration = Duration::from_secs(60);
/// Damaged files that are kept.
const SET_ASIDE: usize = 3;
/// How long a reader may be in the way.
const BUSY: Duration = Duration::from_secs(2);
/// How long the wall clock must have held before anything is dropped for its age, by the boot clock.
/// One that has leapt ahead (a real-time clock without a battery, a wrong time server) makes all that
/// there is old, and what is dropped does not come back with the time.
const HELD: Nanos = Nanos::from_secs(3_600);
/// By how much the wall clock may be off the boot clock between two commits and still have held:
/// more than any clock is slewed by.
const SLEWED: Nanos = Nanos::from_secs(5);
/// Pages of the log after which SQLite moves them into the file: 4 MiB.
const LOG_PAGES: u32 = 1_000;

/// Where and how much is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The store's directory, made if need be.
    pub directory: PathBuf,
    /// How long closed accounts and hours are kept.
    pub retention: Duration,
    /// How large the file may grow, in bytes.
    pub max_bytes: u64,
    /// The kernel's boot id.
    pub boot: Arc<str>,
    /// Name of the node, which is written into the ledger for its readers.
    pub node: Arc<str>,
    /// Whether hours are sent as usage records.
    pub records: bool,
}

/// How much the store may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// How long closed accounts and hours are kept.
    pub retention: Duration,
    /// How large the file may grow, in bytes.
    pub max_bytes: u64,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The store, and the life of the series, that it is in.
    pub named: LifeId,
    /// How long it took.
    pub took: Duration,
    /// What the file's tables take, as last looked at.
    pub bytes: u64,
    /// Hours without a commit that were merged into the following hour.
    pub hours_merged: u64,
    /// How often the file was too large and nothing in it could go.
    pub over_size: u64,
    /// The usage records that are not settled; absent where none are sent.
    pub records: Option<RecordsBook>,
}

/// The file, or what is left to be done to have it.
#[derive(Debug)]
pub(super) struct Store {
    options: Options,
    /// Held for as long as the agent lives, whatever becomes of the file.
    lock: Option<File>,
    open: Option<Open>,
    /// The life that this agent's series are in; absent until the first of its commits is written,
    /// unless it goes on with one from before.
    life: Option<LifeId>,
    /// Why the next life begins.
    reason: &'static str,
    /// What of this life has been written, in whichever file.
    reached: Watermark,
    /// What could not be written since.
    missed: Missed,
    held: ClockAgreement,
    /// The hour in which what is old was last dropped, and whether for its age too.
    cleaned: Option<(i64, bool)>,
    synced: Instant,
    bytes: u64,
    over_size: u64,
    /// The present hour when the hours before it were last entered as usage records.
    entered: Option<i64>,
    records: RecordsBook,
}

/// How long the wall clock has kept pace with the boot clock.
#[derive(Clone, Copy, Debug, Default)]
struct ClockAgreement {
    since: Option<BootTime>,
    last: Clock,
}

impl ClockAgreement {
    /// Takes a reading of both clocks, and says whether it has been long enough.
    fn note(&mut self, now: Clock) -> bool {
        let expected = self.last.wall_of(now.boot).0;
        let broke = now.boot < self.last.boot || now.wall.0.abs_diff(expected) > SLEWED.0;
        self.last = now;
        let since = self.since.filter(|_| !broke).unwrap_or(now.boot);
        self.since = Some(since);
        now.boot.since(since) >= HELD
    }
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    meta: Option<Meta>,
    /// The file's device and number.
    file: (u64, u64),
    /// Its log's, which SQLite leaves where it is when the file is gone.
    log: Option<(u64, u64)>,
    /// What it has of [`ClockAgreement`].
    held: Option<BootTime>,
}

impl Store {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            lock: None,
            open: None,
            life: None,
            reason: "first",
            reached: Watermark::default(),
            missed: Missed::default(),
            held: ClockAgreement::default(),
            cleaned: None,
            synced: Instant::now(),
            bytes: 0,
            over_size: 0,
            entered: None,
            records: RecordsBook::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.options.directory.join(FILE)
    }

    /// Takes the lock and opens the file. One that is damaged is set aside.
    fn open(&mut self) -> Result<&mut Open, StoreError> {
        let opened = match self.open.take() {
            Some(opened) => opened,
            None => {
                self.lock()?;
                // Another file may have other hours.
                self.entered = None;
                match open(&self.path()) {
                    Err(error) if error.is_damage() => {
                        self.set_aside(&error)?;
                        open(&self.path())?
                    }
                    opened => opened?,
                }
            }
        };
        Ok(self.open.insert(opened))
    }

    fn lock(&mut self) -> Result<(), StoreError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let directory = &self.options.directory;
        let failed = |act, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { act, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make the directory", directory))?;
        let path = directory.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {
                self.lock = Some(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }

    /// The previous agent's state, if this agent can continue from it.
    pub(super) fn resume(
        &mut self,
        mark: &MarkerFile,
    ) -> Result<Option<PersistedState>, StoreError> {
        let boot = Arc::clone(&self.options.boot);
        let open = self.open()?;
        let Some(meta) = &open.meta else {
            return Ok(None);
        };
        let named = meta.named();
        let held = open.held;
        let found = read::boot_of(&open.connection, meta.life).and_then(|of| {
            if of.as_deref() != Some(&*boot) {
                return Ok(Err("reboot"));
            }
            if !mark.names(&named) {
                return Ok(Err("unstored"));
            }
            read::state(&open.connection, meta).map(Ok)
        });
        match found {
            Ok(Ok(state)) => {
                self.life = Some(named);
                self.reached = Watermark::of(&state);
                self.held = ClockAgreement {
                    since: held,
                    last: state.clock,
                };
                Ok(Some(state))
            }
            Ok(Err(reason)) => {
                self.reason = reason;
                Ok(None)
            }
            Err(error) if error.is_damage() => {
                self.open = None;
                self.set_aside(&error)?;
                self.open()?;
                Ok(None)
            }
            Err(error @ StoreError::Content { .. }) => {
                warn!(
                    error = error.words(),
                    "cannot continue from the stored content"
                );
                self.reason = "unusable";
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Discards the restored state: the next commit begins a new life.
    pub(super) fn begin_anew(&mut self, reason: &'static str) {
        if self.life.take().is_some() {
            self.reason = reason;
            self.reached = Watermark::default();
        }
    }

    pub(super) fn write(&mut self, changes: &Changes) -> Result<Written, StoreError> {
        let written = self.try_write(changes);
        if let Err(error) = &written {
            self.missed.note(&self.reached, changes);
            // The file is reopened next time, since the problem may be with this connection only.
            self.open = None;
            if error.is_damage() {
                self.set_aside(error)?;
            }
        }
        written
    }

    fn try_write(&mut self, changes: &Changes) -> Result<Written, StoreError> {
        let began = Instant::now();
        let life = self.life.clone();
        self.close_moved();
        self.open()?;
        let Some(open) = &mut self.open else {
            return Err(StoreError::Gone);
        };
        let meta = open.meta.as_ref();
        let is_same = meta.is_some_and(|meta| Some(meta.named()) == life);
        if let (true, Some(meta)) = (is_same, meta)
            && meta.sequence > self.reached.sequence
        {
            // A commit that was reported as failed is stored nevertheless.
            self.reached = Watermark::of(&read::state(&open.connection, meta)?);
        }
        let into = match meta {
            // A file that holds less than was written is an older copy of it.
            Some(meta) if is_same && meta.sequence == self.reached.sequence => Into::Life(meta),
            before if changes.whole => Into::New {
                before,
                boot: &self.options.boot,
                reason: self.reason,
            },
            _ => {
                return Err(StoreError::Content {
                    table: "meta",
                    found: "another life than this agent's".to_owned(),
                });
            }
        };
        let before = Baseline {
            reached: &self.reached,
            missed: self.missed.over(changes.clock),
        };
        let meta = write::write(
            &mut open.connection,
            into,
            &self.options.node,
            before,
            changes,
        )?;
        let named = meta.named();
        open.meta = Some(meta);
        self.reached.take(changes);
        self.missed.clear();
        self.life = Some(named.clone());
        // Another file from here on would be one that was put in the place of this one.
        self.reason = "unstored";
        Ok(Written {
            named,
            took: began.elapsed(),
            bytes: self.bytes,
            hours_merged: self.missed.merged,
            over_size: self.over_size,
            records: self.options.records.then_some(self.records),
        })
    }

    /// Lets go of a file that is not the one at its path any more. SQLite would write to it for ever.
    fn close_moved(&mut self) {
        let path = self.path();
        let Some(open) = &self.open else { return };
        let is_moved = match identity(&path) {
            Ok(found) => found != open.file,
            // Whatever else is wrong, SQLite meets it too.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if is_moved {
            warn!(
                path = %path.display(),
                "the store file was removed or replaced; using the file that is there now"
            );
            let mut log = path.into_os_string();
            log.push("-wal");
            let is_left = open.log.is_some() && identity(Path::new(&log)).ok() == open.log;
            self.open = None;
            // To another file it would be told what it has never been.
            if is_left && let Err(error) = fs::remove_file(&log) {
                warn!(%error, "cannot remove the WAL of the previous store file");
            }
        }
    }

    /// The usage records that are due, `most` at most.
    pub(super) fn offer(&mut self, most: usize) -> Result<Vec<UsageRecord>, StoreError> {
        self.enter_records()?;
        let open = self.open.as_mut().ok_or(StoreError::NotOpen)?;
        outbox::offer(&mut open.connection, most)
    }

    /// Takes back what became of usage records.
    pub(super) fn settle(&mut self, keys: &[RecordKey]) -> Result<(), StoreError> {
        let open = self.open.as_mut().ok_or(StoreError::NotOpen)?;
        outbox::settle(&mut open.connection, keys)?;
        self.count_records()
    }

    /// Enters the hours that are over as usage records, once an hour.
    fn enter_records(&mut self) -> Result<(), StoreError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let present = open.meta.as_ref().map(|meta| meta.hour);
        if !self.options.records || self.entered == present {
            return Ok(());
        }
        outbox::enter(&mut open.connection)?;
        self.entered = present;
        self.count_records()
    }

    fn count_records(&mut self) -> Result<(), StoreError> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        self.records = RecordsBook {
            dropped: self.records.dropped,
            ..outbox::standing(&open.connection)?
        };
        Ok(())
    }

    /// Changes how much is kept.
    pub(super) fn limit(&mut self, limits: StoreLimits) {
        self.options.retention = limits.retention;
        self.options.max_bytes = limits.max_bytes;
        // What goes by the new limits goes with the next commit.
        self.cleaned = None;
    }

    /// Regular maintenance, for which no commit waits.
    pub(super) fn maintain(&mut self, now: Clock) {
        let hour = sql::hour(now.wall);
        let held = self.held.note(now);
        let hours = self.options.retention.as_secs() / 3_600;
        let limits = Limits {
            hours: held.then_some(i64::try_from(hours).unwrap_or(i64::MAX)),
            bytes: self.options.max_bytes,
        };
        let Some(open) = &mut self.open else { return };
        let mut done = Ok(());
        if open.held != self.held.since {
            done = write::put_held(&open.connection, self.held.since);
            open.held = self.held.since;
        }
        if done.is_ok() && self.synced.elapsed() >= SYNC_EVERY {
            self.synced = Instant::now();
            done = sync(&open.connection).and_then(|()| {
                let used = retention::used_bytes(&open.connection);
                self.bytes = used.map_err(StoreError::sqlite("ask for its size"))?;
                if self.bytes > limits.bytes {
                    self.cleaned = None;
                }
                Ok(())
            });
        }
        if done.is_ok() {
            // Before what is old goes, so that what was never sent is known.
            done = self.enter_records();
        }
        let Some(open) = &mut self.open else { return };
        if done.is_ok() && self.cleaned != Some((hour, held)) {
            self.cleaned = Some((hour, held));
            done = retention::drop_old(&mut open.connection, limits, now.wall).map(|dropped| {
                self.over_size += u64::from(dropped.is_stuck);
                if self.options.records {
                    self.records.dropped += dropped.records;
                }
            });
            if done.is_ok() && self.options.records {
                done = self.count_records();
            }
        }
        if let Err(error) = done {
            // The next commit meets the same and says so.
            warn!(error = error.words(), "maintenance of the store failed");
        }
    }

    /// Gives a damaged file another name.
    fn set_aside(&mut self, error: &StoreError) -> Result<(), StoreError> {
        let path = self.path();
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let aside = |path: &Path, suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let name = format!(".damaged-{now}");
        warn!(
            error = error.words(),
            aside = %aside(&path, &name).display(),
            "the store is damaged; it is renamed and a new one is created"
        );
        for suffix in ["", "-wal", "-shm"] {
            let from = aside(&path, suffix);
            let to = aside(&path, &format!("{name}{suffix}"));
            match fs::rename(&from, &to) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::File {
                        act: "set aside",
                        path: from,
                        source,
                    });
                }
                _ => {}
            }
        }
        self.drop_aside();
        Ok(())
    }

    /// Keeps the newest of what was set aside.
    fn drop_aside(&self) {
        let prefix = format!("{FILE}.damaged-");
        let Ok(entries) = fs::read_dir(&self.options.directory) else {
            return;
        };
        let mut aside: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        // Their names end in the time, and in what SQLite adds to it.
        let time = |path: &PathBuf| {
            let name = path.to_string_lossy().into_owned();
            name.rsplit_once(".damaged-").map_or(0, |(_, time)| {
                let digits = time.split('-').next().unwrap_or_default();
                digits.parse::<u64>().unwrap_or(0)
            })
        };
        aside.sort_by_key(|path| std::cmp::Reverse(time(path)));
        let mut times: Vec<u64> = aside.iter().map(time).collect();
        times.dedup();
        let Some(oldest) = times.get(SET_ASIDE - 1).copied() else {
            return;
        };
        for path in aside.iter().filter(|path| time(path) < oldest) {
            if let Err(error) = fs::remove_file(path) {
                warn!(path = %path.display(), %error, "cannot remove an old damaged store file");
            }
        }
    }
}

impl Meta {
    fn named(&self) -> LifeId {
        LifeId {
            store: self.store.clone(),
            life: self.life,
        }
    }
}

/// Which file is at a path: its device and number.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let data = fs::metadata(path)?;
    Ok((data.dev(), data.ino()))
}

fn open(path: &Path) -> Result<Open, StoreError> {
    let failed = StoreError::sqlite;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection =
        Connection::open_with_flags(path, flags).map_err(failed("open the file"))?;
    // Until it is known to be ours, closing it moves nothing from its log into it.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(failed("set up the file"))?;
    connection
        .busy_timeout(BUSY)
        .map_err(failed("set up the file"))?;
    let version = schema::version(&connection).map_err(failed("read the version"))?;
    let application: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(failed("read the version"))?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed("read the version"))?;
    let is_ours = application == schema::APPLICATION_ID;
    if !is_ours && (tables > 0 || version > 0) {
        let path = path.to_owned();
        return Err(StoreError::Foreign { path });
    }
    if version > schema::VERSION {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: version,
            known: schema::VERSION,
        });
    }
    let set_up = |connection: &Connection| -> rusqlite::Result<()> {
        if tables == 0 {
            // Only before the first table is there.
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        }
        connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
        // A store that is read once and then written in few places needs little of it.
        connection.pragma_update(None, "cache_size", -1_024)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.set_prepared_statement_cache_capacity(64);
        sql::keep_plans(connection)
    };
    set_up(&connection).map_err(failed("set up the file"))?;
    if version < schema::VERSION {
        schema::migrate(&mut connection, version).map_err(failed("make the tables"))?;
    }
    let meta = read::meta(&connection)?;
    let held = read::held(&connection)?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        .map_err(failed("set up the file"))?;
    let file = identity(path).map_err(|source| StoreError::File {
        act: "look at",
        path: path.to_owned(),
        source,
    })?;
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    Ok(Open {
        connection,
        meta,
        file,
        log: identity(Path::new(&log)).ok(),
        held,
    })
}

/// Has all that was written on the disk.
fn sync(connection: &Connection) -> Result<(), StoreError> {
    connection
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        .map_err(StoreError::sqlite("sync"))
}
