//! What is typed: a file per subcommand. Each is thin: parse, call, print.

use std::process::ExitCode;

use self::complaint::complain;

pub mod agent;
pub mod agent_choice;
pub mod arguments;
pub mod ask;
pub mod budgets;
pub mod bundle;
mod charset;
pub mod check;
mod complaint;
pub mod completions;
pub mod config;
pub mod environment;
pub mod explain;
mod json;
pub mod log_level;
pub mod man;
pub mod output;
pub mod probe;
mod progress;
pub mod release;
pub mod report;
pub mod status;
mod table;

/// Runs a command on the one thread that everything which does not block shares.
fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
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
