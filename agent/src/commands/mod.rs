//! What is typed: a file per subcommand. Each is thin: parse, call, print.

use std::process::ExitCode;

use crate::errors::chain;

pub mod agent;
pub mod ask;
pub mod bundle;
pub mod check;
pub mod config;
pub mod explain;
mod figures;
pub mod log_level;
pub mod output;
pub mod probe;
pub mod report;
pub mod status;
mod table;

/// Prints an error with its causes in one line, and says how to exit.
fn complain(error: &(dyn std::error::Error + 'static), code: u8) -> ExitCode {
    eprintln!("error: {}", chain(error));
    ExitCode::from(code)
}

/// Runs a command on the one thread that everything which does not block shares.
pub fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(command);
            // A thread inside NVML may never come back; the process does not wait for it.
            runtime.shutdown_background();
            code
        }
        Err(error) => complain(&error, 1),
    }
}
