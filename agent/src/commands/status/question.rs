//! What `gpuacct status` asks the agent, and how the answer is given.

use super::page::table;
use crate::commands::agent_choice::AgentChoice;
use crate::commands::ask::{AskError, get, parse};
use crate::config::Span;
use crate::core::snapshot::GpuProcessView;
use crate::outputs::socket::StatusReport;

/// Shows what the agent on this node knows now.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// For people (table) or for programs (json).
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Also list the processes that use a GPU.
    #[arg(long)]
    pub processes: bool,
    /// Show it again and again, every INTERVAL (2s unless given): a live view on a terminal, plain
    /// output elsewhere.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s")]
    pub watch: Option<Span>,
    /// Where the agent is.
    #[command(flatten)]
    pub agent: AgentChoice,
}

/// How the answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table that fits 80 columns.
    Table,
    /// The agent's own answer.
    Json,
}

/// What there is to print, and whether the agent is healthy.
///
/// # Errors
/// If no agent answers, or not in a way that can be understood.
pub async fn answer(options: &Options) -> Result<(String, bool), AskError> {
    let status = "/v1/status";
    let socket = options.agent.socket()?;
    let json = get(&socket, status).await?;
    let report: StatusReport = parse(status, &json)?;
    let processes = match options.processes {
        false => None,
        true => Some(get(&socket, "/v1/processes").await?),
    };
    let text = match options.output {
        Output::Table => {
            let processes: Option<Vec<GpuProcessView>> = processes
                .map(|json| parse("/v1/processes", &json))
                .transpose()?;
            table(&report, processes.as_deref())
        }
        Output::Json => {
            // Not by way of this version's types: they might drop what a newer agent added.
            let mut value: serde_json::Value = parse(status, &json)?;
            if let (Some(json), Some(object)) = (processes, value.as_object_mut()) {
                object.insert("processes".to_owned(), parse("/v1/processes", &json)?);
            }
            format!("{value:#}\n")
        }
    };
    Ok((text, report.degraded.is_empty()))
}
