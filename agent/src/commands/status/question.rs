//! What `gpuacct status` asks the agent, and how the answer is given.

use std::process::ExitCode;

use super::page::{Shape, table};
use super::selection::{Selection, SelectionError};
use crate::commands::agent_choice::AgentChoice;
use crate::commands::ask::{AskError, get, parse};
use crate::commands::complaint::{complain, say};
use crate::commands::json::Json;
use crate::config::Span;
use crate::core::snapshot::GpuProcessView;
use crate::errors::chain;
use crate::outputs::socket::StatusReport;

/// The request for the report.
pub(super) const STATUS: &str = "/v1/status";
/// The request for the processes that use a GPU.
pub(super) const PROCESSES: &str = "/v1/processes";

/// Show what the agent on this node knows now
///
/// Exits with 0 if the agent is healthy, with 1 if it is degraded (the first lines say why) or the
/// answer cannot be written, with 2 if no agent answers or a flag is wrong. The live view of --watch
/// exits with 0 when it is ended.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// For people (table, or wide for one with more columns), or for programs (json, yaml)
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Also list the processes that use a GPU
    #[arg(long)]
    pub processes: bool,
    /// Which part is shown
    #[command(flatten)]
    pub selection: Selection,
    /// Tables without the names of their columns
    #[arg(long)]
    pub no_headers: bool,
    /// Show it again and again, every INTERVAL (2s unless given): a live view on a terminal, plain
    /// output elsewhere
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s")]
    pub watch: Option<Span>,
    /// Where the agent is
    #[command(flatten)]
    pub agent: AgentChoice,
}

impl Options {
    /// All that this agent says, as a table.
    #[must_use]
    pub fn of(agent: AgentChoice) -> Self {
        Self {
            output: Format::Table,
            processes: false,
            selection: Selection::default(),
            no_headers: false,
            watch: None,
            agent,
        }
    }
}

/// How the status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables that fit 80 columns
    Table,
    /// Tables with more columns, as wide as they are
    Wide,
    /// The agent's own answer
    Json,
    /// The same as YAML
    Yaml,
}

impl Format {
    /// Whether people read it.
    pub(super) const fn is_for_people(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Why there is no status to show.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No agent answers, or not in a way that can be understood.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// What is chosen is not there.
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// The answer cannot be written in this format.
    #[error("cannot write the status as {0}")]
    Written(
        &'static str,
        #[source] Box<dyn std::error::Error + Send + Sync>,
    ),
}

/// What there is to print, and whether the agent is healthy.
///
/// # Errors
/// If no agent answers, or not in a way that can be understood, or if it does not know a GPU that is
/// asked for.
pub async fn answer(options: &Options) -> Result<(String, bool), StatusError> {
    let socket = options.agent.socket().map_err(AskError::from)?;
    let json = get(&socket, STATUS).await?;
    let report: StatusReport = parse(STATUS, &json)?;
    let processes = match options.processes {
        false => None,
        true => Some(get(&socket, PROCESSES).await?),
    };
    let views: Option<Vec<GpuProcessView>> = match &processes {
        None => None,
        Some(json) => Some(parse(PROCESSES, json)?),
    };
    let is_for_people = options.output.is_for_people();
    let known = views.as_deref().unwrap_or_default();
    let chosen = options.selection.choose(&report, known, is_for_people)?;
    let is_healthy = report.degraded.is_empty();
    if is_for_people {
        let shape = Shape {
            left_out: chosen.left_out,
            has_headings: !options.no_headers,
            ..match options.output {
                Format::Wide => Shape::WIDE,
                _ => Shape::NARROW,
            }
        };
        let views = views.map(|views| chosen.processes(&views));
        let page = table(&chosen.report(&report), views.as_deref(), shape);
        return Ok((page, is_healthy));
    }
    let mut value: Json = parse(STATUS, &json)?;
    let mut processes: Option<Json> = match &processes {
        None => None,
        Some(json) => Some(parse(PROCESSES, json)?),
    };
    chosen.json(&mut value, processes.as_mut());
    if let Some(processes) = processes {
        value.insert("processes", processes);
    }
    let text = match options.output {
        Format::Yaml => serde_saphyr::to_string(&value)
            .map_err(|error| StatusError::Written("YAML", error.to_string().into()))?,
        _ => value
            .pretty()
            .map_err(|error| StatusError::Written("JSON", error.into()))?,
    };
    Ok((text, is_healthy))
}

/// Prints why there is no status.
pub(super) fn fail(error: &StatusError) -> ExitCode {
    match error {
        StatusError::Written(..) => {
            let remedy = "use `-o table`, and report this as a bug with the agent's version";
            say(&chain(error), Some(remedy), 1)
        }
        // By itself, so that its remedy is found.
        StatusError::Ask(error) => complain(error, 2),
        StatusError::Selection(_) => {
            let remedy = "name one of these with --gpu, by its index or the beginning of its UUID";
            say(&chain(error), Some(remedy), 2)
        }
    }
}
