//! `gpuacct report --from` over several clusters and by labels of pods, from a past that is made up.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use rust_decimal::Decimal;
use serde_json::Value;
use tempfile::TempDir;

use crate::fleet::{HOUR, base, number, programs, report, run, with_past};

const MINUTES: i64 = 4 * 60;
/// From when on the pod of the first job has another label, in minutes.
const RELABELLED: i64 = 100;

/// A GPU of a node of a cluster.
struct Gpu {
    uuid: &'static str,
    cluster: &'static str,
    node: &'static str,
}

/// Two clusters have a node of the same name.
const GPUS: [Gpu; 3] = [
    Gpu {
        uuid: "GPU-0",
        cluster: "north",
        node: "gpu-1",
    },
    Gpu {
        uuid: "GPU-1",
        cluster: "south",
        node: "gpu-1",
    },
    Gpu {
        uuid: "GPU-2",
        cluster: "south",
        node: "gpu-2",
    },
];

/// A pod, its GPU, and of how many seconds of a minute it is busy.
struct Job {
    pod: &'static str,
    gpu: usize,
    seconds: i64,
    team: Option<&'static str>,
}

const JOBS: [Job; 4] = [
    Job {
        pod: "train-0",
        gpu: 0,
        seconds: 30,
        team: Some("vision"),
    },
    Job {
        pod: "chat-0",
        gpu: 1,
        seconds: 15,
        team: Some("language"),
    },
    Job {
        pod: "free-0",
        gpu: 2,
        seconds: 6,
        team: Some("(none)"),
    },
    // A container of which no labels were published.
    Job {
        pod: "stray-0",
        gpu: 2,
        seconds: 3,
        team: None,
    },
];

/// Scrapes, as OpenMetrics. `cluster` is what the label with the cluster's name is called.
fn exposition(base: i64, cluster: &str, has_labels: bool) -> String {
    let mut families: BTreeMap<&str, Vec<(String, i64, i64)>> = BTreeMap::new();
    let mut put = |family: &'static str, labels: String, value: i64, minute: i64| {
        let samples = families.entry(family).or_default();
        samples.push((labels, minute, value));
    };
    for minute in 0..=MINUTES {
        for (number, gpu) in GPUS.iter().enumerate() {
            let Gpu {
                uuid,
                cluster: name,
                node,
            } = gpu;
            let target = format!("{cluster}=\"{name}\",node=\"{node}\",gpu_uuid=\"{uuid}\"");
            let jobs = JOBS.iter().filter(|job| job.gpu == number);
            let busy: i64 = jobs.map(|job| job.seconds * minute).sum();
            put(
                "gpuacct_gpu_elapsed_seconds",
                target.clone(),
                60 * minute,
                minute,
            );
            put("gpuacct_gpu_busy_seconds", target.clone(), busy, minute);
            put(
                "gpuacct_gpu_idle_seconds",
                target,
                60 * minute - busy,
                minute,
            );
        }
        for job in &JOBS {
            let Gpu {
                uuid,
                cluster: name,
                node,
            } = &GPUS[job.gpu];
            let pod = job.pod;
            let owner =
                format!("exported_namespace=\"ns\",exported_pod=\"{pod}\",pod_uid=\"uid-{pod}\"");
            let target = format!("{cluster}=\"{name}\",node=\"{node}\",namespace=\"monitoring\"");
            let of_gpu = format!(
                "{target},{owner},exported_container=\"main\",container_id=\"id-{pod}\",gpu_uuid=\"{uuid}\""
            );
            put(
                "gpuacct_container_gpu_busy_seconds",
                of_gpu,
                job.seconds * minute,
                minute,
            );
            let Some(team) = job.team.filter(|_| has_labels) else {
                continue;
            };
            let team = if pod == "train-0" && minute < RELABELLED {
                "archive"
            } else {
                team
            };
            let labels = format!("{target},{owner},label_team=\"{team}\",label_cost_center=\"7\"");
            put("gpuacct_pod_labels", labels, 1, minute);
        }
    }
    let mut text = String::new();
    for (family, mut samples) in families {
        let (kind, suffix) = match family {
            "gpuacct_pod_labels" => ("gauge", ""),
            _ => ("counter", "_total"),
        };
        writeln!(text, "# TYPE {family} {kind}").unwrap();
        samples.sort();
        for (labels, minute, value) in samples {
            let at = base + 60 * minute;
            writeln!(text, "{family}{suffix}{{{labels}}} {value} {at}").unwrap();
        }
    }
    text + "# EOF\n"
}

/// A figure of the rows of containers, by a key of several fields.
fn by(report: &Value, keys: &[&str], figure: &str) -> BTreeMap<String, Decimal> {
    let rows = report["rows"].as_array().unwrap().iter();
    let mut found = BTreeMap::new();
    for row in rows.filter(|row| row["kind"] == "container") {
        let key: Vec<&str> = keys.iter().map(|key| row[key].as_str().unwrap()).collect();
        found.insert(key.join(" "), number(&row[figure]));
    }
    found
}

/// Seconds of a job in all of the range.
fn whole(seconds: i64) -> Decimal {
    (seconds * MINUTES).into()
}

fn expected<const N: usize>(rows: [(&str, i64); N]) -> BTreeMap<String, Decimal> {
    rows.map(|(key, seconds)| (key.to_owned(), whole(seconds)))
        .into()
}

#[test]
fn clusters_and_labels_of_pods_are_groups_and_have_prices() {
    for (program, promtool) in programs() {
        let dir = TempDir::new().unwrap();
        let base = base();
        let store = with_past(
            &program,
            &promtool,
            dir.path(),
            &exposition(base, "cluster", true),
        );
        let url = format!("http://{}", store.address());
        let (since, until) = (base, base + MINUTES * 60);
        let of = |arguments: &[&str]| report(&url, since, until, arguments);
        let busy = |arguments: &[&str], keys: &[&str]| by(&of(arguments), keys, "busy_seconds");

        let clusters = of(&["--by", "cluster"]);
        let north = [("north", 30), ("south", 24)];
        assert_eq!(by(&clusters, &["cluster"], "busy_seconds"), expected(north));
        // Time that nobody owns is a cluster's, too, and all of it is there.
        let rows = clusters["rows"].as_array().unwrap();
        let idle = rows.iter().filter(|row| row["kind"] == "idle");
        let idle: BTreeMap<&str, Decimal> = idle
            .map(|row| {
                (
                    row["cluster"].as_str().unwrap(),
                    number(&row["gpu_seconds"]),
                )
            })
            .collect();
        assert_eq!(
            idle,
            BTreeMap::from([("north", whole(30)), ("south", whole(96))])
        );
        assert_eq!(number(&clusters["total"]["gpu_seconds"]), whole(3 * 60));
        // Two nodes of one name are two nodes.
        let nodes = busy(&["--by", "cluster,node"], &["cluster", "node"]);
        let rows = [("north gpu-1", 30), ("south gpu-1", 15), ("south gpu-2", 9)];
        assert_eq!(nodes, expected(rows));
        let selected = busy(&["--selector", "{cluster=\"south\"}"], &["namespace"]);
        assert_eq!(selected, expected([("ns", 24)]));

        // The last label of a pod counts, as in a ledger.
        let teams = busy(&["--by", "label:team"], &["label:team"]);
        let rows = [
            ("vision", 30),
            ("language", 15),
            ("(none)", 6),
            ("(unresolved)", 3),
        ];
        assert_eq!(teams, expected(rows));
        // The stray one has none.
        let labelled = of(&["--by", "label:team"]);
        assert_eq!(labelled["complete"], false);
        let lacks = "has no labels of 1 pods in the range";
        assert!(
            labelled["warnings"].to_string().contains(lacks),
            "{labelled:#}"
        );
        let vision = of(&[
            "--by",
            "pod",
            "--label",
            "team=vision",
            "--label",
            "costCenter=7",
        ]);
        assert_eq!(
            by(&vision, &["pod"], "busy_seconds"),
            expected([("train-0", 30)])
        );
        assert_eq!(number(&vision["total"]["busy_seconds"]), whole(30));
        let early = report(&url, since, since + HOUR, &["--by", "label:team"]);
        assert!(
            by(&early, &["label:team"], "busy_seconds").contains_key("archive"),
            "{early:#}"
        );

        let output = run(&url, since, until, &["--by", "label:team,label:app"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("no label of the key app"), "{said}");
        assert!(said.contains("label_cost_center, label_team"), "{said}");
        assert!(said.contains("publish.pod_labels"), "{said}");

        let prices = dir.path().join("prices.toml");
        let text = "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n\
                    [[for]]\ncluster = \"south\"\nnode = \"gpu-2\"\nlabel.team = \"(none)\"\n\
                    [for.default]\nbusy_hour = \"100\"\n\
                    [[for]]\ncluster = \"south\"\n[for.default]\nbusy_hour = \"10\"\n";
        fs::write(&prices, text).unwrap();
        let priced = of(&["--by", "pod", "--prices", prices.to_str().unwrap()]);
        let costs = by(&priced, &["pod"], "cost");
        // Hours at their prices: 2 h at 1, 1 h at 10, 0.4 h at 100, 0.2 h at 10.
        let rows = [
            ("train-0", 200),
            ("chat-0", 1_000),
            ("free-0", 4_000),
            ("stray-0", 200),
        ];
        let costs_of = rows.map(|(pod, cents)| (pod.to_owned(), Decimal::new(cents, 2)));
        assert_eq!(costs, costs_of.into(), "{priced:#}");
        assert_eq!(number(&priced["total"]["cost"]), Decimal::new(5_400, 2));
        // The page has the same.
        let page = run(
            &url,
            since,
            until,
            &["--by", "cluster,label:team", "-o", "html"],
        );
        let page = String::from_utf8(page.stdout).unwrap();
        assert!(page.contains("<data value=\"7200\">2.000</data>"), "{page}");
    }
}

#[test]
fn a_store_without_them_says_what_to_change() {
    for (program, promtool) in programs() {
        let dir = TempDir::new().unwrap();
        let base = base();
        let text = exposition(base, "datacenter", false);
        let store = with_past(&program, &promtool, dir.path(), &text);
        let url = format!("http://{}", store.address());
        let (since, until) = (base, base + MINUTES * 60);
        for arguments in [
            &["--by", "label:team"][..],
            &["--label", "team=vision"],
            &["--by", "namespace", "--label", "team="],
        ] {
            let output = run(&url, since, until, arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("has no gpuacct_pod_labels"), "{said}");
            assert!(
                said.contains("name these labels in publish.pod_labels"),
                "{said}"
            );
        }
        let unnamed = report(&url, since, until, &["--by", "cluster"]);
        assert_eq!(unnamed["complete"], false);
        assert!(
            unnamed["warnings"].to_string().contains("--cluster-label"),
            "{unnamed:#}"
        );
        let rows = expected([("(unresolved)", 54)]);
        assert_eq!(by(&unnamed, &["cluster"], "busy_seconds"), rows);
        let arguments = ["--by", "cluster", "--cluster-label", "datacenter"];
        let named = report(&url, since, until, &arguments);
        assert_eq!(named["complete"], true, "{named:#}");
        let rows = expected([("north", 30), ("south", 24)]);
        assert_eq!(by(&named, &["cluster"], "busy_seconds"), rows);
    }
}

#[test]
fn a_ledger_has_no_cluster() {
    let dir = TempDir::new().unwrap();
    let prices = dir.path().join("prices.toml");
    let text = "currency = \"EUR\"\n[[for]]\ncluster = \"a\"\n[for.default]\nbusy_hour = \"1\"\n";
    fs::write(&prices, text).unwrap();
    for arguments in [["--by", "cluster"], ["--prices", prices.to_str().unwrap()]] {
        let output = std::process::Command::new(gpuacct_tests::agent::binary().unwrap())
            .args(["report", "--store", "nowhere"])
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("a ledger does not say in which cluster"),
            "{said}"
        );
        assert!(said.contains("--from"), "{said}");
    }
}
