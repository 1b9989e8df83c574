//! Runs programs so that one can see what is run, and read why it failed.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A command line.
#[derive(Debug)]
pub(crate) struct Cmd {
    command: Command,
    /// Variables that belong to the line as it is shown.
    shown: String,
}

impl Cmd {
    /// Runs `program`, in the workspace's root.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(crate::workspace::root());
        Self {
            command,
            shown: String::new(),
        }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let _ = write!(self.shown, "{name}={} ", quoted(value.as_ref()));
        self.command.env(name, value);
        self
    }

    /// Elsewhere than in the workspace's root.
    pub(crate) fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs it with this process's input and output. Fails unless it exits with 0.
    pub(crate) fn run(mut self) -> Result<()> {
        let line = self.line();
        eprintln!("$ {line}");
        let status = self
            .command
            .status()
            .with_context(|| format!("cannot start `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed: {status}");
        }
        Ok(())
    }

    /// Starts it with this process's input and standard error, and hands over what it prints.
    pub(crate) fn spawn_reading(mut self) -> Result<(Child, ChildStdout)> {
        let line = self.line();
        eprintln!("$ {line}");
        let mut child = self
            .command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let output = child.stdout.take().context("standard output is piped")?;
        Ok((child, output))
    }

    /// Starts it with this process's input and output, and hands over what it prints to standard error.
    pub(crate) fn spawn_reading_errors(mut self) -> Result<(Child, ChildStderr)> {
        let line = self.line();
        eprintln!("$ {line}");
        let mut child = self
            .command
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let errors = child.stderr.take().context("standard error is piped")?;
        Ok((child, errors))
    }

    /// Runs it quietly and returns what it prints. Fails unless it exits with 0.
    pub(crate) fn read(mut self) -> Result<String> {
        let line = self.line();
        let Output {
            status,
            stdout,
            stderr,
        } = self
            .command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{line}`"))?;
        if !status.success() {
            bail!(
                "`{line}` failed: {status}\n{}",
                String::from_utf8_lossy(&stderr).trim_end()
            );
        }
        String::from_utf8(stdout).with_context(|| format!("`{line}` printed what is not utf-8"))
    }

    fn line(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let words: Vec<String> = words.map(quoted).collect();
        format!("{}{}", self.shown, words.join(" "))
    }
}

/// As one would have to type it.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Where a program is, looked for as a shell would and where Debian keeps daemons.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Into::into))
        .map(|dir| dir.join(name))
        .find(|path: &std::path::PathBuf| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_line_to_type() {
        let error = Cmd::new("sh")
            .args(["-c", "echo it\\'s wrong >&2; exit 3"])
            .env("A_B", "c d")
            .read()
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(
                "`A_B='c d' sh -c 'echo it\\'\\''s wrong >&2; exit 3'` failed: exit status: 3"
            ),
            "{error}"
        );
        assert!(error.ends_with("it's wrong"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Cmd::new("/nonexistent/program").run().unwrap_err();
        assert_eq!(error.to_string(), "cannot start `/nonexistent/program`");
    }

    #[test]
    fn programs_are_found_and_not_invented() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program-anywhere"), None);
    }
}
