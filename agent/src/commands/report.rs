//! `gpuacct report`: what was used in the past, for people, spreadsheets and programs.
//!
//! It reads the ledger by itself, beside a running agent or without one, and changes nothing. What is
//! printed is in `report/print.rs`, what it means in [`crate::report`].

mod print;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::Timestamp;

use super::agent_choice::AgentChoice;
use super::complaint::{complain, print as print_out, remedy_of, say};
use crate::errors::chain;
use crate::outputs::store::query::Ledger;
use crate::report::prices::Prices;
use crate::report::range::{Asked, Moment};
use crate::report::tally::Dimension;
use crate::report::{self, ReportError};

/// Show what was used in the past, from the node's ledger
///
/// Reads the ledger without the agent and beside it. Whole hours, UTC. Exits with 0 if it was
/// printed, with 1 if the ledger cannot be read or does not balance, with 2 if the flags, the range
/// or the prices are wrong.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Beginning of the range: a time or an age such as 7d; the whole hour is included
    #[arg(long, value_name = "D|T", default_value = "24h")]
    since: Moment,
    /// End of the range: a time or an age; its hour is not included [default: the last commit]
    #[arg(long, value_name = "D|T")]
    until: Option<Moment>,
    /// What to group by, with commas: namespace, pod, pod_uid, container, container_id, image,
    /// runtime, unit, label:KEY, gpu, model, profile, hour, day, month
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "namespace"
    )]
    by: Vec<Dimension>,
    /// Output format: table, csv, json or ndjson
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// A table as wide as it takes, with held time, the other engines, processes, memory's peak,
    /// first and last use; the other outputs always have all
    #[arg(long)]
    wide: bool,
    /// Prices by GPU model and MIG profile, a TOML file
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Directory of the store, or ledger file [default: store.path of the configuration]
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    #[command(flatten)]
    agent: AgentChoice,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table that fits 80 columns.
    Table,
    /// RFC 4180, a header first.
    Csv,
    /// One document.
    Json,
    /// A document for each row.
    Ndjson,
}

/// Reads and prints: 0 printed, 1 the ledger is in the way, 2 wrong flags, range or prices.
pub async fn run(options: Options) -> ExitCode {
    let (store, origin) = match &options.store {
        Some(store) => (store.clone(), String::new()),
        None => match options.agent.configuration().await {
            Ok(chosen) => {
                let origin = format!(" (configuration: {})", chosen.origin);
                (chosen.config.store.path, origin)
            }
            Err(error) => return complain(&error, 2),
        },
    };
    for (at, dimension) in options.by.iter().enumerate() {
        if options.by[..at].contains(dimension) {
            let what = format!("cannot group the report: --by has {dimension} twice");
            return say(&what, Some("name it once"), 2);
        }
    }
    let now = Timestamp::now();
    let asked = match Asked::new(options.since, options.until, now) {
        Ok(asked) => asked,
        Err(error) => return complain(&error, 2),
    };
    let prices = match options.prices.as_deref().map(Prices::read).transpose() {
        Ok(prices) => prices,
        Err(error) => return complain(&error, 2),
    };
    let ledger = format!("read from {}{origin}", Ledger::file_of(&store).display());
    match answer(&options, &store, ledger, &asked, prices.as_ref(), now) {
        Ok(code) => code,
        Err(error @ ReportError::Money(_)) => complain(&error, 2),
        Err(error) => say(&format!("{}{origin}", chain(&error)), remedy_of(&error), 1),
    }
}

/// Prints the report, with a note on which ledger was read. The code is 1 if its books do not balance.
fn answer(
    options: &Options,
    store: &Path,
    ledger: String,
    asked: &Asked,
    prices: Option<&Prices>,
    now: Timestamp,
) -> Result<ExitCode, ReportError> {
    let mut report = report::make(store, asked, &options.by, prices, now)?;
    report.notes.insert(0, ledger);
    let text = match options.output {
        Output::Table => Ok(print::table(&report, options.wide)),
        Output::Csv => print::csv(&report),
        Output::Json => print::json(&report),
        Output::Ndjson => print::ndjson(&report),
    };
    if matches!(options.output, Output::Csv | Output::Ndjson) {
        for note in &report.notes {
            eprintln!("note: {note}");
        }
    }
    let code = u8::from(!report.imbalance.is_zero());
    Ok(match text {
        Ok(text) => print_out(text.as_bytes(), code),
        Err(error) => say(&format!("cannot print the report: {error}"), None, 1),
    })
}
