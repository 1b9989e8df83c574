//! For the fuzz target: a ledger with rows of anybody's making, read as the next agent and a report
//! read it.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::query::Ledger;
use super::{outbox, read, schema};

/// An empty ledger in memory, to be filled again and again.
pub struct Rows {
    /// Given to whoever reads, and taken back.
    connection: Option<Connection>,
    /// The tables, and the number of their columns.
    tables: Vec<(String, usize)>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").finish_non_exhaustive()
    }
}

impl Default for Rows {
    /// Creates an empty ledger in memory.
    fn default() -> Self {
        let mut connection = Connection::open_in_memory().expect("a database in memory");
        schema::migrate(&mut connection, 0).expect("an empty ledger");
        let mut tables = Vec::new();
        {
            let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
            let mut statement = connection.prepare(sql).expect("a statement");
            let names = statement.query_map([], |row| row.get::<_, String>(0));
            for name in names.expect("rows").flatten() {
                let of = connection.prepare(&format!("SELECT * FROM {name}"));
                let columns = of.expect("a table").column_count();
                tables.push((name, columns));
            }
        }
        Self {
            connection: Some(connection),
            tables,
        }
    }
}

impl Rows {
    /// How many tables there are.
    #[must_use]
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Which table has a name.
    #[must_use]
    pub fn table(&self, name: &str) -> usize {
        let found = self.tables.iter().position(|(table, _)| table == name);
        found.expect("a table of the ledger")
    }

    /// How many columns a table has.
    #[must_use]
    pub fn columns(&self, table: usize) -> usize {
        self.tables[table].1
    }

    /// Puts the rows into their tables, reads everything, and takes them out again. A row that the
    /// tables refuse is left out.
    pub fn read(&mut self, rows: &[(usize, Vec<Value>)]) {
        let connection = self.connection.take().expect("it is given back");
        connection
            .execute_batch("PRAGMA ignore_check_constraints = 1; BEGIN")
            .expect("a transaction");
        for (table, values) in rows {
            let (name, columns) = &self.tables[*table];
            let places = vec!["?"; *columns].join(",");
            let sql = format!("INSERT OR IGNORE INTO {name} VALUES ({places})");
            // Values of the wrong number or kind.
            let _ = connection
                .prepare_cached(&sql)
                .and_then(|mut insert| insert.execute(params_from_iter(values)));
        }
        let _ = read::held(&connection);
        let _ = outbox::due(&connection, 4);
        let _ = outbox::standing(&connection);
        let meta = read::meta(&connection);
        if let Ok(Some(meta)) = &meta {
            let _ = read::state(&connection, meta);
            let _ = read::boot_of(&connection, meta.life);
        }
        if let Ok(None) = meta {
            // A ledger without any commit cannot be reported.
            connection.execute_batch("ROLLBACK").expect("an end");
            self.connection = Some(connection);
            return;
        }
        self.connection = Some(match Ledger::look(connection, "memory".into()) {
            Ok(ledger) => {
                let hours = i64::MIN..i64::MAX;
                for gpu in ledger.gpus().into_iter().flatten().take(4) {
                    let _ = ledger.account(gpu.0);
                }
                for account in -1..4 {
                    let _ = ledger.account(account);
                }
                let _ = ledger.used(&hours, drop);
                let _ = ledger.gpu_used(&hours);
                let _ = ledger.reasons_used(&hours);
                ledger.into_connection()
            }
            // It is gone with the connection.
            Err(_) => {
                *self = Self::default();
                return;
            }
        });
        if let Some(connection) = &self.connection {
            connection.execute_batch("ROLLBACK").expect("an end");
        }
    }
}
