//! `gpuacct man`: the man pages, printed in the form that `man` reads.
//!
//! The program prints them itself, so that whoever makes a package needs nothing but the program, and
//! the pages say what this program does. The subcommand is not listed in the help, since users have
//! the installed pages.
//!
//! clap_mangen writes what clap knows by its structure. What stands below a help as text, such as
//! exit codes and examples, becomes sections of its own here; `man` would run its lines together.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::complaint::say;
use super::output::print;

/// The section of the manual for commands that administrators use.
const SECTION: &str = "8";
/// What the manual calls itself at the foot of a page.
const MANUAL: &str = "GPU accounting";
/// Files that no flag names.
const FILES: [(&str, &str); 4] = [
    (
        "/etc/gpuacct/gpuacct.toml",
        "The configuration that the systemd unit names. `gpuacct config` prints every key.",
    ),
    (
        "/run/gpuacct/gpuacct.sock",
        "The running agent's socket. It is open to root only, unless the configuration says otherwise.",
    ),
    (
        "/var/lib/gpuacct",
        "The ledger. `gpuacct report` reads it, with and without a running agent.",
    ),
    (
        "/usr/lib/systemd/system/gpuacct.service",
        "The systemd unit of the packages.",
    ),
];
/// The exit codes that all subcommands have in common.
const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "Done, or well."),
    (
        "1",
        "Not well, or it failed: the subcommand's page says what.",
    ),
    (
        "2",
        "A flag or the configuration is wrong, or no agent answers.",
    ),
];

/// Print a man page, as `man -l -` reads it
///
/// Without a command it is the page of gpuacct itself. Exits with 0 if the page is printed, with 1 if
/// it cannot be, with 2 if there is no such command.
#[derive(Clone, Debug, clap::Args)]
#[command(hide = true)]
pub struct Options {
    /// The command whose page is printed
    command: Option<String>,
}

/// Prints the page of a command of the command line `root`.
pub fn run(options: &Options, root: clap::Command) -> ExitCode {
    match page(options.command.as_deref(), root) {
        Ok(Some(page)) => print(page, 0),
        Ok(None) => {
            let name = options.command.as_deref().unwrap_or_default();
            let remedy = "`gpuacct --help` lists the commands";
            say(&format!("there is no command {name:?}"), Some(remedy), 2)
        }
        Err(error) => say(&format!("cannot write a page: {error}"), None, 1),
    }
}

/// The page of a command, or of the whole; none if there is no such command.
fn page(command: Option<&str>, mut root: clap::Command) -> io::Result<Option<Vec<u8>>> {
    root = root.disable_help_subcommand(true);
    root.build();
    let Some(name) = command else {
        return whole(root).map(Some);
    };
    let found = root.find_subcommand(name).cloned();
    found.map(|command| of_subcommand(&command)).transpose()
}

fn whole(root: clap::Command) -> io::Result<Vec<u8>> {
    let others: Vec<String> = root
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(page_name)
        .collect();
    let below = text_below(&root);
    let (man, mut page) = begun(&root)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    let mut rest = Roff::new();
    sections(&mut rest, &below);
    terms(&mut rest, "FILES", &FILES);
    terms(&mut rest, "EXIT STATUS", &EXIT_STATUS);
    rest.control("SH", ["SEE ALSO"]);
    references(&mut rest, &others);
    rest.to_writer(&mut page)?;
    Ok(page)
}

fn of_subcommand(command: &clap::Command) -> io::Result<Vec<u8>> {
    let (man, mut page) = begun(command)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut rest = Roff::new();
    sections(&mut rest, &text_below(command));
    rest.control("SH", ["ENVIRONMENT"]);
    rest.text([roman(
        "All variables that are read are listed in gpuacct(8).",
    )]);
    rest.control("SH", ["SEE ALSO"]);
    references(&mut rest, &["gpuacct".to_owned()]);
    rest.to_writer(&mut page)?;
    Ok(page)
}

/// A page with its title. It has no date: it changes with the program, whose version it shows.
/// clap_mangen would leave an empty date out, and so take the version for the date.
fn begun(command: &clap::Command) -> io::Result<(Man, Vec<u8>)> {
    let title = page_name(command).to_uppercase();
    let version = command.get_version().unwrap_or_default();
    let mut page = Vec::new();
    writeln!(
        page,
        ".TH {title} {SECTION} \"\" \"gpuacct {version}\" \"{MANUAL}\""
    )?;
    Ok((Man::new(command.clone()).section(SECTION), page))
}

/// The name of a command's page, such as `gpuacct-status`.
fn page_name(command: &clap::Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or_else(|| command.get_name()).to_owned()
}

fn text_below(command: &clap::Command) -> String {
    let text = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    text.map(ToString::to_string).unwrap_or_default()
}

/// Makes a section of each heading in a text of the form `Heading:`, with indented lines below it. A
/// line of two columns is a term and what it means.
fn sections(page: &mut Roff, text: &str) {
    let mut is_literal = false;
    for line in text.lines() {
        let indented = line.trim_start();
        if indented.is_empty() {
            continue;
        }
        if indented == line {
            if is_literal {
                page.control("EE", []);
                is_literal = false;
            }
            let heading = line.trim_end_matches(':').to_uppercase();
            let heading = if heading == "EXIT CODES" {
                "EXIT STATUS".to_owned()
            } else {
                heading
            };
            page.control("SH", [heading.as_str()]);
        } else if let Some((term, meaning)) = indented.split_once("  ") {
            term_and_meaning(page, term, meaning.trim_start());
        } else {
            if !is_literal {
                page.control("EX", []);
                is_literal = true;
            }
            page.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
    }
    if is_literal {
        page.control("EE", []);
    }
}

fn terms(page: &mut Roff, heading: &str, rows: &[(&str, &str)]) {
    page.control("SH", [heading]);
    for (term, meaning) in rows {
        term_and_meaning(page, term, meaning);
    }
}

fn term_and_meaning(page: &mut Roff, term: &str, meaning: &str) {
    page.control("TP", []);
    page.text([bold(term)]);
    page.text([roman(meaning)]);
}

fn references(page: &mut Roff, names: &[String]) {
    for (index, name) in names.iter().enumerate() {
        let end = if index + 1 == names.len() { "" } else { "," };
        page.text([bold(name), roman(format!("({SECTION}){end}"))]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_below_a_help_becomes_sections_that_man_does_not_run_together() {
        let mut page = Roff::new();
        let text = "Exit codes:\n  0  fine\n  10  not: so\n\nExamples:\n  a --b \\\n      c\n  d";
        sections(&mut page, text);
        let page = page.to_roff();
        assert_eq!(
            page,
            ".SH \"EXIT STATUS\"\n.TP\n\\fB0\\fR\nfine\n.TP\n\\fB10\\fR\nnot: so\n\
             .SH EXAMPLES\n.EX\na \\-\\-b \\\\\n    c\nd\n.EE\n"
        );
    }
}
