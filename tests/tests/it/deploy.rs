//! What is shipped in `deploy/`, held against those who read it: Kubernetes' schemas, kustomize,
//! systemd, a linter of Dockerfiles, the OpenTelemetry Collector, and the agent itself; and the
//! documents against what they speak of.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, FromArgMatches};
use gpuacct::commands::probe::{self, Question};
use gpuacct::commands::{agent, ask};
use gpuacct::config::{Config, OtlpTemporality, Span};
use gpuacct::core::model::{SourceId, UnattributedReason, UnobservedReason};
use gpuacct_tests::agent as agent_rig;
use gpuacct_tests::collector::{self, Collector};
use gpuacct_tests::daemon::Killed;
use gpuacct_tests::http::free_address;
use gpuacct_tests::manifests::{KUBERNETES, Tools, deploy, root};
use gpuacct_tests::promql;
use gpuacct_tests::python::run;
use gpuacct_tests::requirement::require;
use serde_json::{Value, json};

/// Components of which one cluster may have any number.
pub(crate) const COMPONENTS: [&str; 11] = [
    "bottlerocket",
    "gke",
    "gpu-nodes",
    "hardened",
    "network-policy",
    "nvidia-runtime",
    "openshift",
    "pod-monitor",
    "talos",
    "tls",
    "web-config",
];
/// Kinds that no schema of Kubernetes itself covers.
pub(crate) const FOREIGN_KINDS: [&str; 7] = [
    "Certificate",
    "PodMonitor",
    "PrometheusRule",
    "ScrapeConfig",
    "SecurityContextConstraints",
    "ServiceMonitor",
    "VerticalPodAutoscaler",
];

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn tools() -> Option<Tools> {
    require("pypi", Tools::new())
}

fn document(tools: &Tools, file: &str) -> Value {
    let documents = tools.documents(&read(&deploy().join(file))).unwrap();
    let [document] = documents.try_into().expect(file);
    document
}

fn strings(of: &Value) -> Vec<&str> {
    of.as_array()
        .map(|array| array.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

#[test]
fn every_manifest_is_listed_and_every_listed_one_is_there() {
    let Some(tools) = tools() else { return };
    let kubernetes = deploy().join("kubernetes");
    let components = COMPONENTS.map(|name| kubernetes.join("components").join(name));
    for folder in components.into_iter().chain([kubernetes.join("base")]) {
        let kustomization = read(&folder.join("kustomization.yaml"));
        let kustomization = &tools.documents(&kustomization).unwrap()[0];
        let patches = kustomization["patches"].as_array().into_iter().flatten();
        let listed: BTreeSet<_> = strings(&kustomization["resources"])
            .into_iter()
            .chain(patches.map(|patch| patch["path"].as_str().unwrap()))
            .map(str::to_owned)
            .collect();
        let there: BTreeSet<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "kustomization.yaml")
            .collect();
        assert_eq!(listed, there, "{}", folder.display());
    }
    let there = fs::read_dir(kubernetes.join("components")).unwrap();
    assert_eq!(there.count(), COMPONENTS.len(), "a component is not tested");
}

#[test]
fn kubernetes_refuses_a_field_that_is_misspelt() {
    let Some(tools) = tools() else { return };
    let text = read(&deploy().join("kubernetes/base/daemon-set.yaml"));
    let broken = text.replace("hostPID: true", "hostPid: true");
    let broken = tools.documents(&broken).unwrap();
    let error = tools.validate(&broken, &["1.37"]).unwrap_err().to_string();
    assert!(error.contains("hostPid"), "{error}");
}

/// Each component alone, and each two together.
fn sets() -> Vec<Vec<&'static str>> {
    let mut sets = vec![Vec::new()];
    for (at, first) in COMPONENTS.iter().enumerate() {
        sets.push(vec![*first]);
        sets.extend(
            COMPONENTS[at + 1..]
                .iter()
                .map(|second| vec![*first, *second]),
        );
    }
    sets
}

#[test]
fn kustomize_builds_every_pair_of_components_and_kubernetes_accepts_them() {
    let Some(tools) = tools() else { return };
    let (mut manifests, mut alone) = (Vec::new(), Vec::new());
    let sets = sets();
    let rendered: Vec<_> = sets
        .iter()
        .map(|chosen| tools.kustomize(chosen).unwrap())
        .collect();
    let rendered = tools.documents_of(&rendered).unwrap();
    let base = rendered[0].clone();
    assert!(sets[0].is_empty(), "the first set is the base alone");
    for (chosen, documents) in sets.iter().zip(rendered) {
        let mut daemon_sets = 0;
        for manifest in documents {
            let kind = manifest["kind"].as_str().unwrap();
            if kind == "DaemonSet" {
                daemon_sets += 1;
                check_volumes(&manifest["spec"]["template"]["spec"]);
                check_affinity(&manifest["spec"]["template"]["spec"]);
            }
            if FOREIGN_KINDS.contains(&kind) {
                continue;
            }
            if chosen.len() <= 1 && !alone.contains(&manifest) {
                alone.push(manifest.clone());
            }
            if !manifests.contains(&manifest) {
                manifests.push(manifest);
            }
        }
        assert_eq!(daemon_sets, 1, "{chosen:?}");
    }
    // A pair has no field that one of the two has not.
    tools.validate(&alone, &[KUBERNETES[0]]).unwrap();
    tools.validate(&manifests, &["1.37"]).unwrap();
    // What everybody applies, with each version between.
    tools.validate(&base, &KUBERNETES).unwrap();
}

/// The agent leaves a node when the GPU operator asks for it, whichever nodes it is restricted to.
pub(crate) fn check_affinity(pod: &Value) {
    let required =
        &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let terms = required["nodeSelectorTerms"].as_array().unwrap();
    let leaves = json!({
        "key": "nvidia.com/gpu.deploy.client",
        "operator": "NotIn",
        "values": ["false", "paused-for-driver-upgrade"],
    });
    assert!(!terms.is_empty());
    for term in terms {
        let expressions = term["matchExpressions"].as_array().unwrap();
        assert!(expressions.contains(&leaves), "{term}");
    }
}

/// Each mount has its volume and each volume its mount; the host lends directories only. No file is
/// mounted by `subPath`: it would not follow its source.
pub(crate) fn check_volumes(pod: &Value) {
    let names = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|entry| entry["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(&pod["volumes"]),
        names(&pod["containers"][0]["volumeMounts"])
    );
    for mount in pod["containers"][0]["volumeMounts"].as_array().unwrap() {
        assert!(mount["subPath"].is_null(), "{mount}");
        assert!(mount["subPathExpr"].is_null(), "{mount}");
    }
    for volume in pod["volumes"].as_array().unwrap() {
        let Some(host) = volume.get("hostPath") else {
            continue;
        };
        let kind = host["type"].as_str();
        assert!(
            matches!(kind, Some("" | "Directory" | "DirectoryOrCreate")),
            "{volume}"
        );
        let path = host["path"].as_str().unwrap();
        assert!(!path.contains(".so"), "{path} is a socket or a library");
    }
}

/// Where the container sees the host's directories: mount path to path on the host.
fn mounts(pod: &Value) -> BTreeMap<PathBuf, Option<PathBuf>> {
    let volumes = pod["volumes"].as_array().unwrap();
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    mounts
        .iter()
        .map(|mount| {
            let volume = volumes
                .iter()
                .find(|volume| volume["name"] == mount["name"]);
            let host = volume.unwrap()["hostPath"]["path"].as_str();
            let place = mount["mountPath"].as_str().unwrap();
            (place.into(), host.map(PathBuf::from))
        })
        .collect()
}

/// What a path in the container is on the host.
fn on_host(mounts: &BTreeMap<PathBuf, Option<PathBuf>>, path: &Path) -> Option<PathBuf> {
    let (place, host) = mounts
        .iter()
        .filter(|(place, _)| path.starts_with(place))
        .max_by_key(|(place, _)| place.as_os_str().len())?;
    Some(host.as_ref()?.join(path.strip_prefix(place).ok()?))
}

/// The configuration that an agent with these arguments is told to read.
fn parse_agent(args: &[&str]) -> Option<PathBuf> {
    let (name, rest) = args.split_first().unwrap();
    assert_eq!(*name, "agent");
    let command = agent::Options::augment_args(clap::Command::new("agent"));
    let matches = command
        .try_get_matches_from([*name].into_iter().chain(rest.iter().copied()))
        .unwrap_or_else(|error| panic!("{args:?}: {error}"));
    matches.get_one::<PathBuf>("config").cloned()
}

/// What a probe with these arguments asks.
fn parse_probe(args: &[&str]) -> probe::Options {
    let command = probe::Options::augment_args(clap::Command::new("probe"));
    let matches = command
        .try_get_matches_from(args)
        .unwrap_or_else(|error| panic!("{args:?}: {error}"));
    probe::Options::from_arg_matches(&matches).unwrap()
}

#[test]
fn the_pod_has_what_its_configuration_names() {
    let Some(tools) = tools() else { return };
    let set = document(&tools, "kubernetes/base/daemon-set.yaml");
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let map = document(&tools, "kubernetes/base/config-map.yaml");
    check_volumes(pod);
    let mounts = mounts(pod);

    // By the environment, so that a command in the container has the agent's configuration.
    assert_eq!(parse_agent(&strings(&container["args"])), None);
    let environment = container["env"].as_array().unwrap();
    let file = environment
        .iter()
        .find(|variable| variable["name"] == "GPUACCT_CONFIG")
        .and_then(|variable| variable["value"].as_str())
        .unwrap();
    let file = Path::new(file);
    let config_volume = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|volume| volume["configMap"]["name"] == map["metadata"]["name"]);
    assert!(config_volume.is_some());
    assert!(
        mounts.contains_key(file.parent().unwrap()),
        "{}",
        file.display()
    );
    let name = file.file_name().unwrap().to_str().unwrap();
    let text = map["data"][name].as_str().unwrap();
    let config = Config::parse(text, "the ConfigMap").unwrap();

    let defaults = Config::default();
    // On the host /var/run is a link to /run.
    let host = |path: &Path| match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => path.to_owned(),
    };
    let ours = config
        .docker
        .sockets
        .iter()
        .map(|path| on_host(&mounts, path));
    let theirs = defaults.docker.sockets.iter().map(|path| Some(host(path)));
    assert_eq!(ours.collect::<Vec<_>>(), theirs.collect::<Vec<_>>());
    let ours = config.cri.sockets.iter();
    let ours = ours.map(|path| on_host(&mounts, path));
    let theirs = defaults.cri.sockets.iter().map(|path| Some(path.clone()));
    assert_eq!(ours.collect::<Vec<_>>(), theirs.collect::<Vec<_>>());
    assert_eq!(
        on_host(&mounts, &config.socket.path),
        Some(defaults.socket.path),
        "the socket is on the host where `gpuacct status` looks for it"
    );
    assert_eq!(
        on_host(&mounts, &config.store.path),
        Some(defaults.store.path),
        "the ledger outlives the pod"
    );
    let bundle = &config.bundle.host_root;
    let containerd = defaults.bundle.containerd.iter();
    for (root, folder) in containerd.map(|folder| (bundle, folder)).chain([
        (bundle, &defaults.bundle.storage[0]),
        (
            &config.kubelet_logs.host_root,
            &defaults.kubelet_logs.containers,
        ),
        (&config.kubelet_logs.host_root, &defaults.kubelet_logs.pods),
    ]) {
        let seen = root.join(folder.strip_prefix("/").unwrap());
        assert_eq!(on_host(&mounts, &seen).as_ref(), Some(folder));
    }
    assert_eq!(
        on_host(&mounts, &config.pod_resources.socket),
        Some(defaults.pod_resources.socket)
    );
    let driver = Path::new("/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1");
    assert_eq!(on_host(&mounts, driver).as_deref(), Some(driver));
    for folder in &config.gpu.cdi {
        let folder = on_host(&mounts, folder);
        let is_default = |place: &PathBuf| folder.as_ref() == Some(&host(place));
        assert!(defaults.gpu.cdi.iter().any(is_default), "{folder:?}");
    }
    assert_eq!(
        on_host(&mounts, Path::new("/dev/nvidia0")),
        Some("/dev/nvidia0".into())
    );

    // The example in the comments must be one that works, too.
    let example = text
        .replace("# [otlp]", "[otlp]")
        .replace("# endpoint", "endpoint")
        .replace("# temporality", "temporality");
    let example = Config::parse(&example, "the example").unwrap();
    assert!(example.otlp.endpoint.is_some());
    assert_eq!(example.otlp.temporality, OtlpTemporality::Delta);

    // With a surge Kubernetes would wait for the new agent, and that one for the old agent's lock.
    let update = &set["spec"]["updateStrategy"]["rollingUpdate"];
    assert!(update["maxUnavailable"].is_string() && update["maxSurge"].is_null());

    let port = &container["ports"][0];
    assert_eq!(
        port["containerPort"],
        json!(config.prometheus.listen.port())
    );
    // The port can be flooded from any pod; the socket can be reached by nobody but root.
    let image = read(&deploy().join("image/Dockerfile"));
    for (probe, question) in [
        ("livenessProbe", Question::Live),
        ("readinessProbe", Question::Ready),
        ("startupProbe", Question::Ready),
    ] {
        let command = strings(&container[probe]["exec"]["command"]);
        let (program, args) = command.split_first().expect(probe);
        assert!(
            image.contains(&format!("ENTRYPOINT [\"{program}\"]")),
            "{probe}"
        );
        let options = parse_probe(args);
        assert_eq!(options.question, question, "{probe}");
        assert_eq!(
            options.agent.socket().unwrap(),
            config.socket.path,
            "{probe}"
        );
        // It is told why there is no answer, instead of being killed by the kubelet.
        let timeout = container[probe]["timeoutSeconds"].as_u64();
        assert!(timeout > Some(ask::ANSWER_TIMEOUT.as_secs()), "{probe}");
    }
    assert_eq!(pod["hostPID"], json!(true));
    assert_eq!(pod["automountServiceAccountToken"], json!(false));
}

#[test]
fn prometheus_finds_the_pods_and_sees_a_zero_before_an_amount() {
    let Some(tools) = tools() else { return };
    let set = document(&tools, "kubernetes/base/daemon-set.yaml");
    let map = document(&tools, "kubernetes/base/config-map.yaml");
    let monitor = document(&tools, "kubernetes/components/pod-monitor/pod-monitor.yaml");

    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let wanted = monitor["spec"]["selector"]["matchLabels"]
        .as_object()
        .unwrap();
    assert!(!wanted.is_empty());
    for (key, value) in wanted {
        assert_eq!(&labels[key], value, "{key}");
    }
    assert_eq!(
        monitor["metadata"]["namespace"],
        set["metadata"]["namespace"]
    );
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(endpoint["port"], container["ports"][0]["name"]);
    assert_eq!(endpoint["honorLabels"], json!(true));

    let text = map["data"]["gpuacct.toml"].as_str().unwrap();
    let config = Config::parse(text, "the ConfigMap").unwrap();
    let interval: Span = endpoint["interval"].as_str().unwrap().parse().unwrap();
    assert!(interval <= config.publish.zero_for);
}

/// The values of a key in a unit file.
pub(crate) fn unit_values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .collect()
}

#[test]
fn the_unit_starts_the_agent_with_a_configuration_that_works() {
    let unit = read(&deploy().join("systemd/gpuacct.service"));
    let [start] = unit_values(&unit, "ExecStart")[..] else {
        panic!("one ExecStart");
    };
    let args: Vec<_> = start.split(' ').collect();
    assert_eq!(args[0], "/usr/bin/gpuacct");
    let file = parse_agent(&args[1..]);
    assert_eq!(
        file.as_deref(),
        Some(Path::new("/etc/gpuacct/gpuacct.toml"))
    );
    let shipped = deploy().join("systemd/gpuacct.toml");
    let config = Config::read(&shipped).unwrap();
    assert_eq!(
        config,
        Config::default(),
        "what is shipped is the defaults, spelt out"
    );
    let [directory] = unit_values(&unit, "RuntimeDirectory")[..] else {
        panic!("one RuntimeDirectory");
    };
    let socket = config.socket.path;
    assert_eq!(socket.parent(), Some(&*Path::new("/run").join(directory)));
    // The mark beside the socket outlives a restart, and the ledger a reboot.
    assert_eq!(unit_values(&unit, "RuntimeDirectoryPreserve"), ["yes"]);
    let [directory] = unit_values(&unit, "StateDirectory")[..] else {
        panic!("one StateDirectory");
    };
    assert_eq!(config.store.path, Path::new("/var/lib").join(directory));
}

/// Which of these capabilities, separated by spaces, this process could keep, by the kernel's numbers.
pub(crate) fn held(capabilities: &str) -> Vec<&str> {
    let status = read(Path::new("/proc/self/status"));
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounding = u64::from_str_radix(bounding.unwrap().trim(), 16).unwrap();
    let number = |name: &str| match name {
        "CAP_SYS_PTRACE" => 19,
        "CAP_SYSLOG" => 34,
        "CAP_SYS_RESOURCE" => 24,
        "CAP_PERFMON" => 38,
        "CAP_BPF" => 39,
        _ => panic!("{name} is new here"),
    };
    let names = capabilities.split(' ');
    names
        .filter(|name| bounding & (1 << number(name)) != 0)
        .collect()
}

/// The argument by which setpriv leaves a program these capabilities, of those that this machine has.
pub(crate) fn bounding_set(capabilities: &str) -> String {
    let names = held(capabilities).into_iter();
    let names = names.map(|name| name.replace("CAP_", ",+").to_lowercase());
    format!("--bounding-set=-all{}", names.collect::<String>())
}

#[test]
fn the_capabilities_of_the_unit_are_enough() {
    let setpriv = run(Command::new("setpriv").arg("--version"));
    let agent = agent_rig::binary().and_then(|binary| setpriv.map(|_| binary));
    let Some(binary) = require("agent", agent) else {
        return;
    };
    let unit = read(&deploy().join("systemd/gpuacct.service"));
    let [capabilities] = unit_values(&unit, "CapabilityBoundingSet")[..] else {
        panic!("one CapabilityBoundingSet");
    };
    let set = bounding_set(capabilities);
    let folder = tempfile::tempdir().unwrap();
    let (agent, socket) =
        agent_rig::command_line(&binary, folder.path(), Config::default()).unwrap();
    let _agent = Killed(
        Command::new("setpriv")
            .args(["--no-new-privs", "--inh-caps=-all"])
            .arg(&set)
            .args(agent)
            .spawn()
            .unwrap(),
    );
    let deadline = Instant::now() + agent_rig::PATIENCE;
    loop {
        let mut status = Command::new(&binary);
        let status = status
            .args(["status", "-o", "json", "--socket"])
            .arg(&socket);
        let text = String::from_utf8(status.output().unwrap().stdout).unwrap();
        let state = agent_rig::state_of(&text, "kernel");
        if state.as_deref() == Some("up") {
            break;
        }
        assert!(state.as_deref() != Some("down"), "{text} with {set}");
        assert!(Instant::now() < deadline, "{text}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn systemd_accepts_the_unit() {
    let there = run(Command::new("systemd-analyze").arg("--version"));
    if require("systemd", there).is_none() {
        return;
    }
    // It wants the binary to be there, and reads the unit's name from the file's.
    let verify = |unit: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gpuacct.service");
        let here = std::env::current_exe().unwrap();
        let unit = unit.replace("/usr/bin/gpuacct", here.to_str().unwrap());
        fs::write(&file, unit).unwrap();
        let mut command = Command::new("systemd-analyze");
        // Warnings, such as of an unknown key, come with success.
        command.args(["verify", "--man=no"]).arg(&file);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // Of the machine's own units we know nothing.
        let of_ours = |line: &&str| line.contains("gpuacct");
        (
            output.status.success(),
            text.lines().filter(of_ours).collect::<Vec<_>>().join("\n"),
        )
    };
    let unit = read(&deploy().join("systemd/gpuacct.service"));
    assert_eq!(verify(&unit), (true, String::new()));
    let (_, complaint) = verify(&unit.replace("ProtectSystem=strict", "ProtectSystems=strict"));
    assert!(complaint.contains("ProtectSystems"), "{complaint:?}");
}

#[test]
fn the_image_is_made_as_it_should_be() {
    let folder = deploy().join("image");
    let dockerfile = read(&folder.join("Dockerfile"));
    assert!(dockerfile.contains("ENTRYPOINT [\"/usr/bin/gpuacct\"]"));

    // What is built must be let in.
    let ignore = read(&folder.join("Dockerfile.dockerignore"));
    let let_in: BTreeSet<_> = ignore
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    let root = root();
    let manifest = read(&root.join("Cargo.toml"));
    let (_, members) = manifest.split_once("\nmembers = [\n").unwrap();
    let (members, _) = members.split_once("\n]").unwrap();
    for member in members.lines() {
        let path = member.trim().trim_matches([',', '"']);
        let top = path.split('/').next().unwrap();
        assert!(let_in.contains(top), "{path} is not let into the build");
    }
    for path in let_in {
        assert!(root.join(path).exists(), "{path} is let in and not there");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert!(dockerfile.contains(&format!("image.version=\"{version}\"")));

    let Some(tools) = tools() else { return };
    run(Command::new(tools.program("hadolint")).arg(folder.join("Dockerfile"))).unwrap();
    let daemon_set = read(&deploy().join("kubernetes/base/daemon-set.yaml"));
    assert!(daemon_set.contains(&format!("image: gpuacct:{version}\n")));
}

#[test]
fn a_collector_runs_with_the_configuration_and_takes_in_points() {
    let Some(binary) = require("otelcol", collector::binary()) else {
        return;
    };
    let config = deploy().join("collector/config.yaml");
    run(Command::new(&binary)
        .arg("validate")
        .arg("--config")
        .arg(&config))
    .unwrap();

    let [grpc, http, prometheus] = [(); 3].map(|()| free_address().unwrap().to_string());
    let prometheus = format!("http://{prometheus}/api/v1/otlp");
    let mut collector = Collector::start(
        &binary,
        &config,
        &[
            ("receivers::otlp::protocols::grpc::endpoint", &grpc),
            ("receivers::otlp::protocols::http::endpoint", &http),
            // Nobody listens there: what the collector itself says is what is looked at.
            ("exporters::otlphttp/prometheus::endpoint", &prometheus),
            ("processors::batch::timeout", "10ms"),
            ("service::telemetry::metrics::level", "none"),
        ],
    )
    .unwrap();
    send(&http).unwrap();
    let line = collector.wait_for("\"data points\"").unwrap();
    assert!(line.contains("\"data points\": 1"), "{line}");
}

/// One point of the books, as JSON.
fn send(receiver: &str) -> Result<()> {
    let request = json!({"resourceMetrics": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "gpuacct"}}]},
        "scopeMetrics": [{"metrics": [{
            "name": "gpuacct.namespace.gpu.busy", "unit": "s",
            "sum": {"aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [{
                "startTimeUnixNano": "1", "timeUnixNano": "2", "asDouble": 0.5,
            }]},
        }]}],
    }]});
    let answer = ureq::post(format!("http://{receiver}/v1/metrics"))
        .header("Content-Type", "application/json")
        .send(request.to_string())?;
    ensure!(answer.status() == 200, "{answer:?}");
    Ok(())
}

/// The documents that are written by hand, whose links and names of metrics are checked.
const DOCUMENTS: [&str; 20] = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "deploy/alerts/README.md",
    "deploy/grafana/README.md",
    "docs/ARCHITECTURE.md",
    "docs/GLOSSARY.md",
    "docs/INSTALL.md",
    "docs/LIMITATIONS.md",
    "docs/OPERATIONS.md",
    "docs/PACKAGES.md",
    "docs/PERFORMANCE.md",
    "docs/README.md",
    "docs/RECORDING.md",
    "docs/SECURITY.md",
    "docs/migration/cadvisor.md",
    "docs/migration/dcgm-exporter.md",
    "docs/adr/README.md",
    "deploy/helm/gpuacct/README.md",
];

#[test]
fn the_documents_name_metrics_and_files_that_exist() {
    let mut known: BTreeSet<String> = promql::documented().unwrap().into_keys().collect();
    let recorded = promql::shipped_rules().unwrap().into_iter();
    known.extend(recorded.filter_map(|rule| rule.record));
    let budgets = promql::rules(&promql::alerts_folder().join("budgets/gpuacct.budgets.yaml"));
    known.extend(budgets.unwrap().into_iter().filter_map(|rule| rule.record));
    for name in DOCUMENTS {
        let text = read(&root().join(name));
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
        let words = words.map(|word| word.trim_matches(':'));
        // The name of a package's file goes on with its version.
        let is_metric = |word: &&str| {
            let rest = word.strip_prefix("gpuacct_");
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
                || word.contains(":gpuacct_")
        };
        for metric in words.filter(is_metric) {
            assert!(
                known.contains(metric),
                "{name} names {metric}, which neither METRICS.md nor a rule has"
            );
        }
        let folder = root().join(name);
        let folder = folder.parent().unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            let is_elsewhere = target.starts_with("https://") || target.is_empty();
            assert!(
                is_elsewhere || folder.join(target).exists(),
                "{name} links to {target}, which is not there"
            );
        }
    }
}

#[test]
fn every_reason_is_explained() {
    let operations = read(&root().join("docs/OPERATIONS.md"));
    let unattributed = UnattributedReason::ALL.map(UnattributedReason::as_str);
    let unobserved = UnobservedReason::ALL.map(UnobservedReason::as_str);
    for reason in unattributed.iter().chain(&unobserved) {
        let row = format!("| `{reason}` |");
        assert!(operations.contains(&row), "{reason} is not explained");
    }
    for source in SourceId::ALL.map(SourceId::as_str) {
        // A scan of /proc cannot be down for a reason that somebody could mend.
        let is_explained = source == "procfs" || operations.contains(&format!("| `{source}` |"));
        assert!(is_explained, "{source} is not explained");
    }
    let metrics = read(&root().join("docs/METRICS.md"));
    let row = metrics
        .lines()
        .find(|line| line.starts_with("| `reason` | `gpuacct_container_info` |"))
        .unwrap();
    for reason in row.split('`').skip(5).step_by(2) {
        let row = format!("| `id only: {reason}` |");
        assert!(operations.contains(&row), "{reason} is not explained");
    }
}

#[test]
fn prometheus_accepts_the_rules_and_the_configuration_shown() {
    let there = run(Command::new("promtool").arg("--version"));
    if require("promtool", there).is_none() {
        return;
    }
    let operations = read(&root().join("docs/OPERATIONS.md"));
    let folder = tempfile::tempdir().unwrap();
    let mut checked = Vec::new();
    for block in operations.split("```yaml\n").skip(1) {
        let (yaml, _) = block.split_once("```").unwrap();
        let kind = match yaml.split(':').next() {
            Some("groups") => "rules",
            Some("scrape_configs") => "config",
            // The rules that are shipped have tests of their own.
            _ => continue,
        };
        let file = folder.path().join(format!("{kind}.yaml"));
        fs::write(&file, yaml).unwrap();
        run(Command::new("promtool").args(["check", kind]).arg(file)).unwrap();
        checked.push(kind);
    }
    assert_eq!(checked, ["config"]);
    let mut questions = String::from("groups:\n  - name: questions\n    rules:\n");
    for block in operations.split("```promql\n").skip(1) {
        let (question, _) = block.split_once("\n```").unwrap();
        questions += &format!("      - record: a:b:c\n        expr: {}\n", json!(question));
    }
    let file = folder.path().join("questions.yaml");
    fs::write(&file, questions).unwrap();
    run(Command::new("promtool").args(["check", "rules"]).arg(file)).unwrap();
}
