//! `gpuacct status` on a real terminal and before a made-up agent, which says what the test wants: a
//! large node, another user's socket, a program that is no agent. Nothing here needs a GPU.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use gpuacct::core::model::{Pid, SourceState, WallTime};
use gpuacct::core::snapshot::GpuProcessView;
use gpuacct::outputs::socket::StatusReport;
use gpuacct_tests::agent;
use gpuacct_tests::terminal::Terminal;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/src/outputs/golden");
/// Nobody's user id, by convention.
const NOBODY: u32 = 65_534;

/// What the made-up agent says now, and how often it was asked for its status.
struct Said {
    report: StatusReport,
    processes: Vec<GpuProcessView>,
    questions: u64,
}

/// A socket on which an agent seems to answer.
struct MadeUp {
    directory: tempfile::TempDir,
    said: Arc<(Mutex<Said>, Condvar)>,
}

impl MadeUp {
    fn new(report: StatusReport, processes: Vec<GpuProcessView>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        let said = Said {
            report,
            processes,
            questions: 0,
        };
        let said = Arc::new((Mutex::new(said), Condvar::new()));
        let says = Arc::clone(&said);
        // It ends with the process.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                // A client that is gone wants no answer.
                let _ = answer(&connection.unwrap(), &says);
            }
        });
        Self { directory, said }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(agent::binary().unwrap());
        command
            .args(arguments)
            .env("GPUACCT_SOCKET", self.socket())
            .env_remove("NO_COLOR");
        command
    }

    fn gpuacct(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Waits until it has been asked for its status this many times more.
    fn wait_for_questions(&self, more: u64) {
        let (said, asked) = &*self.said;
        let said = said.lock().unwrap();
        let until = said.questions + more;
        let (_said, waited) = asked
            .wait_timeout_while(said, agent::PATIENCE, |said| said.questions < until)
            .unwrap();
        assert!(!waited.timed_out(), "it is not asked");
    }

    /// The live view on a terminal of this size.
    fn watch(&self, arguments: &[&str], columns: u16, rows: u16) -> Terminal {
        let command = self.command(&[&["status", "--watch", "200ms"], arguments].concat());
        Terminal::of_size(command, columns, rows).unwrap()
    }
}

/// Answers one request.
fn answer(mut stream: &UnixStream, said: &(Mutex<Said>, Condvar)) -> std::io::Result<()> {
    let mut request = String::new();
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let (said, asked) = said;
    let mut said = said.lock().unwrap();
    let (code, body) = if request.starts_with("GET /v1/status ") {
        said.questions += 1;
        asked.notify_all();
        ("200 OK", serde_json::to_vec(&said.report).unwrap())
    } else if request.starts_with("GET /v1/processes ") {
        ("200 OK", serde_json::to_vec(&said.processes).unwrap())
    } else {
        let subject = request.split(['=', ' ']).nth(2).unwrap_or_default();
        let error = format!("{{\"error\": \"nothing is known of {subject}\"}}");
        ("404 Not Found", error.into_bytes())
    };
    drop(said);
    let head = format!(
        "HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat())
}

/// The report of the outputs' tests, as they draw it.
fn sample() -> StatusReport {
    let json = fs::read(format!("{GOLDEN}/status.json")).unwrap();
    let mut report: StatusReport = serde_json::from_slice(&json).unwrap();
    report.now_wall = WallTime(report.snapshot.wall.0 + 500_000_000);
    report.nvml_blocked = None;
    report
        .degraded
        .retain(|reason| reason.starts_with("docker"));
    report
}

/// A healthy node with this many GPUs and containers, each with a process.
fn node(gpus: usize, containers: usize) -> MadeUp {
    let mut report = sample();
    report.degraded.clear();
    for health in &mut report.agent.sources {
        health.state = SourceState::Up;
    }
    let snapshot = &mut report.snapshot;
    let book = snapshot.gpus[0].clone();
    snapshot.gpus = (0..gpus)
        .map(|number| {
            let mut book = book.clone();
            book.gpu.index = u32::try_from(number).unwrap();
            book.gpu.uuid = format!("GPU-{number:08}").as_str().into();
            book.gpu.simulated = false;
            book
        })
        .collect();
    let account = snapshot.accounts[1].clone();
    snapshot.accounts = (0..containers)
        .map(|number| {
            let mut account = account.clone();
            Arc::make_mut(&mut account.labels).pod = format!("train-{number}").into();
            account.id = format!("{number:064}").as_str().into();
            account.gpu = snapshot.gpus[number % gpus].gpu.uuid.clone();
            account.share = 1.0 / (number + 1) as f64;
            account
        })
        .collect();
    snapshot.host_accounts.clear();
    snapshot.allocations.clear();
    let accounts = snapshot.accounts.iter().enumerate();
    let processes = accounts
        .map(|(number, account)| GpuProcessView {
            pid: Pid(10_000 + u32::try_from(number).unwrap()),
            start: None,
            gpu: account.gpu.clone(),
            owner: Arc::clone(&account.id.0),
            inner: Vec::new(),
            alive: true,
            share: account.share,
            memory: Some(1 << 30),
        })
        .collect();
    MadeUp::new(report, processes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_real_terminal_displays_what_the_test_of_the_drawing_expects() {
    let agent = MadeUp::new(sample(), Vec::new());
    let mut terminal = agent.watch(&[], 100, 30);
    let expected = fs::read_to_string(format!("{GOLDEN}/watch.txt")).unwrap();
    let displayed = terminal
        .wait_for_display("the footer", |screen| screen.contains("q quit"))
        .unwrap();
    assert_eq!(displayed, expected);
    terminal.press("q").unwrap();
    assert!(terminal.left().unwrap().is_in_order());
}

#[test]
fn a_large_node_is_scrolled_on_terminals_of_all_sizes() {
    let agent = node(8, 64);
    for (columns, rows) in [(40, 10), (80, 24), (200, 60)] {
        let mut terminal = agent.watch(&["--processes"], columns, rows);
        let shows = |terminal: &Terminal, words: &str| {
            terminal
                .wait_for_display(words, |screen| screen.contains(words))
                .unwrap()
        };
        // A picture may be read while it is drawn.
        let first = terminal
            .wait_for_display("a process and the keys", |screen| {
                screen.contains("? help") && screen.contains("  10000 ")
            })
            .unwrap();
        assert!(first.contains(" more "), "{first}");
        for gpu in ["0 ", "7 "] {
            assert!(first.contains(gpu), "GPU {gpu}: {first}");
        }
        assert_eq!(first.matches(" 75.0%").count(), 8, "{first}");
        // Without processes, and to the end by a key; back by the wheel.
        terminal.press("p").unwrap();
        terminal
            .wait_for_display("no process", |screen| !screen.contains("  10000 "))
            .unwrap();
        terminal.press("G").unwrap();
        terminal
            .wait_for_display("the last container, and none behind it", |screen| {
                screen.contains("train-63/") && !screen.contains("more containers")
            })
            .unwrap();
        terminal.press("\u{1b}[<64;5;5M").unwrap();
        terminal.press(&"\u{1b}[<64;5;5M".repeat(20)).unwrap();
        shows(&terminal, "research/train-0/");
        // What explain says of the selected one, the help, and back.
        terminal.press("\r").unwrap();
        shows(&terminal, "nothing is known of 00000");
        terminal.press("\u{1b}").unwrap();
        shows(&terminal, "? help");
        terminal.press("?").unwrap();
        shows(&terminal, "Esc back");
        terminal.press("q").unwrap();
        shows(&terminal, "? help");
        // Another size, and paused: what comes then is not shown before it goes on.
        terminal.resize(columns + 20, rows + 4).unwrap();
        let resized = terminal
            .wait_for_display("the new size", |screen| {
                screen.lines().count() == usize::from(rows + 4) && screen.contains("? help")
            })
            .unwrap();
        assert!(resized.contains("healthy"), "{resized}");
        terminal.press(" ").unwrap();
        shows(&terminal, "paused");
        terminal.press("q").unwrap();
        let left = terminal.left().unwrap();
        assert!(left.status.success() && left.is_in_order(), "{left:?}");
    }
}

#[test]
fn sixteen_gpus_and_five_hundred_containers_fit_a_small_terminal() {
    let agent = node(16, 500);
    let mut terminal = agent.watch(&[], 80, 24);
    let screen = terminal
        .wait_for_display("the footer", |screen| screen.contains("? help"))
        .unwrap();
    assert_eq!(screen.matches(" 75.0%").count(), 16, "{screen}");
    let shown = screen.matches("research/").count();
    let hidden = format!("{} more containers, press j", 500 - shown);
    assert!(screen.contains(&hidden), "{screen}");
    // The same commit again and again draws nothing: an answer is drawn before the next question.
    let drawn = terminal.bytes().len();
    agent.wait_for_questions(3);
    assert_eq!(terminal.bytes().len(), drawn);
    let mut said = agent.said.0.lock().unwrap();
    said.report.snapshot.sequence += 1;
    said.report.snapshot.accounts.truncate(1);
    drop(said);
    terminal
        .wait_for_display("one container", |screen| {
            screen.matches("research/").count() == 1
        })
        .unwrap();
    terminal.press("q").unwrap();
    assert!(terminal.left().unwrap().is_in_order());
}

#[test]
fn colours_and_characters_are_those_that_the_environment_allows() {
    let agent = MadeUp::new(sample(), Vec::new());
    let start = |variables: &[(&str, &str)]| {
        let mut command = agent.command(&["status", "--watch", "200ms"]);
        command.envs(variables.iter().copied());
        let mut terminal = Terminal::of_size(command, 60, 20).unwrap();
        terminal.wait_for("q").unwrap();
        terminal.wait_for("docker").unwrap();
        terminal.press("q").unwrap();
        terminal.left().unwrap().screen
    };
    let coloured = "\u{1b}[38;5;3";
    let screen = start(&[]);
    assert!(screen.contains(coloured), "{screen:?}");
    let screen = start(&[("NO_COLOR", "1")]);
    assert!(!screen.contains("\u{1b}[38;"), "{screen:?}");
    let screen = start(&[("LC_ALL", "C")]);
    assert!(screen.is_ascii(), "{screen:?}");
}

#[test]
fn a_dumb_terminal_gets_the_page_again_and_again() {
    let agent = MadeUp::new(sample(), Vec::new());
    let mut command = agent.command(&["status", "--watch", "200ms"]);
    command.env("TERM", "dumb");
    let mut terminal = Terminal::of_size(command, 80, 500).unwrap();
    terminal
        .wait_for_display("two pages", |screen| {
            screen.matches("kernel events").count() >= 2
        })
        .unwrap();
    terminal.press("\u{3}").unwrap();
    terminal.signal(rustix::process::Signal::INT).unwrap();
    let left = terminal.left().unwrap();
    assert!(!left.screen.contains("\u{1b}["), "{left:?}");
}

#[test]
fn an_answer_that_is_not_written_was_exit_code_0() {
    let agent = node(1, 1);
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for arguments in [
        &["status"][..],
        &["status", "-o", "json"],
        &["status", "-o", "yaml"],
        &["status", "--watch", "200ms"],
    ] {
        let output = agent.command(arguments).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("cannot write to standard output"), "{said}");
    }
    // A reader that has had enough is no error.
    let mut command = agent.command(&["status"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stderr), "");
}

/// A copy of the program that every user may run.
fn public_binary(directory: &Path) -> PathBuf {
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    let copy = directory.join("gpuacct");
    fs::copy(agent::binary().unwrap(), &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn an_ordinary_user_was_told_that_no_agent_answers() {
    let agent = node(1, 1);
    fs::set_permissions(agent.socket(), Permissions::from_mode(0o600)).unwrap();
    let binary = public_binary(agent.directory.path());
    for arguments in [&["status"][..], &["explain", "1"], &[]] {
        let output = Command::new(&binary)
            .args(arguments)
            .env("GPUACCT_SOCKET", agent.socket())
            .uid(NOBODY)
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("may not open"), "{arguments:?}: {said}");
        assert!(said.contains("sudo"), "{arguments:?}: {said}");
        assert!(!said.contains("no agent"), "{arguments:?}: {said}");
    }
}

#[test]
fn without_a_command_the_status_is_shown_where_there_is_an_agent_and_else_the_help() {
    let agent = node(1, 1);
    let output = agent.gpuacct(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("research/train-0/trainer"));
    let output = Command::new(agent::binary().unwrap())
        .env("GPUACCT_SOCKET", agent.directory.path().join("none.sock"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        text(&output.stderr).contains("Usage: gpuacct"),
        "{output:?}"
    );
}

#[test]
fn the_flags_choose_what_is_shown() {
    let agent = node(4, 20);
    let page = |arguments: &[&str]| {
        let output = agent.gpuacct(&[&["status"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        text(&output.stdout)
    };
    let shown = |page: &str| {
        page.lines()
            .filter(|line| line.starts_with("research/"))
            .count()
    };
    assert_eq!(shown(&page(&[])), 20);
    assert_eq!(shown(&page(&["--limit", "3"])), 3);
    assert_eq!(shown(&page(&["--gpu", "1"])), 5);
    assert_eq!(shown(&page(&["--gpu", "GPU-00000001,2"])), 10);
    assert_eq!(shown(&page(&["--namespace", "other"])), 0);
    let bare = page(&["--no-headers", "--processes"]);
    assert!(
        !bare.contains("CONTAINER") && !bare.contains("PID"),
        "{bare}"
    );
    assert!(page(&["-o", "wide"]).contains("IMAGE"));
    let yaml = page(&["-o", "yaml", "--gpu", "3"]);
    assert!(yaml.contains("uuid: GPU-00000003"), "{yaml}");
    assert!(!yaml.contains("uuid: GPU-00000001"), "{yaml}");
    let json = page(&["-o", "json", "--sort-by", "name", "--limit", "2"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let pods = json["snapshot"]["accounts"].as_array().unwrap();
    let pods: Vec<_> = pods.iter().map(|of| &of["labels"]["pod"]).collect();
    assert_eq!(pods, ["train-0", "train-1"]);
    let output = agent.gpuacct(&["status", "--gpu", "9"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("there are 0 (GPU-00000000), 1"));
}
