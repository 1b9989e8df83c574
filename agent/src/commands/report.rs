//! `gpuacct report`: what was used in the past, for people, spreadsheets and programs.
//!
//! It reads the ledger by itself, beside a running agent or without one, and changes nothing. What is
//! printed is in `report/print.rs`, what it means in [`crate::report`].

mod print;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::Timestamp;

use super::complain;
use super::output::{self, OutputError, say};
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
    /// The configuration file; the defaults if there is none
    #[arg(long, value_name = "FILE", env = "GPUACCT_CONFIG")]
    config: Option<PathBuf>,
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
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let store = match &options.store {
        Some(store) => store.clone(),
        None => match super::config::read(options.config.as_deref()) {
            Ok(config) => config.store.path,
            Err(error) => return complain(&error, 2),
        },
    };
    for (at, dimension) in options.by.iter().enumerate() {
        if options.by[..at].contains(dimension) {
            say(format_args!("error: --by has {dimension} twice"));
            return ExitCode::from(2);
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
    match answer(options, &store, &asked, prices.as_ref(), now) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error @ ReportError::Money(_)) => complain(&error, 2),
        Err(error) => complain(&error, 1),
    }
}

/// Prints the report, and says whether its books balance.
fn answer(
    options: &Options,
    store: &Path,
    asked: &Asked,
    prices: Option<&Prices>,
    now: Timestamp,
) -> Result<bool, ReportError> {
    let report = report::make(store, asked, &options.by, prices, now)?;
    let text = match options.output {
        Output::Table => Ok(print::table(&report, options.wide)),
        Output::Csv => print::csv(&report),
        Output::Json => print::json(&report),
        Output::Ndjson => print::ndjson(&report),
    };
    if matches!(options.output, Output::Csv | Output::Ndjson) {
        for note in &report.notes {
            say(format_args!("note: {note}"));
        }
    }
    let printed = text
        .map_err(OutputError::from)
        .and_then(|text| output::print(&text));
    if let Err(error) = printed {
        complain(&error, 1);
        return Ok(false);
    }
    Ok(report.imbalance.is_zero())
}
