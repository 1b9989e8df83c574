//! `gpuacct bundle`: what a bug report needs, in one file.
//!
//! A tar archive: each part is a file of its own that opens with what every node has, a part that
//! could not be had says why in its place, and nothing needs gpuacct to be read. It is written whole
//! or not at all, readable by its owner alone, and never over another file.
//!
//! Secrets of the configuration (the values of OTLP's headers, a password in its address) are not in
//! it: the agent keeps them to itself, and what this command reads from a file is struck out wherever
//! it occurs. What it does contain: names, images and labels of containers.

use std::error::Error;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::agent_choice::{AgentChoice, ChosenConfig, of_the_agent, without_a_file};
use super::ask::{AskError, get, parse};
use super::check::CheckReport;
use super::complaint::say;
use super::output::{note, print};
use super::progress::Progress;
use super::status::{self, StatusError};
use crate::app::preflight;
use crate::config::{Environment, LoadedConfig};
use crate::errors::chain;
use crate::outputs::instruments::VERSION;
use crate::outputs::log::LogReport;
use crate::outputs::socket::{ConfigReport, DEFAULT_PATH};

/// The folder in the archive.
const FOLDER: &str = "gpuacct-bundle";

/// Collect what a bug report needs in one file
///
/// A tar archive with check, status, configuration and the agent's recent log. Secrets of the
/// configuration are removed; names, images and labels of containers are in it. Exits with 0 if it
/// is written, even if parts are missing: they say why. Exits with 1 if it cannot be
/// written, with 2 if a flag is wrong.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Output file, `-` for standard output [default: a new file in the working directory]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    agent: AgentChoice,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {file}")]
pub struct BundleError {
    file: String,
    source: io::Error,
}

/// Collects and writes.
pub async fn run(options: Options) -> ExitCode {
    let is_to_stdout = options.file.as_deref() == Some(Path::new("-"));
    if is_to_stdout && io::stdout().is_terminal() {
        let what =
            "cannot write the bundle to standard output: a terminal does not show an archive";
        return say(
            what,
            Some("name a file, or redirect: gpuacct bundle - > FILE"),
            1,
        );
    }
    let seconds = jiff::Timestamp::now().as_second();
    let progress = Progress::start("collecting the parts");
    let parts = collect(&options).await;
    drop(progress);
    let file = options.file.unwrap_or_else(|| {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy().replace('/', "_");
        PathBuf::from(format!("{FOLDER}-{host}-{seconds}.tar"))
    });
    let archive = pack(&parts, u64::try_from(seconds).unwrap_or(0));
    if is_to_stdout && let Ok(archive) = &archive {
        return print(archive, 0);
    }
    match archive.and_then(|archive| write_new(&file, &archive)) {
        Ok(()) => print(format!("{}\n", file.display()).as_bytes(), 0),
        Err(source) => {
            let remedy = "name another file; an existing one is never overwritten";
            let file = file.display().to_string();
            say(&chain(&BundleError { file, source }), Some(remedy), 1)
        }
    }
}

/// A file of the archive.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    name: &'static str,
    text: String,
}

async fn collect(options: &Options) -> Vec<Part> {
    let environment = Environment::of_process();
    let given = options.agent.file();
    let given = given.map(|file| LoadedConfig::load(Some(file), &environment));
    let given = given.transpose();
    let (given, complaint) = match given {
        Ok(given) => (given, None),
        Err(error) => {
            let instead = "the bundle has what the agent uses, or the defaults";
            note(format_args!("warning: {}; {instead}", chain(&error)));
            (None, Some(cannot(&error)))
        }
    };
    let socket = options.agent.socket();
    let socket = socket.unwrap_or_else(|_| DEFAULT_PATH.into());
    let agents = of_the_agent(&socket).await;
    // Where the file cannot be used, the rest is looked at as the agent would.
    let chosen = match given {
        Some(loaded) => ChosenConfig::new(loaded, "the file that was named"),
        None => without_a_file(agents.as_ref().ok()),
    };
    let shown = chosen.page();
    let ChosenConfig { config, .. } = chosen;
    let secrets = config.secrets();
    let check = CheckReport::new(preflight::look(&config).await);
    let mut asked = status::Options {
        processes: true,
        ..status::Options::of(AgentChoice::at(socket.clone()))
    };
    let status_page = status::answer(&asked).await;
    asked.output = status::Format::Json;
    let status_json = status::answer(&asked).await;
    let page = |answer: Result<(String, bool), StatusError>| match answer {
        Ok((text, _)) => text,
        Err(error) => cannot(&error),
    };
    let log = match log(&socket).await {
        Ok(log) => log_text(&log),
        Err(error) => cannot(&error),
    };
    let config = complaint.unwrap_or_else(|| match shown {
        Ok(text) => text,
        Err(error) => cannot(&error),
    });
    let agents = match agents {
        Ok(ConfigReport { file, toml }) => {
            let file = file.map_or("no file".into(), |file| file.display().to_string());
            format!("# in force since the agent's start, from {file}\n{toml}")
        }
        Err(error) => cannot(&error),
    };
    let kernel = rustix::system::uname();
    let about = format!(
        "gpuacct {VERSION}\nmade {}\nkernel {} {}\n",
        jiff::Timestamp::now(),
        kernel.release().to_string_lossy(),
        kernel.machine().to_string_lossy()
    );
    let check_json = serde_json::to_string_pretty(&check);
    let parts = [
        ("about.txt", about),
        ("check.txt", check.page()),
        (
            "check.json",
            check_json.unwrap_or_else(|error| cannot(&error)),
        ),
        ("status.txt", page(status_page)),
        ("status.json", page(status_json)),
        ("config.toml", config),
        ("agent-config.toml", agents),
        ("log.txt", log),
    ];
    parts
        .into_iter()
        .map(|(name, text)| Part {
            name,
            text: secrets.struck_out(&text).into_owned(),
        })
        .collect()
}

async fn log(socket: &Path) -> Result<LogReport, AskError> {
    let request = "/v1/log";
    parse(request, &get(socket, request).await?)
}

fn log_text(log: &LogReport) -> String {
    let LogReport {
        level,
        forgotten,
        lines,
    } = log;
    let mut text = format!("level {level}, {forgotten} lines before these\n");
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Text in place of a missing part.
fn cannot(error: &(dyn Error + 'static)) -> String {
    format!("not here: {}\n", chain(error))
}

fn pack(parts: &[Part], seconds: u64) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for Part { name, text } in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes())?;
    }
    archive.into_inner()
}

/// Writes a file that was not there; one that cannot be written whole is removed.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        // The first failure is the one that counts.
        let _ = std::fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_archive_holds_the_parts() {
        let parts = [
            Part {
                name: "a.txt",
                text: "first\n".to_owned(),
            },
            Part {
                name: "b.txt",
                text: String::new(),
            },
        ];
        let bytes = pack(&parts, 1_790_000_000).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let expected = [
            ("gpuacct-bundle/a.txt".to_owned(), "first\n".to_owned()),
            ("gpuacct-bundle/b.txt".to_owned(), String::new()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn another_file_is_never_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle.tar");
        write_new(&path, b"first").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = write_new(&path, b"second").expect_err("it is there");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_does_not_show_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("gpuacct.toml");
        for (text, words) in [
            (
                "[otlp.headers]\nauthorization = \"Bearer hunter22\n",
                "gpuacct.toml:2:17: otlp.headers.authorization: the closing quote is missing",
            ),
            (
                "[otlp]\nendpoint = \"ftp://me:hunter22@collector\"\n",
                "otlp.endpoint: found \"ftp://(redacted)@collector\"",
            ),
        ] {
            std::fs::write(&config, text).unwrap();
            let parts = collect(&Options {
                file: None,
                agent: AgentChoice {
                    config: Some(config.clone()),
                    socket: Some(directory.path().join("none.sock")),
                },
            })
            .await;
            for Part { name, text } in &parts {
                assert!(!text.contains("hunter22"), "{name}: {text}");
            }
            let part = parts.iter().find(|part| part.name == "config.toml");
            assert!(part.unwrap().text.contains(words), "{part:?}");
        }
    }

    #[tokio::test]
    async fn without_an_agent_the_parts_say_so_and_the_rest_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("gpuacct.toml");
        std::fs::write(&config, "nonsense = true\n").unwrap();
        let parts = collect(&Options {
            file: None,
            agent: AgentChoice {
                config: Some(config),
                socket: Some(directory.path().join("none.sock")),
            },
        })
        .await;
        let text = |name: &str| {
            let part = parts.iter().find(|part| part.name == name);
            part.map(|part| part.text.as_str()).unwrap_or_default()
        };
        for name in ["status.txt", "status.json", "log.txt"] {
            assert!(
                text(name).starts_with("not here: no agent answers"),
                "{name}"
            );
        }
        assert!(text("config.toml").contains("nonsense"));
        assert!(text("agent-config.toml").starts_with("not here: no agent answers"));
        assert!(text("check.txt").contains("kernel: linux"));
        assert!(text("about.txt").contains(VERSION));
    }
}
