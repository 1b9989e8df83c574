//! `gpuacct completions` in the shells that load them: keys are pressed on a terminal, and the shell
//! completes what the command line has.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory as _;
use gpuacct::commands::arguments::Arguments;
use gpuacct_tests::agent;
use gpuacct_tests::python::run;
use gpuacct_tests::requirement::require;
use gpuacct_tests::terminal::Terminal;

/// What the shells are told to show when they wait for a command.
const PROMPT: &str = "READY> ";

/// A shell that reads no file of this user, how it is started, and how completions come into it.
struct Shell {
    name: &'static str,
    arguments: &'static [&'static str],
    /// The file as the packages install it.
    file: &'static str,
    /// Commands that show the prompt and have the folder's file loaded.
    load: fn(&Path) -> String,
}

const SHELLS: [Shell; 3] = [
    Shell {
        name: "bash",
        arguments: &["--noprofile", "--norc", "-i"],
        file: "gpuacct",
        load: |folder| format!("source {}/gpuacct; PS1='{PROMPT}'", folder.display()),
    },
    Shell {
        name: "zsh",
        arguments: &["-f", "-i"],
        file: "_gpuacct",
        load: |folder| {
            let folder = folder.display();
            format!(
                "fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; PS1='{PROMPT}'"
            )
        },
    },
    Shell {
        name: "fish",
        arguments: &["--no-config", "--private", "--interactive"],
        file: "gpuacct.fish",
        load: |folder| {
            let folder = folder.display();
            format!(
                "set fish_complete_path {folder} $fish_complete_path; \
                 function fish_prompt; echo -n '{PROMPT}'; end"
            )
        },
    },
];

/// What is typed, and what becomes of it when Tab is pressed.
const TYPED: [(&str, &str); 4] = [
    ("gpuacct conf", "gpuacct config"),
    ("gpuacct expl", "gpuacct explain"),
    ("gpuacct report --timez", "gpuacct report --timezone"),
    ("gpuacct report --output cs", "gpuacct report --output csv"),
];
/// An argument without a flag, of which clap_complete tells fish nothing.
const ARGUMENT: (&str, &str) = ("gpuacct completions zs", "gpuacct completions zsh");

fn completions(binary: &Path, shell: &str) -> String {
    run(Command::new(binary).args(["completions", shell])).unwrap()
}

#[test]
fn shells_complete_commands_flags_and_values() {
    let Some(binary) = require("agent", agent::binary()) else {
        return;
    };
    for shell in &SHELLS {
        let version = run(Command::new(shell.name).arg("--version"));
        if require("shells", version).is_none() {
            continue;
        }
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(shell.file);
        fs::write(file, completions(&binary, shell.name)).unwrap();
        // fish has no completions for a command that is not there.
        let programs = home.path().join("bin");
        fs::create_dir(&programs).unwrap();
        symlink(&binary, programs.join("gpuacct")).unwrap();
        let argument = (shell.name != "fish").then_some(ARGUMENT);
        for (typed, completed) in TYPED.into_iter().chain(argument) {
            let mut terminal = started(shell, home.path());
            terminal.press(&format!("{typed}\t")).unwrap();
            let what = format!("{completed:?} in {}", shell.name);
            let line = format!("{PROMPT}{completed}");
            // zsh goes on to the flag's value.
            let is_completed = |screen: &str| {
                screen
                    .lines()
                    .any(|shown| shown.trim_end_matches([' ', '=']) == line)
            };
            terminal.wait_for_display(&what, is_completed).unwrap();
            // Ctrl-U gives up what is typed.
            terminal.press("\u{15}exit\r").unwrap();
            terminal.left().unwrap();
        }
    }
}

/// The shell with the completions of that folder, once it waits for a command.
fn started(shell: &Shell, home: &Path) -> Terminal {
    // A shell wants its terminal to be the one that controls it.
    let mut command = Command::new("setsid");
    command
        .args(["--ctty", "--wait", shell.name])
        .args(shell.arguments)
        .current_dir(home)
        .env_clear()
        .env("PATH", format!("{}/bin:/usr/bin:/bin", home.display()))
        .env("HOME", home)
        .env("LC_ALL", "C.UTF-8")
        .env("TERM", "xterm");
    let mut terminal = Terminal::start(command).unwrap();
    let load = (shell.load)(home);
    terminal.press(&format!("{load}; clear\r")).unwrap();
    let is_ready = |screen: &str| screen.trim_end() == PROMPT.trim_end();
    let what = format!("{}'s prompt alone", shell.name);
    terminal.wait_for_display(&what, is_ready).unwrap();
    terminal
}

#[test]
fn every_shell_is_offered_every_command_and_no_hidden_one() {
    let Some(binary) = require("agent", agent::binary()) else {
        return;
    };
    let mut root = Arguments::command();
    root.build();
    let is_help = |command: &clap::Command| command.get_name() == "help";
    let (hidden, shown): (Vec<_>, Vec<_>) = root
        .get_subcommands()
        .filter(|command| !is_help(command))
        .partition(|command| command.is_hide_set());
    let completions_of = |name| {
        root.find_subcommand("completions")
            .unwrap()
            .get_arguments()
            .find(|argument| argument.get_id() == name)
            .cloned()
    };
    let shells = completions_of("shell").unwrap().get_possible_values();
    assert!(shells.len() >= 5, "{shells:?}");
    for shell in shells {
        let text = completions(&binary, shell.get_name());
        for command in &shown {
            let name = command.get_name();
            assert!(text.contains(name), "{name} for {}", shell.get_name());
        }
        assert!(text.is_ascii());
    }
    assert_eq!(hidden.len(), 1, "{hidden:?}");
}
