//! The commands as they are typed: the built agent, on this kernel, with a simulated GPU and where
//! there is one a real Docker; what they print and how they exit.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gpuacct::app::preflight::{Finding, Verdict};
use gpuacct::commands::check::CheckReport;
use gpuacct::commands::status::watch::Screen;
use gpuacct::config::{Config, LogFormat, OtlpProtocol};
use gpuacct::core::explanation::{AnswerOutcome, CgroupOwner, Explanation, SeenBy};
use gpuacct::core::model::{SourceId, SourceState, UnobservedReason};
use gpuacct::core::snapshot::GpuBook;
use gpuacct::sources::identity::greeting::{self, GreetingError};
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::docker::{self, ContainerSpec};
use gpuacct_tests::http::free_address;
use gpuacct_tests::node::{Node, pod_uid, short_folder};
use gpuacct_tests::requirement::require;
use gpuacct_tests::rerun;
use gpuacct_tests::terminal::Terminal;
use rustix::process::Signal;
use sim_nvml::STATE_DIR;

/// Set in the process that is to panic.
const PANICS: &str = "GPUACCT_TEST_PANICS";

/// A node with a GPU, on which `gpuacct` is typed.
struct Shell {
    node: Node,
}

impl Shell {
    fn new() -> Self {
        let node = Node::new(1).unwrap();
        Self { node }
    }

    fn dir(&self) -> &Path {
        self.node.dir()
    }

    /// A configuration with the defaults, but for what is the machine's own and would be touched.
    fn config(&self) -> Config {
        let mut config = Config::default();
        config.gpu.library = Some(self.node.library().to_owned());
        config.prometheus.listen = free_address().unwrap();
        config.socket.path = self.dir().join("agent.sock");
        config.docker.sockets = vec![self.dir().join("no-docker.sock")];
        config
    }

    /// An agent that works: what begins before the object is attached is known by a scan alone.
    fn agent(&self, config: Config) -> Agent {
        self.node.agent("", config).unwrap()
    }

    /// `gpuacct` with these arguments, and with this configuration in a file.
    fn gpuacct(&self, arguments: &[&str], config: &str) -> Output {
        let file = self.dir().join("given.toml");
        std::fs::write(&file, config).unwrap();
        Command::new(agent::binary().unwrap())
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .env(STATE_DIR, self.node.scenario_dir())
            .output()
            .unwrap()
    }

    fn check(&self, config: &Config) -> (CheckReport, Option<i32>) {
        let output = self.gpuacct(&["check", "-o", "json"], &config.to_toml().unwrap());
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (report, output.status.code())
    }

    /// A host process that uses the GPU until it is killed.
    fn job(&self) -> Killed {
        let mut work = self.node.host_work(0, "0.5");
        let mut job = work
            .args(["--label", "job"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(job.stdout.take());
        Killed(job)
    }
}

fn finding<'a>(report: &'a CheckReport, item: &str) -> &'a Finding {
    let found = report.findings.iter().find(|found| found.item == item);
    found.unwrap_or_else(|| panic!("no {item} in {report:#?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn probes_answer_by_their_exit_code_over_the_socket_alone() {
    let shell = Shell::new();
    let mut config = shell.config();
    // There is no port that could be flooded.
    config.prometheus.enabled = false;
    let socket = config.socket.path.clone();
    let probe = |question: &str| {
        let output = Command::new(agent::binary().unwrap())
            .args(["probe", question, "--socket"])
            .arg(&socket)
            .output()
            .unwrap();
        (output.status.code(), text(&output.stdout))
    };
    assert_eq!(probe("live").0, Some(2), "no agent answers yet");
    let file = shell.dir().join("probed.toml");
    config.store.path = shell.dir().join("store");
    std::fs::write(&file, config.to_toml().unwrap()).unwrap();
    let running = Command::new(agent::binary().unwrap())
        .args(["agent", "--log", "warn", "--config"])
        .arg(&file)
        .env(STATE_DIR, shell.node.scenario_dir())
        .spawn()
        .unwrap();
    let running = Killed(running);
    let deadline = Instant::now() + agent::PATIENCE;
    let mut said = Vec::new();
    while probe("ready").0 != Some(0) {
        said.push(probe("ready").0);
        assert!(Instant::now() < deadline, "{said:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(probe("ready").1.starts_with("ready\n"));
    assert_eq!(probe("live"), (Some(0), "ok\n".to_owned()));
    drop(running);
    assert_eq!(probe("live").0, Some(2), "it was killed");
}

#[test]
fn check_finds_everything_in_order_where_it_is() {
    let shell = Shell::new();
    let config = shell.config();
    let (report, code) = shell.check(&config);
    // A line for each socket and folder in which there may be names, and what was read.
    let given = shell.dir().join("given.toml").display().to_string();
    assert_eq!(finding(&report, "configuration").found, given);
    for (source, path) in [
        ("cri", &config.cri.sockets[0]),
        ("cri", &config.cri.sockets[3]),
        ("bundle", &config.bundle.containerd[2]),
        ("kubelet", &config.kubelet_logs.pods),
        ("kubelet", &config.pod_resources.socket),
    ] {
        finding(&report, &format!("{source} {}", path.display()));
    }
    let hooks = report
        .findings
        .iter()
        .filter(|found| found.item.starts_with("hook ") && found.found.starts_with("attaches"));
    // Five that the books need, the one on removed cgroups, and whichever the kernel allows for opens
    // of GPU devices.
    assert_eq!(hooks.count(), 7, "{report:#?}");
    assert_eq!(code, Some(0), "{report:#?}");
    let nvml = finding(&report, "nvml");
    assert_eq!(nvml.verdict, Verdict::Ok);
    assert!(
        nvml.found.contains("driver 550") && nvml.found.contains("simulated"),
        "{nvml:?}"
    );
    let gpu = finding(&report, "gpu 0");
    assert_eq!(gpu.verdict, Verdict::Ok, "{gpu:?}");
    let socket = format!("socket {}", config.socket.path.display());
    assert_eq!(finding(&report, &socket).found, "can be written");

    // Beside an agent, its own port and socket are in order.
    let agent = shell.agent(config.clone());
    let (report, code) = shell.check(&config);
    assert_eq!(code, Some(0), "{report:#?}");
    assert_eq!(finding(&report, &socket).found, "an agent answers");
    let status = agent.status().unwrap();
    assert_eq!(status.snapshot.events.lost, 0, "{status:?}");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn check_exits_by_what_fails() {
    let shell = Shell::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = shell.config();
    config.prometheus.listen = taken.local_addr().unwrap();
    let (report, code) = shell.check(&config);
    let item = format!("metrics {}", config.prometheus.listen);
    assert_eq!(finding(&report, &item).verdict, Verdict::Fail);
    assert_eq!((report.verdict, code), (Verdict::Fail, Some(1)));

    let mut config = shell.config();
    config.gpu.library = Some("/nonexistent/libnvidia-ml.so.1".into());
    let (report, code) = shell.check(&config);
    let nvml = finding(&report, "nvml");
    assert!(
        nvml.found.contains("does not exist") && nvml.remedy.is_some(),
        "{nvml:?}"
    );
    assert_eq!(code, Some(1));
    let page = shell.gpuacct(&["check"], &config.to_toml().unwrap());
    let page = text(&page.stdout);
    assert!(page.contains("fail  nvml: "), "{page}");

    let wrong = shell.gpuacct(&["check"], "nonsense = 1\n");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("nonsense"));
}

#[test]
fn check_asks_a_real_docker_and_does_not_wait_for_a_frozen_one() {
    if require("docker", docker::available()).is_none() {
        return;
    }
    let shell = Shell::new();
    let mut daemon = shell.node.dockerd().unwrap();
    let mut config = shell.config();
    config.docker.sockets = vec![daemon.socket()];
    let item = format!("docker {}", daemon.socket().display());
    let (report, _) = shell.check(&config);
    let docker = finding(&report, &item);
    assert_eq!(docker.verdict, Verdict::Ok, "{docker:?}");
    assert!(docker.found.ends_with("answers"), "{docker:?}");

    daemon.pause().unwrap();
    config.docker.timeout = "2s".parse().unwrap();
    let (report, code) = shell.check(&config);
    let docker = finding(&report, &item);
    assert_eq!(docker.verdict, Verdict::Warn, "{docker:?}");
    assert!(docker.found.contains("no answer within 2s"), "{docker:?}");
    assert_eq!(code, Some(0), "{report:#?}");
    daemon.resume().unwrap();
}

/// A containerd of the test's own, with or without its CRI plugin.
fn containerd(dir: &Path, disabled: &str) -> Killed {
    let place = |name: &str| {
        let place = dir.join(name);
        std::fs::create_dir_all(&place).unwrap();
        place.display().to_string()
    };
    let (root, state, cni) = (place("root"), place("state"), place("cni"));
    let address = dir.join("c.sock").display().to_string();
    let config = format!(
        "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [{disabled}]\n\
         [grpc]\naddress = {address:?}\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = {cni:?}\nconf_dir = {cni:?}\n"
    );
    std::fs::write(dir.join("c.toml"), config).unwrap();
    let mut command = Command::new("containerd");
    let log = std::fs::File::create(dir.join("c.log")).unwrap();
    command.arg("--config").arg(dir.join("c.toml")).stderr(log);
    Killed(command.spawn().unwrap())
}

#[tokio::test]
async fn a_real_containerd_is_known_by_its_answer_to_cri() {
    let available = Command::new("containerd").arg("--version").output();
    if require("containerd", available).is_none() {
        return;
    }
    for (disabled, offers) in [("", true), ("\"io.containerd.grpc.v1.cri\"", false)] {
        let dir = short_folder();
        let _containerd = containerd(dir.path(), disabled);
        let socket = dir.path().join("c.sock");
        let deadline = Instant::now() + agent::PATIENCE;
        let answer = loop {
            let answer = greeting::cri(&socket, agent::PATIENCE).await;
            let starting = match &answer {
                Err(GreetingError::Connect(_)) => true,
                // It listens before all of its plugins do.
                Err(GreetingError::Cri { .. }) => true,
                Err(GreetingError::NoCri) => offers,
                _ => false,
            };
            if !starting || Instant::now() > deadline {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        match answer {
            Ok(name) => assert!(offers && name.starts_with("containerd "), "{name}"),
            Err(GreetingError::NoCri) => assert!(!offers),
            Err(error) => panic!("{disabled}: {error:?}"),
        }
    }
}

#[test]
fn explain_tells_of_a_host_process_alive_and_dead() {
    let shell = Shell::new();
    let mut agent = shell.agent(shell.config());
    let job = shell.job();
    let pid = job.0.id();
    let subject = pid.to_string();
    agent
        .wait_for("the process to be charged", |agent| {
            let told = agent.explain(&subject)?;
            let owners = told.iter().flat_map(|told| &told.owners);
            Ok(owners
                .flat_map(|owner| &owner.accounts)
                .any(|a| !a.busy.is_zero()))
        })
        .unwrap();
    let told = agent.explain(&subject).unwrap().unwrap();
    let process = &told.processes[0];
    assert_eq!((process.pid.0, process.seen_by), (pid, SeenBy::Event));
    assert_eq!(
        process.parent.map(|parent| parent.0),
        Some(std::process::id())
    );
    assert!(
        process.died.is_none() && !process.gpus.is_empty(),
        "{process:?}"
    );
    assert!(
        matches!(told.owners[0].who, CgroupOwner::Host { .. }),
        "{told:?}"
    );
    let page = agent.gpuacct(&["explain", &subject]).unwrap();
    let page = text(&page.stdout);
    for words in [
        format!("process {pid}: started "),
        "seen by an event".into(),
        " booked".into(),
    ] {
        assert!(page.contains(&words), "{words}: {page}");
    }

    drop(job);
    agent
        .wait_for("the process to be known as dead", |agent| {
            let told = agent.explain(&subject)?;
            Ok(told.is_some_and(|told| told.processes[0].died.is_some()))
        })
        .unwrap();
    assert_eq!(agent.explain("nobody/at-all").unwrap(), None);
    let unknown = agent.gpuacct(&["explain", "nobody at all?&#"]).unwrap();
    assert!(
        text(&unknown.stderr).contains("\"nobody at all?&#\""),
        "{unknown:?}"
    );

    let mut orphan = agent.command(&["explain", &subject]);
    assert!(agent.stop().unwrap().success());
    let output = orphan.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no agent answers"));
}

#[test]
fn explain_did_not_know_a_process_that_had_just_ended() {
    let shell = Shell::new();
    let agent = shell.agent(shell.config());
    let deadline = Instant::now() + agent::PATIENCE;
    loop {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id().to_string();
        child.wait().unwrap();
        let output = agent.gpuacct(&["explain", &pid]).unwrap();
        if output.status.success() {
            let page = text(&output.stdout);
            assert!(page.contains(&format!("process {pid}: ")), "{page}");
            assert!(page.contains("as of "), "{page}");
            break;
        }
        // A machine that is too busy to commit in time says that it does not know yet.
        let said = text(&output.stderr);
        assert!(said.contains("ask again"), "{said}");
        assert!(Instant::now() < deadline, "{said}");
    }
}

#[test]
fn a_host_units_total_is_what_is_booked_while_its_series_still_shows_0() {
    let shell = Shell::new();
    let mut config = shell.config();
    config.publish.zero_for = "10m".parse().unwrap();
    let mut agent = shell.agent(config);
    let _job = shell.job();
    let status = agent
        .wait_for_status("the unit to be billed", |status| {
            let mut accounts = status.snapshot.host_accounts.iter();
            accounts.any(|account| account.amounts.busy.0 > 1_000_000_000)
        })
        .unwrap();
    let snapshot = &status.snapshot;
    let mut published = snapshot.host_series.iter();
    assert!(published.all(|series| series.amounts.busy.is_zero()));
    let book = &snapshot.gpus[0];
    let booked = snapshot.host_accounts.iter();
    let booked: u64 = booked.map(|account| account.amounts.busy.0).sum();
    let unattributed: u64 = book.unattributed.iter().map(|(_, time)| time.0).sum();
    assert_eq!(booked + unattributed, book.busy.0, "{snapshot:?}");
    let page = agent.gpuacct(&["status"]).unwrap();
    let page = text(&page.stdout);
    let mut lines = page.lines();
    let head = lines.find(|line| line.starts_with("HOST UNIT")).unwrap();
    let total = head.find("TOTAL").unwrap() + "TOTAL".len();
    let row = lines.next().unwrap();
    let shown = row[..total].split_whitespace().next_back().unwrap();
    assert!(!["0s", "0ns"].contains(&shown), "{page}");
}

#[test]
fn explain_tells_of_a_container_by_every_name_of_it() {
    if require("docker", docker::available()).is_none() {
        return;
    }
    let shell = Shell::new();
    let mut daemon = shell.node.dockerd().unwrap();
    let mut config = shell.config();
    config.docker.sockets = vec![daemon.socket()];
    let mut agent = shell.agent(config);
    let spec = ContainerSpec::named("k8s_trainer_train-0")
        .in_pod("research", "train-0", pod_uid(), "trainer")
        .command(["sleep", "1000"]);
    let container = daemon.run(&spec).unwrap();
    // What started it in its cgroup is dead and forgotten at some time.
    let is_in = |told: &Explanation| {
        let mut living = told.processes.iter().filter(|of| of.died.is_none());
        living.any(|of| of.pid.0 == container.pid)
    };
    agent
        .wait_for("docker to tell of it", |agent| {
            let told = agent.explain(&container.id)?;
            let is_told = told.is_some_and(|told| {
                let mut answers = told.owners[0].answers.iter();
                let is_found = answers
                    .any(|answer| matches!(answer.outcome, Some(AnswerOutcome::Found { .. })));
                is_found && is_in(&told)
            });
            Ok(is_told)
        })
        .unwrap();
    for subject in [
        &container.id[..12],
        "k8s_trainer_train-0",
        "trainer",
        "research/train-0",
        "research/train-0/trainer",
    ] {
        let told = agent
            .explain(subject)
            .unwrap()
            .unwrap_or_else(|| panic!("{subject}"));
        let CgroupOwner::Container { id, .. } = &told.owners[0].who else {
            panic!("{subject}: {told:?}");
        };
        assert_eq!(id.as_str(), container.id, "{subject}");
        assert!(is_in(&told), "{subject}: {told:?}");
    }
    let page = agent.gpuacct(&["explain", "trainer"]).unwrap();
    let page = text(&page.stdout);
    assert!(page.contains("docker (up): knows it as"), "{page}");
    daemon.remove(&container).unwrap();
    agent
        .wait_for("its removal to be known", |agent| {
            let told = agent.explain(&container.id)?;
            Ok(told.is_some_and(|told| told.owners[0].answers[0].removed))
        })
        .unwrap();
}

#[test]
fn a_watch_gives_the_terminal_back_upon_keys_and_signals() {
    let shell = Shell::new();
    let agent = shell.agent(shell.config());
    type End = fn(&mut Terminal);
    let ends: [(&str, End); 5] = [
        ("q", |terminal| terminal.press("q").unwrap()),
        ("ctrl-c", |terminal| terminal.press("\u{3}").unwrap()),
        ("a filter, then ctrl-c", |terminal| {
            terminal.press("/q\u{3}").unwrap()
        }),
        ("SIGTERM", |terminal| terminal.signal(Signal::TERM).unwrap()),
        ("SIGHUP", |terminal| terminal.signal(Signal::HUP).unwrap()),
    ];
    for (how, end) in ends {
        let command = agent.command(&["status", "--watch", "200ms"]);
        let mut terminal = Terminal::start(command).unwrap();
        terminal.wait_for("? help").unwrap();
        assert!(terminal.is_changed().unwrap(), "{how}");
        end(&mut terminal);
        let left = terminal.left().unwrap();
        assert!(left.status.success(), "{how}: {left:?}");
        assert!(left.screen.contains("\u{1b}[?1049h"), "{how}: {left:?}");
        assert!(left.is_in_order(), "{how}: {left:?}");
    }
}

#[test]
fn a_watch_outlives_the_agent_and_one_without_an_agent_does_not_begin() {
    let shell = Shell::new();
    let agent = shell.agent(shell.config());
    let command = agent.command(&["status", "--watch", "200ms"]);
    let late = agent.command(&["status", "--watch"]);
    let mut terminal = Terminal::start(command).unwrap();
    terminal.wait_for("? help").unwrap();
    assert!(agent.stop().unwrap().success());
    terminal.wait_for("no answer since").unwrap();
    terminal.press("q").unwrap();
    assert!(terminal.left().unwrap().is_in_order());

    let left = Terminal::start(late).unwrap().left().unwrap();
    assert_eq!(left.status.code(), Some(2), "{left:?}");
    assert!(
        left.screen.contains("no agent answers") && left.is_in_order(),
        "{left:?}"
    );
}

#[test]
fn a_panic_gives_the_terminal_back() {
    if std::env::var_os(PANICS).is_some() {
        let _screen = Screen::enter().unwrap();
        panic!("on the other screen");
    }
    let name = "a_panic_gives_the_terminal_back";
    let mut command = rerun::command(module_path!(), name).unwrap();
    command.env(PANICS, "1");
    let left = Terminal::start(command).unwrap().left().unwrap();
    assert!(!left.status.success(), "{left:?}");
    assert!(left.is_in_order(), "{left:?}");
    // The message comes after the screen is given back, or nobody could read it.
    let back = left.screen.find("\u{1b}[?1049l").unwrap();
    let message = left.screen.find("on the other screen").unwrap();
    assert!(back < message, "{left:?}");
}

#[test]
fn a_watch_without_a_terminal_is_plain_and_ends_with_its_reader() {
    let shell = Shell::new();
    let agent = shell.agent(shell.config());
    let watch = |arguments: &[&str]| {
        let mut child = agent
            .command(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        (child, out)
    };
    let (mut child, out) = watch(&["status", "--watch", "200ms"]);
    let heads = out.lines().map(Result::unwrap).filter(|line| {
        assert!(!line.contains('\u{1b}'), "{line:?}");
        line.starts_with("gpuacct ")
    });
    assert_eq!(heads.take(3).count(), 3);
    assert!(child.wait().unwrap().success(), "its reader is gone");

    let (child, out) = watch(&["status", "--watch", "200ms", "-o", "json"]);
    let mut child = Killed(child);
    for line in out.lines().take(2) {
        let value: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert!(value["snapshot"]["sequence"].is_u64());
    }
    assert!(child.0.wait().unwrap().success());

    let wrong = agent.gpuacct(&["status", "--watch", "1ms"]).unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[test]
fn the_log_level_is_changed_and_the_log_is_in_the_bundle() {
    let shell = Shell::new();
    let mut config = shell.config();
    config.otlp.endpoint = Some("http://me:hunter22@127.0.0.1:9".to_owned());
    let header = ("authorization".to_owned(), "Bearer abcdef".to_owned());
    config.otlp.headers = [header].into();
    let agent = shell.agent(config);
    for (level, code, words) in [
        ("gpuacct=debug", 0, "info -> gpuacct=debug"),
        ("loud", 1, "log level \"loud\""),
        ("warn", 0, "gpuacct=debug -> warn"),
    ] {
        let output = agent.gpuacct(&["log-level", level]).unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains(words), "{said}");
    }

    let path = shell.dir().join("report.tar");
    let path_text = path.display().to_string();
    let output = agent.gpuacct(&["bundle", &path_text]).unwrap();
    assert!(output.status.success(), "{output:?}");
    let parts = unpacked(&path);
    let part = |name: &str| {
        let wanted = format!("gpuacct-bundle/{name}");
        let part = parts.iter().find(|(name, _)| *name == wanted);
        part.map(|(_, text)| text.as_str())
            .unwrap_or_else(|| panic!("no {name}"))
    };
    assert!(
        part("log.txt").starts_with("level warn, "),
        "{}",
        part("log.txt")
    );
    assert!(part("log.txt").contains("the log level was changed"));
    assert!(part("status.txt").starts_with("gpuacct "));
    assert!(part("config.toml").contains("(redacted)@127.0.0.1:9"));
    let report: CheckReport = serde_json::from_str(part("check.json")).unwrap();
    assert!(report.findings.len() > 10);
    let status: serde_json::Value = serde_json::from_str(part("status.json")).unwrap();
    assert!(status["snapshot"]["sequence"].is_u64());
    for (name, text) in &parts {
        for secret in ["hunter22", "abcdef"] {
            assert!(!text.contains(secret), "{secret} in {name}: {text}");
        }
    }

    // Never over another file; without an agent, with what there is.
    let again = agent.gpuacct(&["bundle", &path_text]).unwrap();
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    let mut orphan = agent.command(&["bundle", "-"]);
    let mut level = agent.command(&["log-level", "info"]);
    assert!(agent.stop().unwrap().success());
    assert_eq!(level.output().unwrap().status.code(), Some(2));
    let output = orphan.output().unwrap();
    assert!(output.status.success(), "{:?}", text(&output.stderr));
    std::fs::write(&path, output.stdout).unwrap();
    let parts = unpacked(&path);
    let log = parts.iter().find(|(name, _)| name.ends_with("log.txt"));
    assert!(log.unwrap().1.starts_with("not here: no agent answers"));
}

#[test]
fn the_gpus_are_released_and_taken_up_again() {
    let shell = Shell::new();
    let mut agent = shell.agent(shell.config());
    let is_mapped = |agent: &Agent| {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", agent.pid())).unwrap();
        maps.contains("libnvidia-ml")
    };
    agent
        .wait_for("a GPU", |agent| Ok(is_mapped(agent)))
        .unwrap();
    let sequence = |agent: &Agent| agent.status().unwrap().snapshot.sequence;
    let before = sequence(&agent);
    let released = agent.gpuacct(&["release", "--for", "1h"]).unwrap();
    assert_eq!(released.status.code(), Some(0), "{released:?}");
    assert!(text(&released.stdout).starts_with("the GPUs are released until "));
    assert!(!is_mapped(&agent), "the library could not be replaced");
    agent
        .wait_for("the state `released`", |agent| {
            let output = agent.gpuacct(&["status"])?;
            let shown = text(&output.stdout).contains("gpuacct release");
            Ok(output.status.code() == Some(1) && shown && sequence(agent) > before)
        })
        .unwrap();

    let ended = agent.gpuacct(&["release", "--end"]).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    agent
        .wait_for("the GPUs", |agent| Ok(is_mapped(agent)))
        .unwrap();
    agent
        .wait_for("time that is released in books that balance", |agent| {
            let report = agent.status()?;
            let is_released = |gpu: &GpuBook| {
                let mut reasons = gpu.unobserved.iter();
                gpu.imbalance == 0
                    && reasons.any(|(reason, _)| *reason == UnobservedReason::Released)
            };
            Ok(!report.snapshot.gpus.is_empty() && report.snapshot.gpus.iter().all(is_released))
        })
        .unwrap();
    for (time, code) in [("2d", 1), ("0s", 1), ("soon", 2)] {
        let wrong = agent.gpuacct(&["release", "--for", time]).unwrap();
        assert_eq!(wrong.status.code(), Some(code), "{wrong:?}");
        assert!(text(&wrong.stderr).contains("--for"), "{wrong:?}");
    }
    assert!(agent.stop().unwrap().success());
}

/// Without a file that is named, be it by a flag or by the environment: `kubectl exec POD -- gpuacct
/// bundle -`.
fn bare(agent: &Agent, arguments: &[&str]) -> Output {
    let mut command = agent.command(arguments);
    command.env_remove("GPUACCT_CONFIG");
    command.output().unwrap()
}

#[test]
fn a_bundle_without_a_configuration_shows_no_password_of_the_agents() {
    let shell = Shell::new();
    let mut config = shell.config();
    // What answers there repeats what it was sent, as some gateways do.
    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gateway.local_addr().unwrap();
    config.otlp.endpoint = Some(format!("http://me:hunter22@{address}"));
    config.otlp.protocol = OtlpProtocol::HttpProtobuf;
    config.otlp.interval = "1s".parse().unwrap();
    config.log.level = "debug".to_owned();
    let header = ("x-token".to_owned(), "Bearer abcdef".to_owned());
    config.otlp.headers = [header].into();
    let kept = Arc::new(Mutex::new(String::new()));
    let keeps = Arc::clone(&kept);
    // It ends with the process.
    std::thread::spawn(move || refuse(&gateway, &keeps));
    let mut agent = shell.agent(config.clone());
    let status = agent
        .wait_for_status("the refusal to be known", |status| {
            let mut sources = status.agent.sources.iter();
            let otlp = sources.find(|health| health.source == SourceId::Otlp);
            matches!(&otlp.unwrap().state, SourceState::Down { reason, .. } if reason.contains("403"))
        })
        .unwrap();
    let mut sources = status.agent.sources.iter();
    let otlp = sources.find(|health| health.source == SourceId::Otlp);
    assert_eq!(*otlp.unwrap().place, *format!("http://{address}"));
    // The user in the address was not dropped: it is sent as HTTP sends it.
    let sent = kept.lock().unwrap().clone();
    assert!(
        sent.contains("authorization Basic bWU6aHVudGVyMjI="),
        "{sent}"
    );
    assert!(sent.contains("x-token Bearer abcdef"), "{sent}");

    let output = bare(&agent, &["bundle", "-"]);
    assert!(output.status.success(), "{output:?}");
    let path = shell.dir().join("bare.tar");
    std::fs::write(&path, output.stdout).unwrap();
    let parts = unpacked(&path);
    let secrets = ["hunter22", "abcdef", "bWU6aHVudGVyMjI="];
    for (name, text) in &parts {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} in {name}: {text}");
        }
    }
    // It is the agent's own configuration that is in it and that the check is of.
    let part = |name: &str| {
        let part = parts.iter().find(|(part, _)| part.ends_with(name));
        part.unwrap().1.as_str()
    };
    for name in ["/config.toml", "/agent-config.toml"] {
        let file = config.socket.path.with_file_name("gpuacct.toml");
        let origin = format!("from {}\n", file.display());
        assert!(part(name).contains(&origin), "{}", part(name));
        let shown = Config::parse(part(name), name).unwrap();
        assert_eq!(shown.gpu, config.gpu);
        assert_eq!(shown.docker, config.docker);
    }
    let report: CheckReport = serde_json::from_str(part("check.json")).unwrap();
    let socket = format!("socket {}", config.socket.path.display());
    assert_eq!(finding(&report, &socket).found, "an agent answers");

    let output = bare(&agent, &["check", "-o", "json"]);
    let report: CheckReport = serde_json::from_slice(&output.stdout).unwrap();
    let origin = &finding(&report, "configuration").found;
    assert!(origin.starts_with("the running agent's, from "), "{origin}");
    let docker = format!("docker {}", config.docker.sockets[0].display());
    assert_eq!(finding(&report, &docker).verdict, Verdict::Ok);

    // Nor has what a node collects of its log.
    let log = agent.log().unwrap();
    assert!(log.contains("otlp"), "{log}");
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    assert!(agent.stop().unwrap().success());
}

/// Refuses every request, with those of its headers that are secret for its words, and keeps them.
fn refuse(gateway: &TcpListener, kept: &Mutex<String>) {
    for connection in gateway.incoming() {
        let connection = connection.unwrap();
        let mut reader = BufReader::new(&connection);
        let mut secret = String::new();
        let mut length = 0;
        let mut line = String::new();
        // Whoever hangs up is done.
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            let (name, value) = line.trim().split_once(": ").unwrap_or_default();
            match name {
                "content-length" => length = value.parse().unwrap(),
                "authorization" | "x-token" => secret += &format!("{name} {value} "),
                _ => {}
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            continue;
        }
        // The field of `google.rpc.Status` that has its words.
        let words = [
            &[0x12, u8::try_from(secret.len()).unwrap()],
            secret.as_bytes(),
        ]
        .concat();
        let head = format!(
            "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            words.len()
        );
        let answer = [head.as_bytes(), &words].concat();
        *kept.lock().unwrap() += &secret;
        // Whoever hangs up asks again.
        let _ = (&connection).write_all(&answer);
    }
}

#[test]
fn a_file_or_the_running_agent_says_whose_configuration_is_used() {
    let shell = Shell::new();
    let mut config = shell.config();
    config.otlp.endpoint = Some("http://me:hunter22@127.0.0.1:9".to_owned());
    config.otlp.node_name = Some("gpu-7".to_owned());
    let agent = shell.agent(config.clone());
    let folder = config.socket.path.parent().unwrap();
    let file = folder.join("gpuacct.toml");

    let output = bare(&agent, &["config"]);
    let page = text(&output.stdout);
    let origin = format!("# the running agent's, from {}\n", file.display());
    assert!(page.starts_with(&origin), "{page}");
    assert!(!page.contains("hunter22"), "{page}");
    let shown = Config::parse(&page, "page").unwrap();
    assert_eq!(shown.gpu, config.gpu);
    let output = bare(&agent, &["config", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["socket"]["path"], shown.socket.path.to_str().unwrap());

    // The ledger is that of the running agent, too.
    let output = bare(&agent, &["report", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let ledger = shown.store.path.join("gpuacct.db");
    let read = format!(
        "read from {} of node gpu-7 (configuration: the running agent's",
        ledger.display()
    );
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.starts_with(&read), "{note}");

    // What asks the agent finds its socket in the file.
    for arguments in [
        &["status"][..],
        &["explain", "1"],
        &["log-level", "info"],
        &["probe", "live"],
    ] {
        let output = Command::new(agent::binary().unwrap())
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .output()
            .unwrap();
        assert_ne!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    let output = bare(&agent, &["check", "-o", "json"]);
    let report: CheckReport = serde_json::from_slice(&output.stdout).unwrap();
    let otlp = finding(&report, "otlp http://127.0.0.1:9");
    assert_eq!(otlp.verdict, Verdict::Warn, "{otlp:?}");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_changed_configuration_is_in_force_and_no_counter_begins_anew() {
    let shell = Shell::new();
    let config = shell.config();
    let mut agent = shell.agent(config);
    let _job = shell.job();
    let file = shell.dir().join("gpuacct.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    // The time of the GPU, with its start.
    let elapsed = |agent: &Agent| {
        let report = agent.status().unwrap();
        let book = report.snapshot.gpus.first().cloned().unwrap();
        (book.start, book.elapsed)
    };
    agent
        .wait_for("time of the GPU", |agent| {
            Ok(elapsed(agent).1 > gpuacct::core::model::Nanos::ZERO)
        })
        .unwrap();
    let before = elapsed(&agent);
    let has = |agent: &Agent, what: &str| agent.get("/metrics").is_ok_and(|it| it.1.contains(what));

    let changed = written.replace("[cadvisor]\nenabled = false", "[cadvisor]\nenabled = true");
    assert_ne!(changed, written);
    std::fs::write(&file, &changed).unwrap();
    let applied = "gpuacct_config_changes_total{outcome=\"applied\"} 1";
    agent
        .wait_for("the change", |agent| {
            Ok(has(agent, applied) && has(agent, "container_accelerator_"))
        })
        .unwrap();

    std::fs::write(&file, format!("{changed}\n[gpus]\n")).unwrap();
    agent
        .wait_for("the state of a broken file", |agent| {
            let output = agent.gpuacct(&["status"])?;
            let shown = text(&output.stdout);
            Ok(output.status.code() == Some(1) && shown.contains("gpus: unknown key"))
        })
        .unwrap();
    assert!(has(&agent, "container_accelerator_"), "it stays in force");

    // Mended, with a key that cannot change, and told by a signal.
    let interval = changed.replace("[gpu]\n", "[gpu]\nlists_interval = \"7s\"\n");
    let interval = interval.replacen("lists_interval = \"5s\"\n", "", 1);
    std::fs::write(&file, interval).unwrap();
    let pid = i32::try_from(agent.pid()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
    agent
        .wait_for("what needs a restart", |agent| {
            let shown = agent.status_text(&["-o", "json"])?.0;
            Ok(shown.contains("only after a restart: gpu.lists_interval"))
        })
        .unwrap();
    assert!(
        agent
            .log()
            .unwrap()
            .contains("SIGHUP: reading the configuration anew")
    );
    let after = elapsed(&agent);
    assert_eq!(after.0, before.0, "the series are the same");
    assert!(after.1 >= before.1, "{after:?} < {before:?}");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_failed_start_says_why_once_in_text_and_in_json() {
    let shell = Shell::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = shell.config();
    config.prometheus.listen = taken.local_addr().unwrap();
    let why = "Address already in use";
    for format in [LogFormat::Text, LogFormat::Json] {
        config.log.format = format;
        let output = shell.gpuacct(&["agent"], &config.to_toml().unwrap());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let log = text(&output.stderr);
        assert_eq!(log.matches(why).count(), 1, "{log}");
        let last = log.lines().last().unwrap();
        assert!(last.contains("the agent failed"), "{log}");
        if format == LogFormat::Json {
            let line: serde_json::Value = serde_json::from_str(last).unwrap();
            let error = line["fields"]["error"].as_str().unwrap();
            let address = config.prometheus.listen.to_string();
            assert!(error.contains(&address) && error.contains(why), "{line}");
            let remedy = line["fields"]["remedy"].as_str().unwrap();
            assert!(remedy.contains("prometheus.listen"), "{line}");
        }
    }
}

#[test]
fn an_agent_that_takes_the_place_of_one_that_is_ending_waits_for_it() {
    let shell = Shell::new();
    let config = shell.config();
    let first = shell.agent(config.clone());
    let file = shell.dir().join("second.toml");
    let mut config = config;
    config.prometheus.listen = free_address().unwrap();
    config.store.enabled = false;
    std::fs::write(&file, config.to_toml().unwrap()).unwrap();
    let mut second = Command::new(agent::binary().unwrap())
        .args(["agent", "--config"])
        .arg(&file)
        .env(STATE_DIR, shell.node.scenario_dir())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(second.stderr.take().unwrap());
    let second = Killed(second);
    let mut lines = log.lines().map(Result::unwrap);
    let waits = lines.find(|line| line.contains("another agent answers on the socket"));
    assert!(waits.is_some(), "it ended");
    assert!(first.stop().unwrap().success());
    let serves = lines.find(|line| line.contains("serving /metrics"));
    assert!(serves.is_some(), "it ended");
    drop(second);
}

fn unpacked(path: &Path) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        })
        .collect()
}
