//! What is typed: a file per subcommand. Each is thin: parse, call, print.

pub mod status;
mod table;
