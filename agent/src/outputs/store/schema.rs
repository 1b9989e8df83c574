//! The ledger's tables, what each of them means, and how an older file becomes a newer one.
//!
//! The file is `gpuacct.db` in the store's directory, SQLite in WAL mode, written by the one agent
//! that holds the lock beside it and readable by anybody at the same time. `PRAGMA application_id`
//! says that it is gpuacct's, `PRAGMA user_version` which migrations it has been through.
//!
//! **Units.** Times of day (`opened`, `closed`, `began`, `start`, `first_used`, …) are nanoseconds
//! since the Unix epoch. Columns that end in `_boot` are nanoseconds on the boot clock of the boot
//! in which they were written, and mean nothing in another one. Durations are nanoseconds, energy
//! millijoules, memory over time byte-seconds, memory bytes. `hour` counts hours since the Unix
//! epoch, so it is UTC's. All are 64-bit integers; an amount beyond 2^63 - 1 is stored as that.
//!
//! **The amounts**, wherever they stand beside each other: `busy`, `engine_memory`, `engine_encoder`,
//! `engine_decoder`, `engine_jpeg`, `engine_ofa`, `held`, `allocated`, `memory`, `energy`,
//! `allocated_share`, `memory_high`, as `core::amounts` explains them. Memory over time is in two
//! columns: `memory` has the lower 62 bits, `memory_high` what is above them. Its value is
//! `memory_high * 4611686018427387904.0 + memory`. An account of 192 GiB reaches 2^62 in 8 months.
//! `allocated_share` of hours that were over before version 4 is `allocated`: with how many others a
//! GPU was shared was not noted then.
//!
//! # What is written how often
//!
//! `totals` is the narrow table that a commit writes: a row for each account that was charged since
//! the commit before it. What changes rarely stands elsewhere, so that it is not written again with
//! every second of use. Hours are not counted up each second either: an account's part of the
//! present hour is what its total has beyond what is `settled`, and becomes a row of `hours` when
//! the hour is over or the account closes. **Whoever asks what was used when reads the views `used`,
//! `gpu_used` and `reasons_used`**, which have both.
//!
//! # Tables
//!
//! - `meta`, one row. `store`: a random name of this file, by which the agent's mark in its runtime
//!   directory distinguishes it from another one. `life`: the present one. `hour`: to which all that is not
//!   settled belongs. `sequence`, `commit_boot`, `committed`: which commit is the last in here, and
//!   when it was made on both clocks. `version`: of the agent that made it. `node`: the node's name, as
//!   that agent knew it; NULL until an agent of version 5 of the file has made a commit.
//! - `lives`. A life is a stretch in which series continue: it outlasts restarts of the agent, and
//!   ends with the boot, or when the store did not hold what had been published. `boot`: the
//!   kernel's boot id. `reason`: why it began, one of `first`, `reboot`, `unstored` (amounts were
//!   published that this file does not hold, or the mark that says otherwise is gone), `unusable`
//!   (what was in here cannot be continued from: a reason that this agent does not know, books that
//!   do not balance).
//! - `gpus`: every GPU or MIG instance that ever had a book. `info`: all that NVML said of it, JSON.
//! - `accounts`: one owner on one GPU in one life, open or closed. A container that outlives a
//!   reboot has an account in either life, with the same `owner`: segments, which a report adds up.
//!   `kind`: `container` (`owner` is its id), `pod` (its uid), `host` (the unit). `namespace` to
//!   `runtime`: what it is called, with `(none)` and `(unresolved)` as they are published.
//!   `attribution`: `held`, `named` (`source`: of the names), `id_only` (`source`: why it has none), or
//!   `host`. `labels`: all labels that the runtime gave, a JSON object. `opened`: the start of
//!   its first series. No charge is older, but for an account that was opened soon after a restart
//!   or after an account of its owner was closed.
//!   `held_since_boot`: since when its names have been waited for. `ended_boot`: since when it has had
//!   no process. `fed`: whether its namespace's counter has been given all of it. `closed`: when it
//!   was closed; NULL while it is open. A record whose `attribution` is `overflow` is of all those on
//!   its GPU that were closed and given up while the store took nothing; its number is negative.
//! - `instances`: which MIG instance an account is on, where it is on one. A GPU's row in `gpus` says
//!   what stands under its UUID now; an instance that is made anew may have the UUID of another. A
//!   record of `overflow` is on what stood there when it was made.
//! - `totals`: an account's whole amounts, the most memory seen in use, processes started, the ends of
//!   the first and the last window that charged it, and when its published amount last changed.
//!   `since_boot`: the earliest time of which anything is counted; NULL if an older agent opened it.
//!   `allocated_through_boot`: up to when its allocated time is counted.
//! - `allocations`: what the kubelet has given to containers that live, and what it calls them.
//!   `devices`: a JSON list of devices and when each was first listed.
//! - `settled`: how much of `totals` is in `hours`; nothing where there is no row.
//! - `series`: what of an open account is published, under which labels: `kind` is `id_only` or
//!   `named`. Where `follows` is 1 it shows all of the account that its other series does not, and
//!   its own amounts are stale; where it is 0 it shows them.
//! - `namespaces`: the counters of namespaces of this life, whole and as shown.
//! - `books`: each GPU's book of this life. `through_boot` is the cursor: the end of the last window
//!   that is booked. `closed_…`: what accounts held that have been closed.
//! - `reasons`: unattributed (`kind` `unattributed`) and unobserved (`unobserved`) time of a book.
//! - `processes`: those that have to do with a GPU and live, or died so lately that the driver may name
//!   them still. `ticks`: the start as `/proc` shows it; `start_boot`: the same as finely as it is known.
//!   `by_event`, `exit_reported`: whether an event said so. `cgroups`: hierarchies and paths, JSON.
//!   `before`: those in which it was before, if it had only just moved. `moved_boot`: when; NULL if
//!   nobody saw it.
//!   `accounts`: the low halves of the accounts on which it is counted as started, JSON.
//! - `held`, one row at most. `since_boot`: since when the wall clock has kept pace with the boot
//!   clock. Nothing is dropped for its age before it has done so for a while.
//! - `hours`, `gpu_hours`, `reason_hours`: what was booked in each hour that is over.
//! - `account_records`, `gpu_records`: what has become of the usage record of an account's or a GPU's
//!   hour. There is a row for each hour below `records_through` in which anything was used or accounted
//!   for, and none where `records.enabled` has never been set. `revision`: the last one that was given to
//!   the exporter, 0 before the first.
//!   `state`: `due` (what the hour has now was never given to the exporter; its revision will be the
//!   next one), `offered` (given to the exporter, perhaps sent, not acknowledged: the same revision
//!   with the same content is sent again), `settled` (acknowledged, or refused for good). Triggers make
//!   a row `due` when its hour changes later, or the names or labels of its account do. So the amounts and
//!   names of an offered revision never change. Which labels are sent depends on the configuration.
//! - `records_through`, one row at most. `hour`: every hour before this one has its rows in
//!   `account_records` and `gpu_records`.

use rusqlite::Connection;

/// `PRAGMA application_id` of the ledger: "gpua".
pub const APPLICATION_ID: i32 = 0x6770_7561;

/// The ten amounts of version 1 as column definitions, names beginning with a prefix.
macro_rules! amounts {
    ($prefix:literal) => {
        concat!(
            $prefix,
            "busy INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "engine_memory INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "engine_encoder INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "engine_decoder INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "engine_jpeg INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "engine_ofa INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "held INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "allocated INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "memory INTEGER NOT NULL DEFAULT 0, ",
            $prefix,
            "energy INTEGER NOT NULL DEFAULT 0"
        )
    };
}

/// The amounts that version 4 adds to a table, and its memory in the form of that version.
macro_rules! newer_amounts {
    ($table:literal, $prefix:literal) => {
        concat!(
            "ALTER TABLE ",
            $table,
            " ADD COLUMN ",
            $prefix,
            "allocated_share INTEGER NOT NULL DEFAULT 0; ALTER TABLE ",
            $table,
            " ADD COLUMN ",
            $prefix,
            "memory_high INTEGER NOT NULL DEFAULT 0; UPDATE ",
            $table,
            " SET ",
            $prefix,
            "memory_high = ",
            $prefix,
            "memory >> 62, ",
            $prefix,
            "memory = ",
            $prefix,
            "memory & 0x3FFFFFFFFFFFFFFF WHERE ",
            $prefix,
            "memory > 0x3FFFFFFFFFFFFFFF; "
        )
    };
}

/// The names of the amounts' columns, in the order in which they are always written.
pub(super) const AMOUNTS: [&str; 12] = [
    "busy",
    "engine_memory",
    "engine_encoder",
    "engine_decoder",
    "engine_jpeg",
    "engine_ofa",
    "held",
    "allocated",
    "memory",
    "energy",
    "allocated_share",
    "memory_high",
];

/// What the lower of the two columns of memory holds at most: the rest is in the other.
pub(super) const MEMORY_LOW_BITS: u32 = 62;

/// What leads from each version to the next: the first makes version 1 of an empty file. Migrations
/// only add; none is ever changed once it has been released.
const MIGRATIONS: &[&str] = &[
    concat!(
        "
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        store TEXT NOT NULL,
        life INTEGER NOT NULL,
        hour INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        commit_boot INTEGER NOT NULL,
        committed INTEGER NOT NULL,
        version TEXT NOT NULL
    );
    CREATE TABLE lives (
        life INTEGER PRIMARY KEY,
        boot TEXT NOT NULL,
        began INTEGER NOT NULL,
        reason TEXT NOT NULL
    );
    CREATE TABLE gpus (
        gpu INTEGER PRIMARY KEY,
        uuid TEXT NOT NULL UNIQUE,
        place INTEGER NOT NULL,
        model TEXT NOT NULL,
        driver TEXT NOT NULL,
        info TEXT NOT NULL
    );
    CREATE TABLE accounts (
        account INTEGER PRIMARY KEY,
        life INTEGER NOT NULL REFERENCES lives,
        gpu INTEGER NOT NULL REFERENCES gpus,
        kind TEXT NOT NULL,
        owner TEXT NOT NULL,
        namespace TEXT NOT NULL,
        pod TEXT NOT NULL,
        container TEXT NOT NULL,
        pod_uid TEXT NOT NULL,
        container_id TEXT NOT NULL,
        image TEXT NOT NULL,
        runtime TEXT NOT NULL,
        attribution TEXT NOT NULL,
        source TEXT,
        labels TEXT NOT NULL,
        opened INTEGER NOT NULL,
        held_since_boot INTEGER NOT NULL,
        ended_boot INTEGER,
        fed INTEGER NOT NULL,
        closed INTEGER
    );
    CREATE INDEX accounts_open ON accounts (life) WHERE closed IS NULL;
    CREATE INDEX accounts_closed ON accounts (closed) WHERE closed IS NOT NULL;
    CREATE TABLE totals (
        account INTEGER PRIMARY KEY REFERENCES accounts,
        ",
        amounts!(""),
        ",
        memory_peak INTEGER,
        processes_started INTEGER NOT NULL DEFAULT 0,
        first_used INTEGER,
        last_used INTEGER,
        changed_boot INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE settled (
        account INTEGER PRIMARY KEY REFERENCES accounts,
        ",
        amounts!(""),
        "
    );
    CREATE TABLE series (
        account INTEGER NOT NULL REFERENCES accounts,
        kind TEXT NOT NULL,
        namespace TEXT NOT NULL,
        pod TEXT NOT NULL,
        container TEXT NOT NULL,
        pod_uid TEXT NOT NULL,
        container_id TEXT NOT NULL,
        start INTEGER NOT NULL,
        shown_boot INTEGER NOT NULL,
        changed_boot INTEGER NOT NULL,
        follows INTEGER NOT NULL,
        ",
        amounts!(""),
        ",
        PRIMARY KEY (account, kind)
    ) WITHOUT ROWID;
    CREATE TABLE namespaces (
        gpu INTEGER NOT NULL REFERENCES gpus,
        namespace TEXT NOT NULL,
        start INTEGER NOT NULL,
        shown_boot INTEGER NOT NULL,
        changed_boot INTEGER NOT NULL,
        ",
        amounts!(""),
        ",
        ",
        amounts!("shown_"),
        ",
        PRIMARY KEY (gpu, namespace)
    ) WITHOUT ROWID;
    CREATE TABLE books (
        gpu INTEGER PRIMARY KEY REFERENCES gpus,
        start INTEGER NOT NULL,
        through_boot INTEGER,
        elapsed INTEGER NOT NULL,
        busy INTEGER NOT NULL,
        idle INTEGER NOT NULL,
        energy INTEGER,
        energy_idle INTEGER NOT NULL,
        energy_unattributed INTEGER NOT NULL,
        windows INTEGER NOT NULL,
        torn_windows INTEGER NOT NULL,
        invalid_rows INTEGER NOT NULL,
        cut INTEGER NOT NULL,
        ",
        amounts!("closed_"),
        ",
        settled_elapsed INTEGER NOT NULL DEFAULT 0,
        settled_busy INTEGER NOT NULL DEFAULT 0,
        settled_idle INTEGER NOT NULL DEFAULT 0,
        settled_energy INTEGER NOT NULL DEFAULT 0,
        settled_energy_idle INTEGER NOT NULL DEFAULT 0,
        settled_energy_unattributed INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE reasons (
        gpu INTEGER NOT NULL REFERENCES gpus,
        kind TEXT NOT NULL,
        reason TEXT NOT NULL,
        time INTEGER NOT NULL,
        settled INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (gpu, kind, reason)
    ) WITHOUT ROWID;
    CREATE TABLE hours (
        hour INTEGER NOT NULL,
        account INTEGER NOT NULL REFERENCES accounts,
        ",
        amounts!(""),
        ",
        PRIMARY KEY (hour, account)
    ) WITHOUT ROWID;
    CREATE TABLE gpu_hours (
        hour INTEGER NOT NULL,
        gpu INTEGER NOT NULL REFERENCES gpus,
        elapsed INTEGER NOT NULL,
        busy INTEGER NOT NULL,
        idle INTEGER NOT NULL,
        energy INTEGER NOT NULL,
        energy_idle INTEGER NOT NULL,
        energy_unattributed INTEGER NOT NULL,
        PRIMARY KEY (hour, gpu)
    ) WITHOUT ROWID;
    CREATE TABLE reason_hours (
        hour INTEGER NOT NULL,
        gpu INTEGER NOT NULL REFERENCES gpus,
        kind TEXT NOT NULL,
        reason TEXT NOT NULL,
        time INTEGER NOT NULL,
        PRIMARY KEY (hour, gpu, kind, reason)
    ) WITHOUT ROWID;

    -- What is not in hours yet. Only open accounts have any.
    CREATE VIEW unsettled AS
        SELECT a.account,
            t.busy - coalesce(s.busy, 0) AS busy,
            t.engine_memory - coalesce(s.engine_memory, 0) AS engine_memory,
            t.engine_encoder - coalesce(s.engine_encoder, 0) AS engine_encoder,
            t.engine_decoder - coalesce(s.engine_decoder, 0) AS engine_decoder,
            t.engine_jpeg - coalesce(s.engine_jpeg, 0) AS engine_jpeg,
            t.engine_ofa - coalesce(s.engine_ofa, 0) AS engine_ofa,
            t.held - coalesce(s.held, 0) AS held,
            t.allocated - coalesce(s.allocated, 0) AS allocated,
            t.memory - coalesce(s.memory, 0) AS memory,
            t.energy - coalesce(s.energy, 0) AS energy
        FROM accounts a JOIN totals t USING (account) LEFT JOIN settled s USING (account)
        WHERE a.closed IS NULL
            AND (s.account IS NULL
                OR (t.busy, t.engine_memory, t.engine_encoder, t.engine_decoder, t.engine_jpeg,
                    t.engine_ofa, t.held, t.allocated, t.memory, t.energy)
                IS NOT (s.busy, s.engine_memory, s.engine_encoder, s.engine_decoder, s.engine_jpeg,
                    s.engine_ofa, s.held, s.allocated, s.memory, s.energy));
    -- What each account used in each hour, the present one included.
    CREATE VIEW used AS
        SELECT hour, account, busy, engine_memory, engine_encoder, engine_decoder, engine_jpeg,
            engine_ofa, held, allocated, memory, energy
        FROM hours
        UNION ALL
        SELECT (SELECT hour FROM meta), account, busy, engine_memory, engine_encoder,
            engine_decoder, engine_jpeg, engine_ofa, held, allocated, memory, energy
        FROM unsettled;
    -- What became of each GPU's time in each hour.
    CREATE VIEW gpu_used AS
        SELECT hour, gpu, elapsed, busy, idle, energy, energy_idle, energy_unattributed
        FROM gpu_hours
        UNION ALL
        SELECT (SELECT hour FROM meta), gpu, elapsed - settled_elapsed, busy - settled_busy,
            idle - settled_idle, coalesce(energy, 0) - settled_energy,
            energy_idle - settled_energy_idle,
            energy_unattributed - settled_energy_unattributed
        FROM books;
    CREATE VIEW reasons_used AS
        SELECT hour, gpu, kind, reason, time FROM reason_hours
        UNION ALL
        SELECT (SELECT hour FROM meta), gpu, kind, reason, time - settled FROM reasons;
    "
    ),
    "
    CREATE TABLE instances (
        account INTEGER PRIMARY KEY REFERENCES accounts,
        profile TEXT NOT NULL,
        parent TEXT NOT NULL,
        gpu_instance INTEGER NOT NULL,
        compute_instance INTEGER NOT NULL
    );
    CREATE TABLE held (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        since_boot INTEGER NOT NULL
    );
    -- Of older accounts no more is known than what is there now.
    INSERT INTO instances
        SELECT account, profile, parent, gpu_instance, compute_instance
        FROM (SELECT a.account, json_extract(g.info, '$.mig.profile') AS profile,
                json_extract(g.info, '$.mig.parent') AS parent,
                json_extract(g.info, '$.mig.gpu_instance') AS gpu_instance,
                json_extract(g.info, '$.mig.compute_instance') AS compute_instance
            FROM accounts a JOIN gpus g USING (gpu) WHERE json_valid(g.info))
        WHERE profile IS NOT NULL AND parent IS NOT NULL AND gpu_instance IS NOT NULL
            AND compute_instance IS NOT NULL;
    ",
    "
    CREATE TABLE processes (
        pid INTEGER NOT NULL,
        ticks INTEGER NOT NULL,
        start_boot INTEGER NOT NULL,
        by_event INTEGER NOT NULL,
        exit_boot INTEGER,
        exit_reported INTEGER NOT NULL,
        cgroups TEXT NOT NULL,
        before TEXT,
        moved_boot INTEGER,
        accounts TEXT NOT NULL,
        PRIMARY KEY (pid, ticks)
    ) WITHOUT ROWID;
    ",
    // The memory of an account is beyond 63 bits after 1.4 years of 192 GiB. What was allocated
    // before is not known to have been shared, and stays undivided in the hours that have it.
    concat!(
        "
    ALTER TABLE totals ADD COLUMN since_boot INTEGER;
    ALTER TABLE totals ADD COLUMN allocated_through_boot INTEGER;
    CREATE TABLE allocations (
        container TEXT PRIMARY KEY,
        namespace TEXT NOT NULL,
        pod TEXT NOT NULL,
        name TEXT NOT NULL,
        devices TEXT NOT NULL
    ) WITHOUT ROWID;
    DROP VIEW used;
    DROP VIEW unsettled;
    ",
        newer_amounts!("totals", ""),
        newer_amounts!("settled", ""),
        newer_amounts!("series", ""),
        newer_amounts!("namespaces", ""),
        newer_amounts!("namespaces", "shown_"),
        newer_amounts!("books", "closed_"),
        newer_amounts!("hours", ""),
        "
    CREATE VIEW unsettled AS
        SELECT a.account,
            t.busy - coalesce(s.busy, 0) AS busy,
            t.engine_memory - coalesce(s.engine_memory, 0) AS engine_memory,
            t.engine_encoder - coalesce(s.engine_encoder, 0) AS engine_encoder,
            t.engine_decoder - coalesce(s.engine_decoder, 0) AS engine_decoder,
            t.engine_jpeg - coalesce(s.engine_jpeg, 0) AS engine_jpeg,
            t.engine_ofa - coalesce(s.engine_ofa, 0) AS engine_ofa,
            t.held - coalesce(s.held, 0) AS held,
            t.allocated - coalesce(s.allocated, 0) AS allocated,
            (t.memory - coalesce(s.memory, 0)) & 0x3FFFFFFFFFFFFFFF AS memory,
            t.energy - coalesce(s.energy, 0) AS energy,
            t.allocated_share - coalesce(s.allocated_share, 0) AS allocated_share,
            t.memory_high - coalesce(s.memory_high, 0)
                + ((t.memory - coalesce(s.memory, 0)) >> 62) AS memory_high
        FROM accounts a JOIN totals t USING (account) LEFT JOIN settled s USING (account)
        WHERE a.closed IS NULL
            AND (s.account IS NULL
                OR (t.busy, t.engine_memory, t.engine_encoder, t.engine_decoder, t.engine_jpeg,
                    t.engine_ofa, t.held, t.allocated, t.memory, t.energy, t.allocated_share,
                    t.memory_high)
                IS NOT (s.busy, s.engine_memory, s.engine_encoder, s.engine_decoder, s.engine_jpeg,
                    s.engine_ofa, s.held, s.allocated, s.memory, s.energy, s.allocated_share,
                    s.memory_high));
    CREATE VIEW used AS
        SELECT hour, account, busy, engine_memory, engine_encoder, engine_decoder, engine_jpeg,
            engine_ofa, held, allocated, memory, energy, allocated_share, memory_high
        FROM hours
        UNION ALL
        SELECT (SELECT hour FROM meta), account, busy, engine_memory, engine_encoder,
            engine_decoder, engine_jpeg, engine_ofa, held, allocated, memory, energy,
            allocated_share, memory_high
        FROM unsettled;
    UPDATE hours SET allocated_share = allocated;
    INSERT INTO hours (hour, account, allocated_share)
        SELECT (SELECT hour FROM meta), account, allocated FROM unsettled WHERE allocated > 0
        ON CONFLICT (hour, account)
            DO UPDATE SET allocated_share = allocated_share + excluded.allocated_share;
    "
    ),
    "
    ALTER TABLE meta ADD COLUMN node TEXT;
    ",
    // Triggers, since a row that changes later must never be forgotten, whoever writes it. They run
    // only where a row of an hour is written: when an hour ends and when an account is closed.
    "
    CREATE TABLE account_records (
        account INTEGER NOT NULL REFERENCES accounts,
        hour INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('due', 'offered', 'settled')),
        PRIMARY KEY (account, hour)
    ) WITHOUT ROWID;
    CREATE INDEX account_records_open ON account_records (hour) WHERE state <> 'settled';
    CREATE TABLE gpu_records (
        gpu INTEGER NOT NULL REFERENCES gpus,
        hour INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('due', 'offered', 'settled')),
        PRIMARY KEY (gpu, hour)
    ) WITHOUT ROWID;
    CREATE INDEX gpu_records_open ON gpu_records (hour) WHERE state <> 'settled';
    CREATE TABLE records_through (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        hour INTEGER NOT NULL
    );
    CREATE TRIGGER hour_added AFTER INSERT ON hours
        WHEN NEW.hour < (SELECT hour FROM records_through)
    BEGIN
        INSERT INTO account_records VALUES (NEW.account, NEW.hour, 0, 'due')
            ON CONFLICT (account, hour) DO UPDATE SET state = 'due';
    END;
    CREATE TRIGGER hour_changed AFTER UPDATE ON hours
        WHEN NEW.hour < (SELECT hour FROM records_through)
    BEGIN
        INSERT INTO account_records VALUES (NEW.account, NEW.hour, 0, 'due')
            ON CONFLICT (account, hour) DO UPDATE SET state = 'due';
    END;
    CREATE TRIGGER gpu_hour_added AFTER INSERT ON gpu_hours
        WHEN NEW.hour < (SELECT hour FROM records_through)
    BEGIN
        INSERT INTO gpu_records VALUES (NEW.gpu, NEW.hour, 0, 'due')
            ON CONFLICT (gpu, hour) DO UPDATE SET state = 'due';
    END;
    CREATE TRIGGER gpu_hour_changed AFTER UPDATE ON gpu_hours
        WHEN NEW.hour < (SELECT hour FROM records_through)
    BEGIN
        INSERT INTO gpu_records VALUES (NEW.gpu, NEW.hour, 0, 'due')
            ON CONFLICT (gpu, hour) DO UPDATE SET state = 'due';
    END;
    CREATE TRIGGER reason_hour_added AFTER INSERT ON reason_hours
    BEGIN
        UPDATE gpu_records SET state = 'due' WHERE gpu = NEW.gpu AND hour = NEW.hour;
    END;
    CREATE TRIGGER reason_hour_changed AFTER UPDATE ON reason_hours
    BEGIN
        UPDATE gpu_records SET state = 'due' WHERE gpu = NEW.gpu AND hour = NEW.hour;
    END;
    CREATE TRIGGER account_named AFTER UPDATE OF namespace, pod, container, pod_uid, container_id,
            image, runtime, attribution, labels ON accounts
        WHEN (OLD.namespace, OLD.pod, OLD.container, OLD.pod_uid, OLD.container_id, OLD.image,
                OLD.runtime, OLD.attribution, OLD.labels)
            IS NOT (NEW.namespace, NEW.pod, NEW.container, NEW.pod_uid, NEW.container_id, NEW.image,
                NEW.runtime, NEW.attribution, NEW.labels)
    BEGIN
        UPDATE account_records SET state = 'due' WHERE account = NEW.account;
    END;
    ",
];

/// The version of a file that has been through every migration.
pub const VERSION: u32 = {
    assert!(MIGRATIONS.len() < 1_000_000);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the number of migrations, checked above"
    )]
    let version = MIGRATIONS.len() as u32;
    version
};

/// The version from which on amounts have [`AMOUNTS`], and not only the first ten of them.
pub(super) const SHARES_SINCE: u32 = 4;

/// The version from which on the ledger names its node.
pub(super) const NODE_SINCE: u32 = 5;

/// The version that has the table `instances`.
pub(super) const INSTANCES_SINCE: u32 = 2;

/// Which version a file has; 0 is an empty one.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Brings a file from `version` to [`VERSION`], in one transaction.
pub(super) fn migrate(connection: &mut Connection, version: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for migration in MIGRATIONS.iter().skip(version as usize) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Connection {
        let mut connection = Connection::open_in_memory().expect("memory is there");
        migrate(&mut connection, 0).expect("the migrations are sound");
        connection
    }

    #[test]
    fn an_empty_file_becomes_the_present_version() {
        let connection = made();
        assert_eq!(version(&connection), Ok(VERSION));
        let id: i32 = connection
            .pragma_query_value(None, "application_id", |row| row.get(0))
            .expect("it was set");
        assert_eq!(id, APPLICATION_ID);
    }

    #[test]
    fn an_older_files_accounts_are_on_the_instances_that_are_there_now() {
        let mut connection = Connection::open_in_memory().expect("memory is there");
        connection
            .execute_batch(MIGRATIONS[0])
            .and_then(|()| {
                connection.execute_batch(
                    r#"INSERT INTO lives VALUES (1, 'boot', 0, 'first');
                    INSERT INTO gpus VALUES (1, 'MIG-0', 0, 'm', 'd', '{"mig":{"parent":"GPU-0",
                            "profile":"1g.10gb","gpu_instance":7,"compute_instance":0}}'),
                        (2, 'GPU-1', 1, 'm', 'd', '{"mig":null}'), (3, 'GPU-2', 2, 'm', 'd', 'no JSON');
                    INSERT INTO accounts SELECT gpu, 1, gpu, 'container', 'a', '', '', '', '', '', '',
                        '', 'named', 'docker', '{}', 0, 0, NULL, 1, NULL FROM gpus;"#,
                )
            })
            .expect("version 1 and its rows");
        migrate(&mut connection, 1).expect("the migration is sound");
        assert_eq!(version(&connection), Ok(VERSION));
        let found: (i64, i64, String, String, i64) = connection
            .query_row(
                "SELECT count(*), account, profile, parent, gpu_instance FROM instances",
                [],
                |row| {
                    let all = (row.get(0)?, row.get(1)?, row.get(2)?);
                    Ok((all.0, all.1, all.2, row.get(3)?, row.get(4)?))
                },
            )
            .expect("one row");
        assert_eq!(found, (1, 1, "1g.10gb".into(), "GPU-0".into(), 7));
    }

    /// A file of version 3 with an open and a closed account, one of which has as much memory as
    /// that version could hold.
    fn third() -> Connection {
        let connection = Connection::open_in_memory().expect("memory is there");
        for migration in &MIGRATIONS[..3] {
            connection.execute_batch(migration).expect("it is sound");
        }
        connection
            .execute_batch(
                "INSERT INTO meta VALUES (1, 'x', 1, 7, 0, 0, 0, '');
                INSERT INTO lives VALUES (1, 'boot', 0, 'first');
                INSERT INTO gpus VALUES (1, 'GPU-0', 0, 'm', 'd', '{}');
                INSERT INTO accounts VALUES
                    (1, 1, 1, 'container', 'a', '', '', '', '', '', '', '', 'named', 'docker', '{}', 0, 0, NULL, 1, NULL),
                    (2, 1, 1, 'container', 'b', '', '', '', '', '', '', '', 'named', 'docker', '{}', 0, 0, NULL, 1, 9),
                    (3, 1, 1, 'container', 'c', '', '', '', '', '', '', '', 'named', 'docker', '{}', 0, 0, NULL, 1, NULL);
                INSERT INTO totals (account, allocated, memory) VALUES
                    (1, 100, 9223372036854775807), (2, 50, 5), (3, 8, 1);
                INSERT INTO settled (account, allocated, memory) VALUES
                    (1, 60, 4611686018427387904);
                INSERT INTO hours (hour, account, allocated, memory) VALUES
                    (6, 1, 60, 4611686018427387904), (6, 2, 50, 5);
                PRAGMA user_version = 3;",
            )
            .expect("the rows fit");
        connection
    }

    #[test]
    fn a_file_of_version_3_keeps_its_memory_and_its_allocated_time() {
        let mut connection = third();
        migrate(&mut connection, 3).expect("the migration is sound");
        assert_eq!(version(&connection), Ok(VERSION));
        let mut used = connection
            .prepare(
                "SELECT hour, account, sum(allocated), sum(allocated_share), sum(memory_high),
                    sum(memory)
                FROM used GROUP BY hour, account ORDER BY hour, account",
            )
            .expect("the view is there");
        let used: Vec<[i64; 6]> = used
            .query_map([], |row| {
                let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|at| row.get(at));
                Ok([a?, b?, c?, d?, e?, f?])
            })
            .and_then(Iterator::collect)
            .expect("the rows are there");
        assert_eq!(
            used,
            [
                [6, 1, 60, 60, 1, 0],
                [6, 2, 50, 50, 0, 5],
                [7, 1, 40, 40, 0, (1 << 62) - 1],
                [7, 3, 8, 8, 0, 1],
            ],
            "undivided, and all of the memory"
        );
        let totals: (i64, i64, i64, Option<i64>) = connection
            .query_row(
                "SELECT memory_high, memory, allocated_share, since_boot FROM totals
                WHERE account = 1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )
            .expect("the row is there");
        assert_eq!(totals, (1, (1 << 62) - 1, 0, None));
    }

    #[test]
    fn a_file_of_version_5_keeps_its_hours_and_has_no_records_of_them_yet() {
        let mut connection = Connection::open_in_memory().expect("memory is there");
        for migration in &MIGRATIONS[..5] {
            connection.execute_batch(migration).expect("it is sound");
        }
        connection
            .execute_batch(
                "INSERT INTO meta VALUES (1, 'x', 1, 7, 0, 0, 0, '', 'node');
                INSERT INTO lives VALUES (1, 'boot', 0, 'first');
                INSERT INTO gpus VALUES (1, 'GPU-0', 0, 'm', 'd', '{}');
                INSERT INTO accounts VALUES
                    (1, 1, 1, 'container', 'a', '', '', '', '', '', '', '', 'named', 'docker', '{}', 0, 0, NULL, 1, NULL);
                INSERT INTO hours (hour, account, busy) VALUES (6, 1, 60);
                INSERT INTO gpu_hours VALUES (6, 1, 100, 60, 40, 0, 0, 0);
                PRAGMA user_version = 5;",
            )
            .expect("the rows fit");
        migrate(&mut connection, 5).expect("the migration is sound");
        assert_eq!(version(&connection), Ok(VERSION));
        // An hour that changes is nobody's concern before records are sent.
        connection
            .execute_batch(
                "UPDATE hours SET busy = busy + 1;
                UPDATE gpu_hours SET busy = busy + 1;
                INSERT INTO hours (hour, account, busy) VALUES (5, 1, 1);
                INSERT INTO gpu_hours VALUES (5, 1, 1, 1, 0, 0, 0, 0);
                INSERT INTO reason_hours VALUES (6, 1, 'unobserved', 'agent_down', 1);
                UPDATE accounts SET pod = 'b';",
            )
            .expect("the triggers are sound");
        let counts: [i64; 4] = connection
            .query_row(
                "SELECT (SELECT sum(busy) FROM used), (SELECT sum(busy) FROM gpu_used),
                    (SELECT count(*) FROM account_records), (SELECT count(*) FROM gpu_records)",
                [],
                |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]),
            )
            .expect("the tables are there");
        assert_eq!(counts, [62, 62, 0, 0]);
    }

    #[test]
    fn every_table_of_amounts_has_them_in_order() {
        let connection = made();
        for (table, prefix) in [
            ("totals", ""),
            ("settled", ""),
            ("series", ""),
            ("namespaces", ""),
            ("namespaces", "shown_"),
            ("books", "closed_"),
            ("hours", ""),
            ("unsettled", ""),
            ("used", ""),
        ] {
            let mut columns = connection
                .prepare("SELECT name FROM pragma_table_info(?1)")
                .expect("a pragma can be asked");
            let columns: Vec<String> = columns
                .query_map([table], |row| row.get(0))
                .and_then(Iterator::collect)
                .expect("the table is there");
            // Those of version 1 were made with the table, the others were added to it.
            let wanted = AMOUNTS.map(|amount| format!("{prefix}{amount}"));
            let (first, added) = wanted.split_at(10);
            for wanted in [first, added] {
                assert!(
                    columns.windows(wanted.len()).any(|found| found == wanted),
                    "{table}: {columns:?}"
                );
            }
        }
    }

    #[test]
    fn the_present_hour_is_what_is_not_settled() {
        let connection = made();
        connection
            .execute_batch(
                "INSERT INTO meta VALUES (1, 'x', 1, 7, 0, 0, 0, '', NULL);
                 INSERT INTO lives VALUES (1, 'boot', 0, 'first');
                 INSERT INTO gpus VALUES (1, 'GPU-0', 0, 'm', 'd', '{}');
                 INSERT INTO accounts VALUES
                    (1, 1, 1, 'container', 'a', '', '', '', '', '', '', '', 'named', 'docker', '{}', 0, 0, NULL, 1, NULL),
                    (2, 1, 1, 'container', 'b', '', '', '', '', '', '', '', 'named', 'docker', '{}', 0, 0, NULL, 1, 9),
                    (3, 1, 1, 'container', 'c', '', '', '', '', '', '', '', 'named', 'docker', '{}', 0, 0, NULL, 1, NULL);
                 INSERT INTO totals (account, busy, energy) VALUES (1, 100, 10), (2, 50, 5), (3, 8, 0);
                 INSERT INTO settled (account, busy, energy) VALUES (1, 60, 10), (3, 8, 0);
                 INSERT INTO hours (hour, account, busy, energy) VALUES (6, 1, 60, 10), (6, 2, 50, 5), (6, 3, 8, 0);",
            )
            .expect("the rows fit");
        let mut used = connection
            .prepare("SELECT hour, account, busy, energy FROM used ORDER BY account, hour")
            .expect("the view is there");
        let used: Vec<(i64, i64, i64, i64)> = used
            .query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .and_then(Iterator::collect)
            .expect("the rows are there");
        assert_eq!(
            used,
            [(6, 1, 60, 10), (7, 1, 40, 0), (6, 2, 50, 5), (6, 3, 8, 0)]
        );
    }
}
