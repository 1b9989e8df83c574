//! The page, and what the socket answers.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use unicode_width::UnicodeWidthStr as _;

use super::*;
use crate::commands::agent_choice::AgentChoice;
use crate::commands::ask::AskError;
use crate::commands::json::Json;
use crate::commands::status::page::{Shape, table};
use crate::commands::table::WIDTH;
use crate::core::amounts::ByteSeconds;
use crate::core::model::{BootTime, Clock, HostUnit, Nanos, SourceState, WallTime};
use crate::core::snapshot::{AllocationState, GpuProcessView};
use crate::figures::{bytes, duration, memory_of};
use crate::outputs::sample::{self, FIRST_GPU, NOW, golden, report};
use crate::outputs::socket::{self, BlockedFor, Query, SocketState, StatusReport};
use crate::published::Published;
use crate::socket_access::SocketAccess;

/// The page as `gpuacct status` prints it, sorted by use.
fn narrow(report: &StatusReport, processes: Option<&[GpuProcessView]>) -> String {
    let selection = Selection::default();
    let chosen = selection.choose(report, &[], true).unwrap();
    table(&chosen.report(report), processes, Shape::NARROW)
}

#[test]
fn the_page_of_the_sample() {
    let mut report = report(&sample::published());
    report.nvml_blocked = Some(BlockedFor {
        call: "nvmlDeviceGetProcessUtilization".into(),
        gpu: Some(FIRST_GPU.into()),
        waited: Nanos::from_millis(1_250),
    });
    golden("status.txt", &narrow(&report, Some(&sample::processes())));
}

#[test]
fn the_page_of_an_agent_that_has_just_begun() {
    let page = narrow(&report(&Published::default()), Some(&[]));
    golden("status_starting.txt", &page);
}

#[test]
fn an_allocation_that_the_kubelet_has_not_confirmed_is_told_as_such() {
    let mut published = sample::published();
    published.books.allocations[0].state = AllocationState::Unconfirmed;
    let page = narrow(&report(&published), Some(&[]));
    assert!(page.contains("counting, not confirmed"), "{page}");
}

#[test]
fn no_line_is_wider_than_a_terminal() {
    let mut published = sample::published();
    let snapshot = &mut published.books;
    for account in &mut snapshot.accounts {
        Arc::make_mut(&mut account.labels).namespace = "namespace-".repeat(25).into();
        Arc::make_mut(&mut account.labels).pod = "pod-\u{1b}[31m日本語".repeat(25).into();
        Arc::make_mut(&mut account.labels).container = "container-".repeat(25).into();
        account.amounts.busy = Nanos(u64::MAX);
        account.memory = Some(u64::MAX);
    }
    for book in &mut snapshot.gpus {
        book.gpu.index = u32::MAX;
        book.gpu.model = "NVIDIA ".repeat(36).into();
        book.memory_used = Some(u64::MAX);
        book.gpu.memory_total = Some(u64::MAX);
        book.busy = Nanos(u64::MAX);
        book.imbalance = i64::MIN;
        for (_, amount) in &mut book.unattributed {
            *amount = Nanos(u64::MAX);
        }
        book.coverage.unattributed = book.unattributed.clone();
    }
    snapshot.host_accounts[0].unit = HostUnit::from("/a/b".repeat(99).as_str());
    snapshot.host_accounts[0].gpu = "GPU-that-is-not-listed-any-more".into();
    snapshot.host_accounts[0].amounts.busy = Nanos(u64::MAX);
    snapshot.host_accounts[0].memory = Some(u64::MAX);
    for health in &mut published.agent.sources {
        health.place = "/run/".repeat(50).into();
        health.state = SourceState::Down {
            class: "x".into(),
            reason: "because ".repeat(30).into(),
            next_retry: Some(BootTime::MAX),
        };
    }
    published.books.events.seen = u64::MAX;
    published.books.events.lost = u64::MAX;
    let page = narrow(&report(&published), Some(&sample::processes()));
    for line in page.lines() {
        assert!(line.width() <= WIDTH, "{} columns: {line}", line.width());
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
}

#[test]
fn amounts_in_the_units_of_people() {
    let rows = [
        (0, "0s"),
        (999, "999ns"),
        (1_000, "1us"),
        (300_000_000, "300ms"),
        (59_999_999_999, "59.9s"),
        (60_000_000_000, "1m 0s"),
        (3_599_000_000_000, "59m 59s"),
        (5_400_000_000_000, "1h 30m"),
        (86_400_000_000_000, "1d 0h"),
        (u64::MAX, "213503d 23h"),
    ];
    for (nanos, expected) in rows {
        assert_eq!(duration(Nanos(nanos)), expected);
    }
    let rows = [
        (0, "0 B"),
        (1_023, "1023 B"),
        (1_024, "1 KiB"),
        (1_536, "1.5 KiB"),
        (100 << 20, "100 MiB"),
        ((100 << 20) + (1 << 19), "100 MiB"),
        (u64::MAX, "15.9 EiB"),
    ];
    for (amount, expected) in rows {
        assert_eq!(bytes(amount), expected);
    }
    assert_eq!(memory_of(Some(512 << 20), Some(141 << 30)), "0.5/141 GiB");
    assert_eq!(memory_of(None, Some(141 << 30)), "-/141 GiB");
    assert_eq!(memory_of(None, None), "-");
}

/// An agent in miniature: a socket, what it shows, and a core that knows the sample's processes.
async fn agent(published: Published) -> (tempfile::TempDir, Options, tokio::task::JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gpuacct.sock");
    let bound = socket::bind(&path, &SocketAccess::default()).unwrap();
    let (queries, mut asked) = mpsc::channel(1);
    let (_, published) = watch::channel(Arc::new(published));
    let desk = SocketState {
        published,
        queries,
        releases: mpsc::channel(1).0,
        counters: Arc::default(),
        log: Arc::default(),
        config: watch::channel(Arc::default()).1,
        clock: Arc::new(|| Clock {
            boot: NOW,
            wall: WallTime(1_790_000_000_750_000_000),
        }),
    };
    let task = tokio::spawn(async move {
        let core = async {
            while let Some(Query::Processes(answer)) = asked.recv().await {
                answer.send(sample::processes()).unwrap();
            }
        };
        tokio::select! {
            () = core => {}
            served = socket::serve(bound, desk, std::future::pending()) => served.unwrap(),
        }
    });
    let options = Options {
        processes: true,
        ..Options::of(AgentChoice::at(path))
    };
    (directory, options, task)
}

#[tokio::test]
async fn the_socket_tells_what_the_agent_knows() {
    let (_directory, options, task) = agent(sample::published()).await;
    let (page, healthy) = answer(&options).await.unwrap();
    assert!(!healthy, "docker is down");
    assert!(page.contains("research/train-0/trainer"), "{page}");
    assert!(page.contains("4711"), "{page}");

    let options = Options {
        output: Format::Json,
        ..options
    };
    let (json, _) = answer(&options).await.unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["snapshot"]["events"]["seen"], 123_456);
    assert_eq!(value["snapshot"]["gpus"][0]["busy"], 1_800_123_456_789_u64);
    assert_eq!(value["processes"][0]["pid"], 4_711);
    assert_eq!(value["nvml_blocked"], serde_json::Value::Null);
    assert_eq!(run(options.clone()).await, ExitCode::from(1));
    task.abort();
}

#[tokio::test]
async fn a_healthy_agent_and_none_at_all() {
    let mut published = sample::published();
    published.agent.sources[3].state = SourceState::Absent;
    let (directory, options, task) = agent(published).await;
    assert_eq!(run(options.clone()).await, ExitCode::SUCCESS);
    task.abort();
    assert!(task.await.expect_err("aborted").is_cancelled());

    let error = answer(&options).await.expect_err("no agent");
    let is_missing = matches!(error, StatusError::Ask(AskError::NoAgent { .. }));
    assert!(is_missing, "{error}");
    assert_eq!(run(options).await, ExitCode::from(2));
    drop(directory);
}

#[tokio::test]
async fn an_agent_that_talks_nonsense_is_not_believed() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    type Expected = fn(&AskError) -> bool;
    let rows: [(&str, Expected); 8] = [
        (
            "not http at all\r\n\r\n",
            |error| matches!(error, AskError::Foreign { said, .. } if said.contains("not http at all")),
        ),
        ("", |error| matches!(error, AskError::Connection { .. })),
        // Another server's words: the Docker Engine's, and a web server's page.
        (
            "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 28\r\n\r\n\
             {\"message\":\"page not found\"}",
            |error| {
                matches!(error, AskError::Foreign { said, .. }
                    if said.contains("404") && said.contains("page not found"))
            },
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
            |error| matches!(error, AskError::Foreign { said, .. } if said.contains("<html>")),
        ),
        // An agent that does not know the request.
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            |error| matches!(error, AskError::Refused { status: 404, .. }),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            |error| matches!(error, AskError::Format { said, .. } if said == "\"{}\""),
        ),
        (
            "HTTP/1.1 503 Busy\r\ncontent-length: 13\r\n\r\n{\"error\":\"x\"}",
            |error| matches!(error, AskError::Refused { status: 503, reason, .. } if reason == "x"),
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", |error| {
            matches!(error, AskError::Body { .. } | AskError::Connection { .. })
        }),
    ];
    let directory = tempfile::tempdir().unwrap();
    for (place, (reply, expected)) in rows.into_iter().enumerate() {
        let socket = directory.path().join(place.to_string());
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let options = Options::of(AgentChoice::at(socket));
        let (answer, ()) = tokio::join!(answer(&options), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(reply.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let StatusError::Ask(error) = answer.expect_err(reply) else {
            panic!("{reply:?}");
        };
        assert!(expected(&error), "{reply:?}: {error:?}");
    }
}

fn chosen(arguments: &[&str]) -> Selection {
    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        selection: Selection,
    }
    let arguments = ["status"].into_iter().chain(arguments.iter().copied());
    let parsed: Arguments = clap::Parser::try_parse_from(arguments).unwrap();
    parsed.selection
}

fn json_of(answer: &impl serde::Serialize) -> Json {
    serde_json::from_str(&serde_json::to_string(answer).unwrap()).unwrap()
}

#[test]
fn what_is_chosen_is_shown_in_the_tables_and_in_json() {
    let report = report(&sample::published());
    let processes = sample::processes();
    let second = report.snapshot.gpus[1].gpu.uuid.to_string();
    let held = "(unresolved) cc77cc77cc77";
    let by_id = "(unresolved) bb66bb66bb66";
    let trainer = "research/train-0/trainer";
    let rows: [(&[&str], &[&str], usize, usize); 9] = [
        (&[], &[trainer, "jupyter", held, by_id], 2, 2),
        (&["--namespace", "research"], &[trainer], 2, 1),
        (&["-n", "research,other"], &[trainer], 2, 1),
        (&["--namespace", "nobody"], &[], 2, 0),
        (&["--gpu", "0", "--limit", "1"], &[trainer], 1, 1),
        (&["--gpu", &second], &[], 1, 0),
        (&["--gpu", &second[..6]], &[], 1, 0),
        (&["--gpu", "8A56"], &[trainer, "jupyter", held, by_id], 1, 2),
        (
            &["--sort-by", "name"],
            &[by_id, held, "jupyter", trainer],
            2,
            2,
        ),
    ];
    for (arguments, containers, gpus, of_processes) in rows {
        let selection = chosen(arguments);
        let found = selection.choose(&report, &processes, true).unwrap();
        let shown = found.report(&report);
        let names: Vec<_> = shown.snapshot.accounts.iter().map(words::name).collect();
        assert_eq!(names, containers, "{arguments:?}");
        assert_eq!(shown.snapshot.gpus.len(), gpus, "{arguments:?}");
        assert_eq!(
            found.processes(&processes).len(),
            of_processes,
            "{arguments:?}"
        );

        let mut newer = serde_json::to_value(&report).unwrap();
        newer["snapshot"]["accounts"][1]["added"] = "by a newer agent".into();
        let mut json: Json = serde_json::from_str(&newer.to_string()).unwrap();
        let mut of_json = json_of(&processes);
        found.json(&mut json, Some(&mut of_json));
        let json = json.pretty().unwrap();
        let read: StatusReport = serde_json::from_str(&json).unwrap();
        assert_eq!(read, shown, "{arguments:?}");
        let of_json: Vec<GpuProcessView> =
            serde_json::from_str(&of_json.pretty().unwrap()).unwrap();
        assert_eq!(of_json.len(), of_processes);
        if containers.contains(&trainer) {
            assert!(json.contains("by a newer agent"));
        }
    }
    // JSON without a choice is the agent's own answer.
    let mut json = json_of(&report);
    let all = chosen(&[]).choose(&report, &processes, false).unwrap();
    all.json(&mut json, None);
    assert_eq!(json, json_of(&report));

    let error = chosen(&["--gpu", "7"]).choose(&report, &[], true);
    let error = error.expect_err("there are two").to_string();
    assert!(
        error.contains("\"7\"") && error.contains(FIRST_GPU),
        "{error}"
    );
}

#[test]
fn a_limit_says_what_it_left_out_and_headings_go() {
    let report = report(&sample::published());
    let processes = sample::processes();
    let selection = chosen(&["--limit", "1"]);
    let found = selection.choose(&report, &processes, true).unwrap();
    let shape = Shape {
        left_out: found.left_out,
        has_headings: false,
        ..Shape::NARROW
    };
    let views = found.processes(&processes);
    let page = table(&found.report(&report), Some(&views), shape);
    assert!(page.contains("and 3 more containers"), "{page}");
    assert!(page.contains("and 1 more processes"), "{page}");
    for heading in ["CONTAINER", "UTIL", "SOURCE", "PID"] {
        assert!(!page.contains(heading), "{heading}: {page}");
    }
}

#[test]
fn the_wide_page_of_the_sample() {
    let report = report(&sample::published());
    let found = chosen(&[]).choose(&report, &[], true).unwrap();
    let page = table(&found.report(&report), None, Shape::WIDE);
    golden("status_wide.txt", &page);
}

#[tokio::test]
async fn the_status_as_yaml() {
    let (_directory, options, task) = agent(sample::published()).await;
    let options = Options {
        output: Format::Yaml,
        ..options
    };
    let (yaml, _) = answer(&options).await.unwrap();
    golden("status.yaml", &yaml);
    task.abort();
}

#[tokio::test]
async fn memory_over_time_beyond_64_bits_lost_its_last_digits() {
    let mut published = sample::published();
    published.books.accounts[0].amounts.memory = ByteSeconds(u128::MAX - 1);
    let (_directory, options, task) = agent(published).await;
    for output in [Format::Json, Format::Yaml] {
        let options = Options {
            output,
            ..options.clone()
        };
        let (text, _) = answer(&options).await.unwrap();
        let digits = "340282366920938463463374607431768211454";
        assert!(text.contains(digits), "{output:?}: {text}");
    }
    task.abort();
}

/// Texts that a reader of YAML would take for something else.
#[test]
fn yaml_keeps_texts_texts() {
    let value = serde_json::json!({
        "a": ["no", "1.5", "~", "null", "- x", "a: b", "", "line\nbreak", "0x1f", "2026-11-29"],
        "b": {"c: d": u64::MAX, "e": -1, "f": null, "g": true, "h": 0.5, "i": [], "j": {}},
    });
    golden("yaml_texts.yaml", &serde_saphyr::to_string(&value).unwrap());
}
