//! `gpuacct release`: has the running agent let go of the GPUs for a while.

use std::process::ExitCode;

use super::agent_choice::AgentChoice;
use super::ask::{AskError, parse, post};
use super::complaint::{complain, say};
use super::output::print;
use crate::config::Span;
use crate::figures::clock_time;
use crate::gpu_release::{ALLOWED, ReleaseReport};

/// Have the running agent let go of the GPUs, to upgrade the driver or to divide a GPU anew
///
/// The agent closes every handle of NVML and unmaps the library, and takes the GPUs up again by
/// itself. Meanwhile their time is unobserved, with the reason `released`.
///
/// Exits with 0 once NVML is closed, or with --end once it is being opened; with 1 if a call that does
/// not return keeps it open, or if the time is not allowed; with 2 if no agent answers.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How long, such as 10m. At most a day
    #[arg(long = "for", value_name = "TIME", default_value = "10m")]
    time: Span,
    /// Take the GPUs up again now
    #[arg(long, conflicts_with = "time")]
    end: bool,
    #[command(flatten)]
    agent: AgentChoice,
}

/// Asks and says what became of it.
pub async fn run(options: Options) -> ExitCode {
    if !ALLOWED.contains(&options.time.0) {
        let (least, most) = (Span(*ALLOWED.start()), Span(*ALLOWED.end()));
        let reason = format!("--for: found {}, expected {least} to {most}", options.time);
        return say(&reason, None, 1);
    }
    match ask(&options).await {
        Ok(ReleaseReport::TakenUp) => print(b"the agent takes the GPUs up again\n", 0),
        Ok(ReleaseReport::Released { until }) => {
            let text = format!(
                "the GPUs are released until {}; `gpuacct release --end` takes them up earlier\n",
                clock_time(until)
            );
            print(text.as_bytes(), 0)
        }
        Ok(ReleaseReport::Stuck { gpus, .. }) => {
            let gpus: Vec<String> = gpus.iter().map(u32::to_string).collect();
            let call = match &gpus[..] {
                [] => "the call that waits for events".to_owned(),
                gpus => format!("a call on GPU {}", gpus.join(", ")),
            };
            let reason = format!("the agent still has NVML open: {call} has not returned");
            let remedy = "wait until it returns, or stop the agent";
            say(&reason, Some(remedy), 1)
        }
        Err(AskError::Refused {
            status: 400 | 403 | 409 | 503,
            reason,
            ..
        }) => say(&reason, None, 1),
        Err(error) => complain(&error, 2),
    }
}

async fn ask(options: &Options) -> Result<ReleaseReport, AskError> {
    let socket = options.agent.socket()?;
    let (request, body) = if options.end {
        ("/v1/take-up", String::new())
    } else {
        ("/v1/release", options.time.0.as_secs().to_string())
    };
    parse(request, &post(&socket, request, body.into()).await?)
}
