//! Usage records in SQL: the files of `deploy/sql` as they are shipped, run by DuckDB and by ClickHouse.
//!
//! Both come from PyPI and run inside of a Python program. Each gets the messages as an OpenTelemetry
//! Collector would have left them: DuckDB a file of OTLP as JSON, a message in each line, as the exporters
//! `file` and `awss3` write it; ClickHouse a table with the columns of the exporter `clickhouse`. These
//! exporters are parts of the Collector's distribution "contrib", which cannot be had here; what
//! they make of a message is written anew here, after their documentation.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use serde_json::{Value, json};

use crate::python::{Venv, run, venv};

/// A row of an answer: its columns as text.
pub type Row = Vec<String>;

/// An engine and the Python program that runs it.
#[derive(Clone, Debug)]
pub struct Engine {
    python: PathBuf,
    /// The folder of its packages, where they are not in Python's own.
    packages: Option<PathBuf>,
    program: &'static str,
    file: &'static str,
}

/// DuckDB.
///
/// # Errors
/// If PyPI does not give it.
pub fn duckdb() -> Result<Engine> {
    Ok(Engine {
        python: duckdb_venv()?.program("python"),
        packages: None,
        program: include_str!("sql/duckdb.py"),
        file: "duckdb.sql",
    })
}

/// ClickHouse, in a process of its own.
///
/// # Errors
/// If PyPI does not give it.
pub fn clickhouse() -> Result<Engine> {
    // What it depends on serves data frames, of which there are none here, and is as large as it is.
    let venv = duckdb_venv()?;
    let packages = venv.lone_package("chdb", "chdb-core==26.9.0", |installed, taken| {
        for entry in fs::read_dir(installed)? {
            let entry = entry?;
            fs::rename(entry.path(), taken.join(entry.file_name()))?;
        }
        Ok(())
    })?;
    Ok(Engine {
        python: venv.program("python"),
        packages: Some(packages),
        program: include_str!("sql/clickhouse.py"),
        file: "clickhouse.sql",
    })
}

/// The environment whose Python runs both.
fn duckdb_venv() -> Result<Venv> {
    venv("duckdb", &["duckdb==2.0.1"])
}

impl Engine {
    /// The answers to questions about the messages, each of which is a line of a file in `dir`.
    ///
    /// # Errors
    /// If the engine refuses the shipped file or a question; the message has its words.
    pub fn ask(
        &self,
        dir: &Path,
        messages: &[ExportLogsServiceRequest],
        questions: &[&str],
    ) -> Result<Vec<Vec<Row>>> {
        let lines = dir.join("messages.json");
        fs::write(&lines, ndjson(messages)?)
            .with_context(|| format!("cannot write {}", lines.display()))?;
        let sql = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/sql");
        let mut python = Command::new(&self.python);
        if let Some(packages) = &self.packages {
            python.env("PYTHONPATH", packages);
        }
        let answer = run(python
            .args(["-c", self.program])
            .arg(sql.join(self.file))
            .arg(&lines)
            .args(questions)
            .current_dir(dir))?;
        serde_json::from_str(&answer).with_context(|| format!("no rows: {answer}"))
    }
}

/// Messages as the Collector writes them in JSON: by the mapping of protobuf to JSON, in which 64-bit
/// integers are texts.
fn ndjson(messages: &[ExportLogsServiceRequest]) -> Result<String> {
    let mut lines = String::new();
    for message in messages {
        let resources = message.resource_logs.iter().map(|resource| {
            let scopes = resource.scope_logs.iter().map(|scope| {
                let records = scope.log_records.iter().map(|record| {
                    json!({
                        "timeUnixNano": record.time_unix_nano.to_string(),
                        "observedTimeUnixNano": record.observed_time_unix_nano.to_string(),
                        "severityNumber": record.severity_number,
                        "severityText": record.severity_text,
                        "body": {},
                        "attributes": pairs(&record.attributes),
                        "traceId": "",
                        "spanId": "",
                        "eventName": record.event_name,
                    })
                });
                let of = scope.scope.clone().unwrap_or_default();
                json!({
                    "scope": {"name": of.name, "version": of.version},
                    "logRecords": records.collect::<Vec<_>>(),
                    "schemaUrl": scope.schema_url,
                })
            });
            let of = resource.resource.clone().unwrap_or_default();
            json!({
                "resource": {"attributes": pairs(&of.attributes)},
                "scopeLogs": scopes.collect::<Vec<_>>(),
                "schemaUrl": resource.schema_url,
            })
        });
        let message = json!({"resourceLogs": resources.collect::<Vec<_>>()});
        writeln!(lines, "{message}")?;
    }
    Ok(lines)
}

fn pairs(attributes: &[KeyValue]) -> Vec<Value> {
    let pairs = attributes.iter().map(|pair| {
        let value = pair.value.as_ref().map_or(json!({}), value);
        json!({"key": pair.key, "value": value})
    });
    pairs.collect()
}

fn value(of: &AnyValue) -> Value {
    match &of.value {
        Some(any_value::Value::StringValue(text)) => json!({"stringValue": text}),
        Some(any_value::Value::IntValue(number)) => json!({"intValue": number.to_string()}),
        Some(any_value::Value::ArrayValue(list)) => {
            let values: Vec<_> = list.values.iter().map(value).collect();
            json!({"arrayValue": {"values": values}})
        }
        // No other kind is in a usage record.
        other => json!({"stringValue": format!("{other:?}")}),
    }
}
