//! The environment variables that gpuacct reads: the one list, for `--help` and for the documents.

use std::path::PathBuf;

use clap::ColorChoice;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::config;

/// Name and meaning of each variable that gpuacct itself reads. An empty one counts as not set.
pub const VARIABLES: [(&str, &str); 9] = [
    ("GPUACCT_CONFIG", "the configuration file, as --config"),
    (
        "GPUACCT_SOCKET",
        "the agent's socket, as --socket (not for `agent`)",
    ),
    (
        "NODE_NAME",
        "Kubernetes name of this node for OTLP and the ledger, as `agent --node-name`",
    ),
    (
        "GPUACCT_RECORD_INPUTS",
        "records the inputs of the core, as `agent --record-inputs`",
    ),
    (
        "NO_COLOR",
        "no colours in the agent's log, in help texts and in the live view",
    ),
    (
        "TERM",
        "the terminal; `dumb` has no colours, and pages one after another in place of the live view",
    ),
    (
        "LC_ALL",
        "the locale; without UTF-8 the pages for people are in ASCII",
    ),
    ("LC_CTYPE", "the same where LC_ALL is not set"),
    ("LANG", "the same where neither is set"),
];

/// These and OpenTelemetry's, which the configuration reads.
pub fn variables() -> impl Iterator<Item = (&'static str, &'static str)> {
    VARIABLES.into_iter().chain(config::VARIABLES)
}

/// The list as it is shown below the help.
pub(super) fn help() -> String {
    let width = variables().map(|(name, _)| name.len()).max();
    let width = width.unwrap_or_default();
    let lines = variables().map(|(name, meaning)| format!("\n  {name:width$}  {meaning}"));
    format!("Environment:{}", lines.collect::<String>())
}

/// Reads a path that a flag or a variable names. An empty one is not refused here, because an empty
/// variable counts as not set.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Whether help texts may have colours. clap's own rule takes any terminal for able where `CI` is set,
/// even a dumb one, so what the environment rules out is ruled out here.
pub(super) fn help_colours() -> ColorChoice {
    if allows_colour() && has_control_sequences() {
        ColorChoice::Auto
    } else {
        ColorChoice::Never
    }
}

/// Whether the log and the live view may have colours.
pub(super) fn allows_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether the terminal knows control sequences: to move the cursor, to erase, to set colours.
pub(super) fn has_control_sequences() -> bool {
    std::env::var("TERM").is_ok_and(|term| !term.is_empty() && term != "dumb")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use clap::CommandFactory as _;

    use super::*;
    use crate::commands::arguments::Arguments;

    /// The variables that the flags and the code read.
    fn read_by_the_code() -> BTreeSet<String> {
        let commands = Arguments::command();
        let commands = commands.get_subcommands();
        let mut names: BTreeSet<String> = commands
            .flat_map(clap::Command::get_arguments)
            .filter_map(|flag| Some(flag.get_env()?.to_str()?.to_owned()))
            .collect();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let calls = ["env::var", "env::var_os"];
                let calls = calls.map(|call| text.split(&format!("{call}(\"")).skip(1).collect());
                let calls: [Vec<&str>; 2] = calls;
                let read = calls.concat().into_iter();
                names.extend(read.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
        // What only tests read.
        names.retain(|name| !name.starts_with("GPUACCT_UPDATE_") && name != "CARGO_MANIFEST_DIR");
        names
    }

    #[test]
    fn every_variable_that_is_read_is_documented_and_no_other() {
        let own: BTreeSet<String> = VARIABLES.map(|(name, _)| name.to_owned()).into();
        assert_eq!(read_by_the_code(), own);
        let listed: BTreeSet<String> = variables().map(|(name, _)| name.to_owned()).collect();
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
        let page = std::fs::read_to_string(page).unwrap();
        let table = page.split_once("| variable |").unwrap().1;
        let table = table.split_once("\n\n").unwrap().0;
        let documented: BTreeSet<String> = table
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect();
        assert_eq!(documented, listed);
        let help = Arguments::command().render_help().to_string();
        for name in listed {
            assert!(help.contains(&name), "{name} is not in {help}");
        }
    }
}
