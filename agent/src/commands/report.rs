//! `gpuacct report`: what was used in the past, for people, spreadsheets and programs.
//!
//! It reads the ledger by itself, beside a running agent or without one, and changes nothing. With
//! `--from` it reads a store of metrics instead ([`remote`]). The table for people is in `report/page.rs`, the
//! page for browsers in `report/html.rs`, files for programs are in `report/print.rs`, and what is in them is
//! in [`crate::report`].

mod focus;
mod html;
mod page;
mod print;
mod remote;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;

use self::remote::Remote;
use super::agent_choice::AgentChoice;
use super::charset::Charset;
use super::complaint::{complain, remedy_of, say};
use super::output::{self, not_written, note, width};
use super::progress::Progress;
use crate::errors::chain;
use crate::report::prices::Prices;
use crate::report::range::{Asked, Moment};
use crate::report::tally::{Dimension, Filter, Label, Question, Report};
use crate::report::zone::Zone;
use crate::report::{self, ReportError};

/// What stands below the help.
const AFTER_HELP: &str = "\
Exit codes:
  0  printed; a warning on standard error says if the ledger has only a part of the range
  1  a ledger or a store cannot be read or does not balance, or the report cannot be written
  2  wrong flags, prices or configuration, one ledger twice, or nothing that has hours of the range

Examples:
  gpuacct report --since 7d --by namespace,day --timezone Europe/Berlin
  gpuacct report --since 2026-01-01 --until 2026-02-01 --namespace research --by pod,gpu \\
      --prices prices.toml --output csv > research.csv
  gpuacct report --store node-a/gpuacct.db --store node-b/gpuacct.db --by node,namespace
  gpuacct report --from http://prometheus:9090 --since 30d --by namespace
  gpuacct report --since 30d --by namespace,pod --output html > bill.html";

/// Show past GPU use, from ledgers or from a metrics store (--from). No running agent is needed
///
/// Counts whole hours.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// Beginning of the range: a time or an age such as 7d; the whole hour is included
    #[arg(long, value_name = "D|T", default_value = "24h")]
    since: Moment,
    /// End of the range: a time or an age; its hour is not included [default: the last commit]
    #[arg(long, value_name = "D|T")]
    until: Option<Moment>,
    /// What to group by, with commas: namespace, pod, pod_uid, container, container_id, image,
    /// runtime, unit, label:KEY, node, cluster, gpu, gpu_index, model, profile, hour, day, month
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "namespace"
    )]
    by: Vec<Dimension>,
    /// Only containers of this namespace; several are alternatives
    #[arg(long, value_name = "NAME")]
    namespace: Vec<String>,
    /// Only owners with this label. With --from: the pod's label, as in gpuacct_pod_labels. Several
    /// values of a key are alternatives, several keys must all hold
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Label>,
    /// Time zone of dates, hours and days: a name such as Europe/Berlin, or local. It must be whole
    /// hours off UTC
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    timezone: Zone,
    /// Output format: table, csv, json, ndjson, html, or focus for FinOps tools
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Show all columns, whatever the width of the terminal. With html: show more figures. csv, json
    /// and ndjson always have all
    #[arg(long)]
    wide: bool,
    /// Prices by GPU model and MIG profile, also by node, cluster or label, a TOML file
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Directory of a store, or ledger file; several are added up, for example those of all nodes
    /// [default: store.path of the configuration]
    #[arg(long, value_name = "PATH")]
    store: Vec<PathBuf>,
    #[command(flatten)]
    focus: focus::Flags,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    agent: AgentChoice,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A page that fits the terminal.
    Table,
    /// RFC 4180, a header first.
    Csv,
    /// One document.
    Json,
    /// A document for each row.
    Ndjson,
    /// A page for a browser or a printer, with pictures.
    Html,
    /// Charges by FOCUS, the FinOps Open Cost and Usage Specification, as CSV; needs --prices.
    Focus,
}

/// Reads and prints. The exit codes are those of the help.
pub async fn run(options: Options) -> ExitCode {
    for (at, dimension) in options.by.iter().enumerate() {
        if options.by[..at].contains(dimension) {
            let what = format!("cannot group the report: --by has {dimension} twice");
            return say(&what, Some("name it once"), 2);
        }
    }
    if options.output == Output::Html && html::is_for_a_terminal() {
        let what = "cannot write the page to standard output: a terminal does not show it";
        return say(what, Some("redirect it: gpuacct report -o html > FILE"), 1);
    }
    if let Some(flag) = options.focus.given()
        && options.output != Output::Focus
    {
        let what = format!("{flag} is for --output focus");
        return say(&what, Some("add -o focus, or leave it out"), 2);
    }
    let now = Timestamp::now();
    let asked = match Asked::new(options.since, options.until, &options.timezone, now) {
        Ok(asked) => asked,
        Err(error) => return complain(&error, 2),
    };
    let prices = match options.prices.as_deref().map(Prices::read).transpose() {
        Ok(prices) => prices,
        Err(error) => return complain(&error, 2),
    };
    let question = Question {
        asked,
        zone: options.timezone.clone(),
        by: Dimension::with_index(&options.by),
        filter: Filter::new(&options.namespace, &options.label),
        prices,
        timeline: options.output == Output::Html,
    };
    let question = match options.output {
        Output::Focus => focus::question(question),
        _ => Ok(question),
    };
    let question = match question {
        Ok(question) => question,
        Err(code) => return code,
    };
    let made = match options.remote.is_chosen() {
        true => options.remote.report(&question, now).await,
        false => of_ledgers(&options, &question, now).await,
    };
    let report = match made {
        Ok(report) => report,
        Err(code) => return code,
    };
    let text = match text(&options, &question, &report) {
        Ok(text) => text,
        Err(code) => return code,
    };
    match output::write_out(&text) {
        Ok(_) if report.imbalance.is_zero() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => not_written(&error),
    }
}

/// The report from ledgers, or how to exit after the error that was said.
async fn of_ledgers(
    options: &Options,
    question: &Question,
    now: Timestamp,
) -> Result<Report, ExitCode> {
    let (stores, origin) = match &options.store[..] {
        [] => match options.agent.configuration().await {
            Ok(chosen) => {
                let origin = format!(" (configuration: {})", chosen.origin);
                (vec![chosen.config.store.path], origin)
            }
            Err(error) => return Err(complain(&error, 2)),
        },
        stores => (stores.to_vec(), String::new()),
    };
    let progress = Progress::start(match &stores[..] {
        [_] => "reading the ledger",
        _ => "reading the ledgers",
    });
    let made = report::make(&stores, question, now);
    drop(progress);
    let mut report = made.map_err(|error| {
        let what = format!("{}{origin}", chain(&error));
        say(&what, remedy_of(&error), code_of(&error))
    })?;
    if let Some(read_from) = report.notes.first_mut() {
        read_from.push_str(&origin);
    }
    Ok(report)
}

/// The exit code of an error.
const fn code_of(error: &ReportError) -> u8 {
    match error {
        ReportError::Read(_) => 1,
        ReportError::Outside { .. }
        | ReportError::Twice { .. }
        | ReportError::Doubled { .. }
        | ReportError::NoLedger
        | ReportError::NoCluster(_)
        | ReportError::Zone(_)
        | ReportError::Money(_) => 2,
    }
}

/// What is printed, after what has to be known of it was said; or how to exit after the error that was.
fn text(options: &Options, question: &Question, report: &Report) -> Result<String, ExitCode> {
    for warning in &report.warnings {
        note(format_args!("warning: {warning}"));
    }
    // The other outputs have them in themselves.
    if matches!(options.output, Output::Csv | Output::Ndjson | Output::Focus) {
        for text in &report.notes {
            note(format_args!("note: {text}"));
        }
    }
    let made = match options.output {
        Output::Table => {
            let page = page::table(report, options.wide, width());
            if !page.left_out.is_empty() {
                note(format_args!(
                    "note: left out for lack of room: {}; a wider terminal, --wide or --output csv shows them",
                    page.left_out.join(", ")
                ));
            }
            Ok(Charset::of_the_environment().text(page.text))
        }
        Output::Csv => print::csv(report),
        Output::Json => print::json(report),
        Output::Ndjson => print::ndjson(report),
        Output::Html => html::html(report, options.wide),
        Output::Focus => return focus::text(&options.focus, question, report),
    };
    made.map_err(|error| not_written(&error.into()))
}
