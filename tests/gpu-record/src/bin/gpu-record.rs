//! `record`: settles on a machine with an NVIDIA GPU what NVIDIA's documentation leaves open.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use gpu_record::session::{self, Options, SessionError};

/// Beyond this the whole takes more than the promised eight minutes.
const MOST_SECONDS: u64 = 90;
/// The exit code where there is no GPU to record.
const NO_GPU: u8 = 3;

/// Record what a GPU's driver answers, under loads that are known
///
/// Changes no setting of a GPU. Ends with 0 when there is a summary, 1 if something broke off, 2 if
/// an argument is wrong, 3 if there is no NVIDIA driver here.
#[derive(Debug, Parser)]
#[command(name = "record", version)]
struct Arguments {
    /// The folder for recordings and summary.md
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long each of the four recordings, and the agent, runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..=MOST_SECONDS))]
    seconds: u64,
    /// Path of NVIDIA's management library, if it is not in a usual place
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// The program that puts load on the GPU [default: gpu-load beside this program]
    #[arg(long, value_name = "PATH")]
    load: Option<PathBuf>,
    /// The agent [default: gpuacct beside this program]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Put no load on the GPU: only what others do is recorded
    #[arg(long, conflicts_with = "load")]
    no_load: bool,
    /// Leave the agent out
    #[arg(long, conflicts_with = "agent")]
    no_agent: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        each: Duration::from_secs(arguments.seconds),
        library: arguments.library,
        load: arguments
            .load
            .or_else(|| beside("gpu-load", arguments.no_load)),
        agent: arguments
            .agent
            .or_else(|| beside("gpuacct", arguments.no_agent)),
        out: arguments.out,
    };
    match session::run(&options) {
        Ok(_) => {
            println!("{}", options.out.join("summary.md").display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let no_gpu = matches!(error, SessionError::NoLibrary(_));
            eprintln!("error: {:#}", anyhow::Error::from(error));
            if no_gpu {
                ExitCode::from(NO_GPU)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// The program of this name in this program's folder, unless it is not wanted.
fn beside(name: &str, unwanted: bool) -> Option<PathBuf> {
    if unwanted {
        return None;
    }
    let path = std::env::current_exe().ok()?.with_file_name(name);
    path.is_file().then_some(path)
}
