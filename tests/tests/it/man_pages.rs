//! The man pages, held against those who read them: groff by way of `man`, and mandoc.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::CommandFactory as _;
use gpuacct::commands::arguments::Arguments;
use gpuacct::commands::environment::variables;
use gpuacct_tests::agent;
use gpuacct_tests::daemon::program;
use gpuacct_tests::python::run;
use gpuacct_tests::requirement::require;

/// Commands that have a page: the whole (none) and each that the help lists.
fn commands() -> Vec<Option<String>> {
    let mut root = Arguments::command();
    root.build();
    let listed = root
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help");
    let listed = listed.map(|command| Some(command.get_name().to_owned()));
    std::iter::once(None).chain(listed).collect()
}

/// The page of a command, in a file named as packages name it.
fn page(binary: &Path, folder: &Path, command: Option<&str>) -> PathBuf {
    let text = run(Command::new(binary).arg("man").args(command)).unwrap();
    let name = command.map_or_else(String::new, |command| format!("-{command}"));
    let file = folder.join(format!("gpuacct{name}.8"));
    fs::write(&file, text).unwrap();
    file
}

/// The page as a reader sees it, and what `man` has to complain of.
fn rendered(file: &Path) -> (String, String) {
    let mut man = Command::new("man");
    man.args(["--warnings", "--local-file"])
        .arg(file)
        .env("LC_ALL", "C.UTF-8")
        .env("MANWIDTH", "80")
        .env("MANROFFSEQ", "")
        .env_remove("MANPAGER");
    let Output {
        stdout,
        stderr,
        status,
    } = man.output().unwrap();
    let complaint = String::from_utf8(stderr).unwrap();
    assert!(status.success(), "{}: {complaint}", file.display());
    (String::from_utf8(stdout).unwrap(), complaint)
}

#[test]
fn groff_renders_every_page_without_a_warning() {
    let man = run(Command::new("man").arg("--version"));
    let agent = require("agent", agent::binary());
    let (Some(binary), Some(_)) = (agent, require("man", man)) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for command in commands() {
        let file = page(&binary, folder.path(), command.as_deref());
        let (text, complaint) = rendered(&file);
        assert_eq!(complaint, "", "{}", file.display());
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SEE ALSO"] {
            let is_there = text.lines().any(|line| line == section);
            assert!(is_there, "{section} of {command:?}: {text}");
        }
        let words: Vec<_> = text.split_whitespace().collect();
        let words = words.join(" ");
        // What is not plain text in the source would be run together or vanish.
        for code in ["0", "1", "2"] {
            let in_words = words.contains(&format!("with {code}"));
            let in_table = text
                .lines()
                .any(|line| line.trim_start().split("  ").next() == Some(code));
            assert!(in_words || in_table, "{code} of {command:?}: {text}");
        }
        let expected = if command.is_none() {
            variables().collect()
        } else {
            Vec::new()
        };
        for (variable, meaning) in expected {
            assert!(words.contains(variable), "{variable}: {text}");
            let first_words: Vec<_> = meaning.split(' ').take(2).collect();
            assert!(words.contains(&first_words.join(" ")), "{meaning}: {text}");
        }
    }
    // The check is one that can fail.
    let broken = folder.path().join("broken.8");
    fs::write(
        &broken,
        ".TH BROKEN 8\n.SH NAME\nbroken \\- it\n.nosuchmacro\n",
    )
    .unwrap();
    let (_, complaint) = rendered(&broken);
    assert!(complaint.contains("nosuchmacro"), "{complaint}");
}

/// What mandoc warns of and is meant: a page has a version and no date, and clap_mangen sets an empty
/// line above and below the words "Possible values".
fn is_meant(warning: &str) -> bool {
    [
        "missing date",
        "skipping paragraph macro: br before sp",
        "skipping paragraph macro: br after sp",
    ]
    .iter()
    .any(|text| warning.contains(text))
}

#[test]
fn mandoc_has_nothing_to_say_against_a_page() {
    let mandoc = program("mandoc");
    let agent = require("agent", agent::binary());
    let (Some(binary), Some(_)) = (agent, require("mandoc", mandoc)) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for command in commands() {
        let file = page(&binary, folder.path(), command.as_deref());
        let lint = Command::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8(lint.stdout).unwrap();
        let said: Vec<_> = said.lines().filter(|line| !is_meant(line)).collect();
        assert!(said.is_empty(), "{}: {said:?}", file.display());
    }
}

#[test]
fn a_command_that_is_not_there_has_no_page() {
    let Some(binary) = require("agent", agent::binary()) else {
        return;
    };
    let output = Command::new(binary)
        .args(["man", "nosuch"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no command \"nosuch\""), "{said}");
}
