//! The fleet's demonstration: three nodes in two clusters, each with the built agent and simulated GPUs,
//! two Prometheus servers that write into a third one and into VictoriaMetrics, and what goes wrong in a
//! fleet: an agent is killed, a node is rebooted, a server is away, a pod is named late. In the end the
//! same bill is made of the nodes' ledgers, of each store, and of usage records in ClickHouse and DuckDB,
//! and compared. `cargo xtask demo --fleet` builds and fetches everything and runs this.
//!
//! All nodes are on this machine, so they share its kernel and one Docker daemon. Each agent sees the GPUs
//! of its own node only.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use gpuacct::config::Config;
use gpuacct::outputs::store::mark::MarkerFile;
use gpuacct_tests::agent::{self, Agent};
use gpuacct_tests::certificates::Authority;
use gpuacct_tests::docker::{self, Container, ContainerSpec, Dockerd};
use gpuacct_tests::http::free_address;
use gpuacct_tests::node::{Node, new_pod_uid};
use gpuacct_tests::pace::{interrupted, rest_until};
use gpuacct_tests::prometheus::{Prometheus, Role, Sample};
use gpuacct_tests::victoria_metrics::{self, VictoriaMetrics};
use gpuacct_tests::web::newest;
use serde_json::{Value, json};
use sim_nvml::library::Driver;

const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two incidents.
const PAUSE: Duration = Duration::from_secs(5);
const GPUS: u32 = 2;
/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const NANOS: f64 = 1e9;
/// How far apart two bills may be that have the same digits: stores keep doubles.
const ROUNDING: f64 = 1e-6;
/// A job that no poll would see.
const SHORT: Duration = Duration::from_millis(300);
/// A job over the end of an hour.
const OVER_THE_HOUR: Duration = Duration::from_secs(12);
const HOUR: Duration = Duration::from_secs(3_600);
/// What an agent's folder below its node's is called.
const AGENT: &str = "agent";

fn main() -> ExitCode {
    let is_over_the_hour = std::env::args().any(|argument| argument == "--over-the-hour");
    match run(is_over_the_hour) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(is_over_the_hour: bool) -> Result<()> {
    docker::available().context("the demo starts a dockerd of its own")?;
    let interrupted = interrupted()?;
    let dir = tempfile::Builder::new()
        .prefix("gpuacct-")
        .tempdir_in("/tmp")?;
    let dir = dir.path();
    let mut docker = Dockerd::start(docker::Options::at(dir.join("docker")))?;
    println!(
        "GPUs: simulated, {GPUS} on each of three nodes. Kernel, containers and stores are real."
    );
    let mut fleet = Fleet {
        nodes: [
            FleetNode::start("node-1", "a", 1, &docker.socket())?,
            FleetNode::start("node-2", "a", 2, &docker.socket())?,
            // Docker's socket is not there yet.
            FleetNode::start("node-3", "b", 3, &dir.join("late.sock"))?,
        ],
    };
    println!("agents: three, on node-1 and node-2 of cluster a, and on node-3 of cluster b");
    let stores = Stores::start(dir)?;
    let mut first = fleet.scraped_by("a", &stores, Role::Server, dir)?;
    let second = fleet.scraped_by("b", &stores, Role::Agent, dir)?;
    println!(
        "stores: a Prometheus in each cluster scrapes once a second. Both write into a third one, and \
         into VictoriaMetrics"
    );
    stores.wait_until_scraped(&fleet)?;

    let train = fleet.nodes[0].run(&mut docker, "research", "train-0", 0, "0.6")?;
    let chat = fleet.nodes[0].run(&mut docker, "serving", "chat-0", 1, "0.3")?;
    let batch = fleet.nodes[1].run(&mut docker, "batch", "render-0", 0, "0.8")?;
    let late = fleet.nodes[2].run(&mut docker, "research", "notebook-0", 0, "0.5")?;
    let rest = || rest_until(Instant::now() + PAUSE, &interrupted);
    rest()?;

    println!("incident: the agent of node-1 is killed (SIGKILL) and started again");
    fleet.nodes[0].kill_and_start()?;
    rest()?;

    println!(
        "incident: the Prometheus of cluster a is away for {} s",
        PAUSE.as_secs()
    );
    drop(first);
    rest()?;
    first = fleet.scraped_by("a", &stores, Role::Server, dir)?;

    println!("incident: the pod on node-3 gets its names only now");
    symlink(docker.socket(), dir.join("late.sock")).context("cannot link Docker's socket")?;

    println!("incident: node-2 is drained and rebooted, and works again");
    docker.remove(&batch)?;
    stores.wait_until_settled(&mut fleet.nodes[1])?;
    fleet.nodes[1].reboot()?;
    let again = fleet.nodes[1].run(&mut docker, "batch", "render-1", 1, "0.4")?;
    rest()?;
    short_job(&mut docker, &fleet.nodes[1], "thumbnail-0", SHORT)?;
    if is_over_the_hour {
        rest_until(before_the_hour()?, &interrupted)?;
        short_job(&mut docker, &fleet.nodes[1], "nightly-0", OVER_THE_HOUR)?;
    }

    for container in [train, chat, late, again] {
        docker.remove(&container)?;
    }
    for node in &mut fleet.nodes {
        stores.wait_until_settled(node)?;
    }
    let scraped = stores.bills()?;
    drop((first, second, stores));
    fleet.stop()?;
    let booked = fleet.bill()?;
    println!("the agents send the hour as usage records");
    let in_sql = records::bills(&mut fleet, dir)?;
    compare(&booked, &scraped, &in_sql)
}

/// A job that ends by itself.
fn short_job(docker: &mut Dockerd, node: &FleetNode, pod: &str, length: Duration) -> Result<()> {
    println!("{pod} of batch works on {} for {length:?}", node.name);
    let spec = node.spec("batch", pod, 0, "1");
    let mut command = node.node.work(0, "1", &spec.name);
    command.extend(["--duration-ms".to_owned(), length.as_millis().to_string()]);
    docker.run_to_end(&spec.command(command))?;
    Ok(())
}

/// When a job has to start of which half is in the next hour.
fn before_the_hour() -> Result<Instant> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let half = OVER_THE_HOUR / 2;
    let in_hour = Duration::from_secs((now + half).as_secs() % HOUR.as_secs());
    let wait = HOUR - in_hour;
    println!("waiting for the end of the hour, {} s", wait.as_secs());
    Ok(Instant::now() + wait)
}

/// The stores that all clusters write into.
struct Stores {
    prometheus: Prometheus,
    victoria_metrics: VictoriaMetrics,
}

impl Stores {
    fn start(dir: &Path) -> Result<Self> {
        let folder = folder(dir, "central")?;
        let config = json!({"scrape_configs": []});
        let program = newest("prometheus")?;
        let prometheus =
            Prometheus::start_as(Role::Receiver, &program, &folder, &config, SCRAPE_INTERVAL)?;
        let authority = Authority::new(dir, "authority")?;
        let program = victoria_metrics::available()?;
        Ok(Self {
            prometheus,
            victoria_metrics: VictoriaMetrics::start(&program, dir, &authority)?,
        })
    }

    /// Waits until the central Prometheus has every node's GPUs: counters are to be seen before they
    /// grow.
    fn wait_until_scraped(&self, fleet: &Fleet) -> Result<()> {
        let count = fleet.nodes.len() * usize::try_from(GPUS)?;
        let all = |found: &[Sample]| found.len() == count;
        self.prometheus
            .wait_for("gpuacct_gpu_elapsed_seconds_total", PATIENCE, all)
            .map(drop)
    }

    /// Waits until the books of a node that does nothing any more are complete, and both stores have
    /// them.
    fn wait_until_settled(&self, node: &mut FleetNode) -> Result<()> {
        let agent = node.agent.as_mut().context("the agent runs")?;
        let status = node.node.settle(agent)?;
        let accounts = status.snapshot.accounts.iter();
        let booked: f64 = accounts.map(|of| of.amounts.busy.as_secs_f64()).sum();
        let query = format!(
            "sum(last_over_time(gpuacct_container_gpu_busy_seconds_total{{node=\"{}\"}}[1h]))",
            node.name
        );
        // Those of an account that is closed, or of a life that is over, are in the store still.
        let has_all = |value: f64| value >= booked - ROUNDING;
        self.prometheus.wait_for(&query, PATIENCE, |found| {
            found.iter().any(|sample| has_all(sample.value))
        })?;
        self.victoria_metrics
            .wait_for(&query, PATIENCE, |found| {
                found.iter().any(|(_, value)| has_all(*value))
            })
            .map(drop)
    }
}

impl Stores {
    /// The bill of each store, in seconds.
    fn bills(&self) -> Result<[(&'static str, Bill); 2]> {
        let prometheus = format!("http://{}", self.prometheus.address());
        let victoria_metrics = self.victoria_metrics.url();
        println!("\n$ gpuacct report --from {prometheus} --since 2h --by cluster,namespace,pod");
        let by = ["--by", "cluster,namespace,pod"];
        println!("{}", report(&["--from", &prometheus], &by)?);
        Ok([
            ("PROMETHEUS", bill(&["--from", &prometheus])?),
            ("VICTORIAMETRICS", bill(&["--from", &victoria_metrics])?),
        ])
    }
}

/// A node with its agent, which is stopped before the node's GPUs are gone.
struct FleetNode {
    agent: Option<Agent>,
    name: &'static str,
    cluster: &'static str,
    config: Config,
    node: Node,
}

impl FleetNode {
    fn start(
        name: &'static str,
        cluster: &'static str,
        number: u32,
        docker: &Path,
    ) -> Result<Self> {
        let node = Node::numbered(number * GPUS..(number + 1) * GPUS, Driver::R550)?;
        let mut config = node.config();
        config.prometheus.listen = free_address()?;
        config.docker.sockets = vec![docker.to_owned()];
        config.otlp.node_name = Some(name.to_owned());
        Ok(Self {
            agent: Some(node.agent(AGENT, config.clone())?),
            name,
            cluster,
            config,
            node,
        })
    }

    /// The agent's folder, which holds its ledger.
    fn agent_dir(&self) -> PathBuf {
        self.node.dir().join(AGENT)
    }

    fn ledger(&self) -> PathBuf {
        self.agent_dir().join("store")
    }

    /// A container of a pod that uses a share of one of the node's GPUs.
    fn spec(&self, namespace: &str, pod: &str, gpu: u32, share: &str) -> ContainerSpec {
        let spec = ContainerSpec::named(&format!("k8s_main_{pod}"));
        let spec = spec.in_pod(namespace, pod, &new_pod_uid(), "main");
        self.node.at_work(spec, gpu, share)
    }

    fn run(
        &self,
        docker: &mut Dockerd,
        namespace: &str,
        pod: &str,
        gpu: u32,
        share: &str,
    ) -> Result<Container> {
        println!("{pod} of {namespace} works on {}", self.name);
        docker.run(&self.spec(namespace, pod, gpu, share))
    }

    fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("the agent runs")
    }

    /// Kills the agent. The next one goes on with its ledger.
    fn kill_and_start(&mut self) -> Result<()> {
        // An agent that is dropped is killed.
        self.agent = None;
        self.start_again()
    }

    /// Starts the agent with series that begin at 0, as after a reboot: the mark that says that series
    /// go on is in a folder that a reboot empties.
    fn reboot(&mut self) -> Result<()> {
        self.stop()?;
        let mark = MarkerFile::beside(&self.agent_dir().join("agent.sock"));
        let mark = mark.path();
        fs::remove_file(mark).with_context(|| format!("cannot remove {}", mark.display()))?;
        self.start_again()
    }

    fn stop(&mut self) -> Result<()> {
        let agent = self.agent.take().context("the agent runs")?;
        let ended = agent.stop()?;
        ensure!(
            ended.success(),
            "the agent of {} ended with {ended}",
            self.name
        );
        Ok(())
    }

    fn start_again(&mut self) -> Result<()> {
        self.agent = Some(self.node.agent(AGENT, self.config.clone())?);
        Ok(())
    }
}

/// All nodes.
struct Fleet {
    nodes: [FleetNode; 3],
}

impl Fleet {
    /// Starts the Prometheus of a cluster, or starts it again.
    fn scraped_by(
        &self,
        cluster: &str,
        stores: &Stores,
        role: Role,
        dir: &Path,
    ) -> Result<Prometheus> {
        let of_it = self.nodes.iter().filter(|node| node.cluster == cluster);
        let targets = of_it.map(|node| {
            json!({
                "targets": [node.config.prometheus.listen],
                "labels": {"node": node.name},
            })
        });
        let write = |url: String| {
            json!({
                "url": url,
                // For the demonstration's length; the default waits for five seconds.
                "queue_config": {"batch_send_deadline": "1s"},
            })
        };
        let interval = format!("{}s", SCRAPE_INTERVAL.as_secs());
        let config = json!({
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "external_labels": {"cluster": cluster},
            },
            "scrape_configs": [{
                "job_name": "gpuacct",
                "honor_labels": true,
                "static_configs": targets.collect::<Vec<_>>(),
            }],
            "remote_write": [
                write(stores.prometheus.write_url()),
                write(format!("{}/api/v1/write", stores.victoria_metrics.url())),
            ],
        });
        let folder = folder(dir, &format!("cluster-{cluster}"))?;
        Prometheus::start_as(
            role,
            &newest("prometheus")?,
            &folder,
            &config,
            SCRAPE_INTERVAL,
        )
    }

    /// The bill of the ledgers, in seconds.
    fn bill(&self) -> Result<Bill> {
        let ledgers: Vec<PathBuf> = self.nodes.iter().map(FleetNode::ledger).collect();
        let ledgers = ledgers.iter().filter_map(|path| path.to_str());
        let of_ledgers: Vec<&str> = ledgers.flat_map(|path| ["--store", path]).collect();
        bill(&of_ledgers)
    }

    fn stop(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(FleetNode::stop)
    }
}

/// Shows the bills by each road, and fails if they differ by more than they may: records not at all, and
/// stores by what one scrape can miss.
fn compare(
    booked: &Bill,
    scraped: &[(&'static str, Bill)],
    in_sql: &[(&'static str, records::Bill)],
) -> Result<()> {
    ensure!(!booked.is_empty(), "the ledgers have nothing");
    println!("\nbusy seconds of each pod, by each road:");
    print!("{:<20} {:>14}", "WHO", "LEDGERS");
    for (name, _) in scraped {
        print!(" {name:>15} {:>9}", "LESS");
    }
    for (name, _) in in_sql {
        print!(" {name:>14} {:>7}", "LESS ns");
    }
    println!();
    let others = scraped.iter().flat_map(|(_, bill)| bill.keys());
    let records = in_sql.iter().flat_map(|(_, bill)| bill.keys());
    let rows: BTreeSet<&String> = booked.keys().chain(others).chain(records).collect();
    let mut complaints = Vec::new();
    for who in rows {
        let seconds = booked.get(who).copied().unwrap_or_default();
        print!("{who:<20} {seconds:>14.9}");
        for (name, bill) in scraped {
            let billed = bill.get(who).copied().unwrap_or_default();
            let less = seconds - billed;
            print!(" {billed:>15.6} {less:>9.6}");
            if !(-ROUNDING..=SCRAPE_INTERVAL.as_secs_f64()).contains(&less) {
                complaints.push(format!("{who}: {name} has {billed}, the ledgers {seconds}"));
            }
        }
        for (name, bill) in in_sql {
            let billed = bill.get(who).copied().unwrap_or_default();
            let less = nanos(seconds) - i128::from(billed);
            print!(" {:>14.9} {less:>7}", billed as f64 / NANOS);
            if less != 0 {
                complaints.push(format!(
                    "{who}: {name} has {billed} ns, the ledgers {seconds} s"
                ));
            }
        }
        println!();
    }
    println!(
        "SQL has the ledgers' nanoseconds. A store of metrics has what was scraped: never more than the \
         ledgers,\nand less by at most one scrape interval ({} s) of each counter.",
        SCRAPE_INTERVAL.as_secs()
    );
    ensure!(complaints.is_empty(), "{}", complaints.join("; "));
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a ledger of minutes: whole nanoseconds below 2^53"
)]
fn nanos(seconds: f64) -> i128 {
    (seconds * NANOS).round() as i128
}

/// Busy seconds of containers, by namespace and pod.
type Bill = BTreeMap<String, f64>;

fn bill(source: &[&str]) -> Result<Bill> {
    let text = report(source, &["--by", "namespace,pod", "-o", "json"])?;
    let report: Value = serde_json::from_str(&text).context("a report is JSON")?;
    let rows = report["rows"].as_array().context("a report has rows")?;
    let containers = rows.iter().filter(|row| row["kind"] == "container");
    let named = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    containers
        .map(|row| {
            let who = format!("{}/{}", named(row, "namespace"), named(row, "pod"));
            let busy = row["busy_seconds"].as_f64();
            Ok((who, busy.context("a row has busy seconds")?))
        })
        .collect()
}

/// What `gpuacct report` answers.
fn report(source: &[&str], arguments: &[&str]) -> Result<String> {
    let output = Command::new(agent::binary()?)
        .arg("report")
        .args(source)
        .args(["--since", "2h"])
        .args(arguments)
        .output()
        .context("cannot run gpuacct report")?;
    ensure!(
        output.status.success(),
        "gpuacct report {source:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("a report is text")
}

/// A folder in `dir`.
fn folder(dir: &Path, name: &str) -> Result<PathBuf> {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
