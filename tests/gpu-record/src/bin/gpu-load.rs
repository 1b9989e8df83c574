//! `gpu-load`: keeps a GPU busy for a known share of the time, through the driver alone.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use gpu_record::load::{self, Plan};

/// Keep a GPU busy for a share of the time, and say how long it was
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The GPU's index, in CUDA's order
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// Part of the time in which it is busy, 0 to 1
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    share: f64,
    /// Memory to hold, in bytes
    #[arg(long, default_value_t = 0)]
    memory_bytes: usize,
    /// For how long, in milliseconds; without it until it is ended
    #[arg(long)]
    duration_ms: Option<u64>,
    /// Length of a period of work and rest, in milliseconds
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    period_ms: u64,
    /// Where to write what was done, as JSON; without it on standard output
    #[arg(long)]
    report: Option<PathBuf>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("expected 0 to 1, found {text:?}")),
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let report = load::run(&Plan {
        gpu: arguments.gpu,
        share: arguments.share,
        memory_bytes: arguments.memory_bytes,
        duration: arguments.duration_ms.map(Duration::from_millis),
        period: Duration::from_millis(arguments.period_ms),
    })?;
    let text = serde_json::to_string(&report).context("cannot write the report")?;
    match arguments.report {
        None => println!("{text}"),
        Some(path) => {
            // Never seen half written: it appears under its name when it is whole.
            let mut unfinished = OsString::from(&path);
            unfinished.push(".part");
            std::fs::write(&unfinished, text)
                .and_then(|()| std::fs::rename(&unfinished, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}
