//! Every subcommand that the command line knows, with everything that is wrong around it: arguments,
//! files, permissions, full disks, closed pipes, simple terminals. Each has to exit with a code of its
//! help, with one message in the one form that all have, and without a panic.
//!
//! The list of subcommands is that of the parser, so a new one is tried without being listed here. Only
//! what a subcommand does differently from the others is said by name.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use clap::CommandFactory as _;
use gpuacct::commands::arguments::Arguments;
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::http::free_address;
use gpuacct_tests::node::Node;
use gpuacct_tests::terminal::Terminal;
use sim_nvml::STATE_DIR;
use tempfile::TempDir;

/// A user that owns nothing (`nobody`).
const ORDINARY: u32 = 65_534;

/// A subcommand, with arguments with which it has something to do.
struct Subcommand {
    parsed: clap::Command,
    name: String,
    needed: Vec<String>,
}

impl Subcommand {
    fn all() -> Vec<Self> {
        let mut root = Arguments::command();
        root.build();
        let commands = root.get_subcommands().filter(|of| of.get_name() != "help");
        commands.cloned().map(Self::new).collect()
    }

    fn new(parsed: clap::Command) -> Self {
        let needed = parsed.get_positionals().filter(|of| of.is_required_set());
        let mut needed: Vec<String> = needed.map(valid).collect();
        let name = parsed.get_name().to_owned();
        if name == "bundle" {
            // Not into the working directory.
            needed.push("-".to_owned());
        }
        if name == "budgets" {
            needed.extend(["render".to_owned(), budgets().display().to_string()]);
        }
        Self {
            parsed,
            name,
            needed,
        }
    }

    /// Whether it runs until it is told to stop. It is tried with a port that is taken, so that it ends.
    fn is_agent(&self) -> bool {
        self.name == "agent"
    }

    /// Whether it answers where there is no agent and nothing may be read. It says what is missing in
    /// its answer.
    fn answers_always(&self) -> bool {
        self.name == "bundle"
    }

    /// Whether it prints what the program itself knows, or makes of a file that everybody may read: no agent
    /// and no right is needed.
    fn needs_nothing(&self) -> bool {
        ["budgets", "completions", "man"].contains(&&*self.name)
    }

    /// Arguments that no command line can have.
    fn wrong_arguments(&self) -> Vec<Vec<String>> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut wrong = vec![
            words(&["--no-such-flag"]),
            words(&["-@"]),
            words(&["one", "word", "too", "many"]),
            words(&["--help=x"]),
        ];
        for flag in self.parsed.get_opts() {
            let long = format!("--{}", flag.get_long().unwrap());
            let is_optional = flag.get_num_args().unwrap().min_values() == 0;
            if !is_optional {
                wrong.push([self.needed.clone(), vec![long.clone()]].concat());
            }
            if !flag.get_possible_values().is_empty() {
                let value = format!("{long}=no-such-value");
                wrong.push([self.needed.clone(), vec![value]].concat());
            }
        }
        if self
            .parsed
            .get_positionals()
            .any(clap::Arg::is_required_set)
        {
            wrong.push(Vec::new());
        }
        wrong
    }
}

/// A file of budgets that everybody may read.
fn budgets() -> &'static Path {
    static FILE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, file) = FILE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let all = Permissions::from_mode(0o755);
        fs::set_permissions(dir.path(), all.clone()).unwrap();
        let file = dir.path().join("budgets.toml");
        let budget = "[[budget]]\nname = \"all\"\ncluster = \"a\"\ngpu_hours = 5\n";
        fs::write(&file, budget).unwrap();
        fs::set_permissions(&file, all).unwrap();
        (dir, file)
    });
    file
}

/// A value that an argument accepts. Where any text is one, it is a level and a subject.
fn valid(argument: &clap::Arg) -> String {
    let values = argument.get_possible_values();
    values
        .first()
        .map_or("info".to_owned(), |value| value.get_name().to_owned())
}

/// What happened, with what it happened to.
struct Run {
    what: String,
    output: Output,
}

impl Run {
    fn new(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap();
        Self {
            what: format!("{command:?}"),
            output,
        }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn code(&self) -> i32 {
        let code = self.output.status.code();
        code.unwrap_or_else(|| panic!("{} was killed: {:?}", self.what, self.output))
    }

    /// It ended by itself with this code, without a panic.
    fn exits_with(&self, codes: &[i32]) -> &Self {
        let said = self.said();
        assert!(!said.contains("panicked"), "{}: {said}", self.what);
        let code = self.code();
        assert!(codes.contains(&code), "{}: {code}: {said}", self.what);
        self
    }

    /// It printed nothing, and said one thing: what is wrong, in the form of the project or, about a
    /// command line, in that of the parser.
    fn complains(&self) -> &Self {
        assert_eq!(self.output.stdout, b"", "{}", self.what);
        self.complains_beside_its_answer()
    }

    fn complains_beside_its_answer(&self) -> &Self {
        let said = self.said();
        let count = |prefix: &str| said.lines().filter(|l| l.starts_with(prefix)).count();
        assert_eq!(count("error: "), 1, "{}: {said}", self.what);
        let remedies = count("  -> ");
        let is_parsers = said.contains("\nFor more information, try '--help'.");
        assert_eq!(
            remedies + usize::from(is_parsers),
            1,
            "{}: {said}",
            self.what
        );
        assert!(!said.contains('\u{1b}'), "{}: {said:?}", self.what);
        self
    }

    /// It said nothing is wrong.
    fn is_content(&self) -> &Self {
        let said = self.said();
        assert!(!said.contains("error: "), "{}: {said}", self.what);
        self
    }

    /// The agent's log says once that it failed, and what to do.
    fn fails_to_start(&self) -> &Self {
        let said = self.said();
        assert_eq!(
            said.matches("the agent failed").count(),
            1,
            "{}: {said}",
            self.what
        );
        assert!(said.contains("remedy="), "{}: {said}", self.what);
        self
    }
}

/// A node with an agent, and a second configuration with which none can start.
struct Place {
    agent: Agent,
    node: Node,
    /// An agent cannot start with it, since its port is taken.
    taken: PathBuf,
    _port: TcpListener,
}

impl Place {
    fn new() -> Self {
        let node = Node::new(1).unwrap();
        let mut config = node.config();
        config.prometheus.listen = free_address().unwrap();
        let agent = node.agent("", config.clone()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        config.prometheus.listen = port.local_addr().unwrap();
        config.socket.path = node.dir().join("second.sock");
        config.store.path = node.dir().join("second");
        let taken = node.dir().join("taken.toml");
        fs::write(&taken, config.to_toml().unwrap()).unwrap();
        Self {
            agent,
            node,
            taken,
            _port: port,
        }
    }

    /// A subcommand that has something to do beside the running agent, or, for the agent itself, that
    /// cannot start.
    fn useful(&self, subcommand: &Subcommand) -> Command {
        let mut command = self.agent.command(&[&subcommand.name]);
        command
            .args(&subcommand.needed)
            .env(STATE_DIR, self.node.scenario_dir())
            .env("LC_ALL", "C.UTF-8");
        if subcommand.is_agent() {
            command.env("GPUACCT_CONFIG", &self.taken);
        }
        command
    }

    fn stop(self) {
        assert!(self.agent.stop().unwrap().success());
    }
}

/// `gpuacct` without anything of this process's environment that it reads.
fn bare() -> Command {
    let mut command = Command::new(agent::binary().unwrap());
    for (name, _) in gpuacct::commands::environment::VARIABLES {
        command.env_remove(name);
    }
    command
}

#[test]
fn wrong_arguments_are_refused_in_one_message() {
    for subcommand in Subcommand::all() {
        for wrong in subcommand.wrong_arguments() {
            let mut command = bare();
            command.arg(&subcommand.name).args(wrong);
            Run::new(&mut command).exits_with(&[2]).complains();
        }
    }
    let nowhere = "/nonexistent/agent.sock";
    for wrong in [
        &["status", "--watch=1ms"][..],
        &["status", "--watch=often"],
        &["status", "--limit=-1"],
        &["report", "--since=soon"],
        &["report", "--since=1h", "--until=2h"],
        &["report", "--since=10ms", "--until=5ms"],
        &["report", "--by=nonsense"],
        &["report", "--by=pod,pod"],
        &["report", "--label=key"],
        &["report", "--timezone=Middle/Earth"],
        &["report", "--timezone=Asia/Kolkata", "--since=1d"],
        &["report", "--prices=/nonexistent/prices.toml"],
        &["agent", "--log=loud"],
        &["agent", "--listen=everywhere"],
    ] {
        let mut command = bare();
        command.args(wrong).env("GPUACCT_SOCKET", nowhere);
        // A ledger that is not there is the same to a report as a range that it has not.
        Run::new(&mut command).exits_with(&[1, 2]).complains();
    }
}

#[test]
fn wrong_configuration_files_are_refused_in_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let wrong = [
        folder.path().join("none.toml"),
        folder.path().to_owned(),
        "/dev/zero".into(),
        file("not.toml", b"[socket\npath = 1"),
        file("bytes.toml", b"\xff\xfe\x00"),
        file(
            "mistakes.toml",
            b"[socket]\npath = 5\nmod = 3\n[gpu]\ninterval = 1\n",
        ),
        file("unknown.toml", b"[nonsense]\na = 1\n"),
    ];
    for subcommand in Subcommand::all() {
        for file in &wrong {
            let mut command = bare();
            command
                .arg(&subcommand.name)
                .args(&subcommand.needed)
                .arg("--config")
                .arg(file);
            let run = Run::new(&mut command);
            if subcommand.answers_always() {
                run.exits_with(&[0]).is_content();
                assert!(run.said().starts_with("warning: "), "{}", run.said());
            } else {
                run.exits_with(&[2]).complains();
            }
        }
    }
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    let place = Place::new();
    let binary = place.node.dir().join("gpuacct");
    fs::copy(agent::binary().unwrap(), &binary).unwrap();
    for path in [place.node.dir(), &binary] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    for subcommand in Subcommand::all() {
        let useful = place.useful(&subcommand);
        let mut command = Command::new(&binary);
        command
            .args(useful.get_args())
            .envs(
                useful
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .current_dir("/")
            .gid(ORDINARY)
            .uid(ORDINARY);
        let run = Run::new(&mut command);
        match &*subcommand.name {
            "agent" => run.exits_with(&[1]).fails_to_start(),
            // The file of the configuration is open to all.
            "config" => run.exits_with(&[0]).is_content(),
            _ if subcommand.needs_nothing() => run.exits_with(&[0]).is_content(),
            // It says so of each part, in its answer.
            "check" => run.exits_with(&[1]).is_content(),
            "bundle" => run.exits_with(&[0]).is_content(),
            "report" => run.exits_with(&[1]).complains(),
            _ => run.exits_with(&[2]).complains(),
        };
        let answer = String::from_utf8_lossy(&run.output.stdout);
        let said = run.said() + &answer;
        let has_remedy = ["root", "sudo", "CAP_BPF"]
            .iter()
            .any(|word| said.contains(word));
        assert!(
            has_remedy
                || subcommand.needs_nothing()
                || ["agent", "config"].contains(&&*subcommand.name),
            "{}: {said}",
            run.what
        );
        // The man page says when that is said.
        let is_told = said.contains("no agent answers") && !subcommand.needs_nothing();
        assert!(!is_told, "{}: {said}", run.what);
    }
    place.stop();
}

#[test]
fn without_an_agent_every_subcommand_says_so_or_needs_none() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    for subcommand in Subcommand::all().iter().filter(|of| !of.is_agent()) {
        let mut command = bare();
        command
            .arg(&subcommand.name)
            .args(&subcommand.needed)
            .env("GPUACCT_SOCKET", &socket);
        if subcommand
            .parsed
            .get_opts()
            .any(|flag| flag.get_long() == Some("store"))
        {
            command.arg("--store").arg(folder.path().join("store"));
        }
        let run = Run::new(&mut command);
        match &*subcommand.name {
            "check" => run.exits_with(&[0, 1]).is_content(),
            "config" | "bundle" => run.exits_with(&[0]).is_content(),
            _ if subcommand.needs_nothing() => run.exits_with(&[0]).is_content(),
            "report" => run.exits_with(&[1]).complains(),
            _ => run.exits_with(&[2]).complains(),
        };
    }
    // Without a command it is the help, and no error of its own.
    let mut command = bare();
    command.env("GPUACCT_SOCKET", &socket);
    let run = Run::new(&mut command);
    assert!(run.exits_with(&[2]).said().contains("Usage: gpuacct"));
}

#[test]
fn an_answer_that_is_not_written_is_no_success() {
    let place = Place::new();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    // Without a command it is the status, since there is an agent.
    let run = Run::new(&mut place.agent.command(&[]));
    run.exits_with(&[0, 1]).is_content();
    let page = String::from_utf8_lossy(&run.output.stdout).into_owned();
    assert!(
        page.starts_with("gpuacct ") && page.contains("\nGPU "),
        "{page}"
    );
    for subcommand in Subcommand::all() {
        // Of the parser's answers as well.
        let mut commands = vec![];
        for help in ["--help", "-h", "--version"] {
            let mut command = bare();
            command.args([&subcommand.name, help]);
            commands.push((command, 0));
        }
        if !subcommand.is_agent() {
            let usual = Run::new(&mut place.useful(&subcommand));
            commands.push((place.useful(&subcommand), usual.code()));
        }
        for (mut command, usual) in commands {
            let is_refusal = Run::new(&mut command).output.stdout.is_empty();
            let run = run_into(&mut command, full().into());
            let expected = if is_refusal { usual } else { 1 };
            run.exits_with(&[expected]).complains();
            // The reader had what it wanted.
            let run = run_into(&mut command, closed().into());
            run.exits_with(&[usual]);
            if !is_refusal {
                run.is_content();
            }
            // Nobody reads what is said.
            for nobody in [Stdio::from(full()), closed().into()] {
                let output = command.stdout(Stdio::piped()).stderr(nobody).output();
                let code = output.unwrap().status.code();
                assert_eq!(code, Some(usual), "{command:?}");
            }
        }
        let mut command = bare();
        command.args([&subcommand.name, "--no-such-flag"]);
        command.stderr(full());
        assert_eq!(command.output().unwrap().status.code(), Some(2));
    }
    place.stop();
}

fn run_into(command: &mut Command, out: Stdio) -> Run {
    let output = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output();
    Run {
        what: format!("{command:?}"),
        output: output.unwrap(),
    }
}

/// Whether there is a sequence that sets colours or attributes of characters.
fn has_colour(screen: &str) -> bool {
    screen.split("\u{1b}[").skip(1).any(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';');
        end.is_some_and(|end| rest[end..].starts_with('m'))
    })
}

#[test]
fn terminals_get_what_they_can_show() {
    let place = Place::new();
    // clap shows colours on any terminal where `CI` or `CLICOLOR_FORCE` is set.
    const FOR_COLOUR: [(&str, &str); 2] = [("CI", "true"), ("CLICOLOR_FORCE", "1")];
    type Row = (
        &'static [(&'static str, &'static str)],
        fn(&str) -> bool,
        &'static str,
    );
    let rows: [Row; 3] = [
        (
            &[("TERM", "dumb"), ("LC_ALL", "C.UTF-8")],
            |screen| !screen.contains('\u{1b}'),
            "no escapes",
        ),
        (
            &[("TERM", "xterm"), ("LC_ALL", "C.UTF-8"), ("NO_COLOR", "1")],
            |screen| !has_colour(screen),
            "no colour",
        ),
        (
            &[("TERM", "dumb"), ("LC_ALL", "C")],
            str::is_ascii,
            "ASCII alone",
        ),
    ];
    for subcommand in Subcommand::all() {
        let mut help = bare();
        help.args([&subcommand.name, "--help"]);
        let mut wrong = bare();
        wrong.args([&subcommand.name, "--no-such-flag"]);
        let usual = Run::new(&mut place.useful(&subcommand)).code();
        for (environment, is_fit, what) in rows {
            for (command, code) in [(&help, 0), (&wrong, 2), (&place.useful(&subcommand), usual)] {
                // An archive is not for a terminal.
                let is_archive = command.get_args().any(|argument| argument == "-");
                let code = if is_archive { 1 } else { code };
                let mut typed = Command::new(command.get_program());
                typed
                    .args(command.get_args())
                    .envs(
                        command
                            .get_envs()
                            .filter_map(|(name, value)| Some((name, value?))),
                    )
                    .envs(FOR_COLOUR)
                    .envs(environment.iter().copied());
                if !environment.iter().any(|(name, _)| *name == "NO_COLOR") {
                    typed.env_remove("NO_COLOR");
                }
                let left = Terminal::start(typed).unwrap().left().unwrap();
                assert_eq!(left.status.code(), Some(code), "{command:?}: {left:?}");
                assert!(is_fit(&left.screen), "{what}: {command:?}: {left:?}");
                assert!(left.is_in_order(), "{command:?}: {left:?}");
            }
        }
    }
    place.stop();
}
