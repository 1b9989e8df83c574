//! The Helm chart, held against kustomize, Kubernetes' schemas, the Prometheus Operator's models, and
//! its own documents.
//!
//! kustomize is the measure: with its defaults the chart renders the base, and each component has a
//! value that renders what the component does.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use gpuacct::config::Config;
use gpuacct_tests::manifests::{KUBERNETES, OLDEST_KUBERNETES, Tools, chart, deploy};
use gpuacct_tests::python::{Venv, run, venv};
use gpuacct_tests::requirement::require;
use serde_json::{Map, Value, json};

use crate::deploy::{COMPONENTS, FOREIGN_KINDS, check_affinity, check_volumes, read, tools};

/// The Prometheus Operator's kinds, and cert-manager's. Newer releases want a newer Python.
const MODELS: [&str; 2] = [
    "cloudcoil-models-prometheus-operator==0.80.1.0",
    "cloudcoil-models-cert-manager==1.17.1.0",
];

/// Labels that Helm's objects have and kustomize's have not, wherever labels or selectors are.
const HELMS_LABELS: [&str; 4] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
];

/// The values by which the chart does what each component of kustomize does.
const COUNTERPARTS: [(&str, &[&str]); COMPONENTS.len()] = [
    ("bottlerocket", &["bottlerocket.enabled=true"]),
    ("gke", &["gke.enabled=true"]),
    ("gpu-nodes", &["gpuNodes.enabled=true"]),
    ("hardened", &["hardened.enabled=true"]),
    ("network-policy", &["networkPolicy.enabled=true"]),
    ("nvidia-runtime", &["runtimeClassName=nvidia"]),
    ("openshift", &["openshift.enabled=true"]),
    ("pod-monitor", &["podMonitor.enabled=true"]),
    ("talos", &["talos.enabled=true"]),
    ("tls", &["tls.enabled=true"]),
    ("web-config", &["webConfig.secretName=gpuacct-web"]),
];

/// Sets of values that a cluster may have, beyond those of [`COUNTERPARTS`].
const MATRIX: [&[&str]; 14] = [
    &[
        "image.repository=registry:5000/team/gpuacct",
        "image.tag=0.1.0-1",
    ],
    &[
        "image.digest=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "imagePullSecrets[0].name=registry",
    ],
    &[
        "fullnameOverride=accounts",
        "nameOverride=gpu",
        "commonLabels.team=ai",
    ],
    &["serviceAccount.create=false", "serviceAccount.name=own"],
    &[
        "restartOnConfigChange=true",
        "podAnnotations.a=b",
        "podLabels.c=d",
    ],
    &[
        "otlp.endpoint=https://collector.observability:4318",
        "otlp.protocol=http/protobuf",
        "otlp.temporality=delta",
        "otlp.headersSecret.name=otlp",
        "records.enabled=true",
        "records.endpoint=https://records.observability:4318",
    ],
    &[
        "tls.enabled=true",
        "tls.secretName=own",
        "tls.clientAuthType=RequireAndVerifyClientCert",
        "tls.certManager.enabled=true",
        "tls.certManager.issuerRef.name=ca",
        "podMonitor.enabled=true",
        "podMonitor.tlsConfig.serverName=gpuacct.gpuacct.svc",
        "podMonitor.tlsConfig.ca.secret.name=ca",
        "podMonitor.tlsConfig.ca.secret.key=ca.crt",
        "podMonitor.labels.release=prometheus",
    ],
    &[
        "webConfig.secretName=web",
        "serviceMonitor.enabled=true",
        "serviceMonitor.extraEndpoint.basicAuth.username.name=auth",
        "serviceMonitor.extraEndpoint.basicAuth.username.key=user",
        "service.annotations.a=b",
    ],
    &[
        "tls.enabled=true",
        "scrapeConfig.enabled=true",
        "scrapeConfig.tlsConfig.serverName=gpuacct",
        "networkPolicy.enabled=true",
        "networkPolicy.otlpTo=null",
    ],
    &["verticalPodAutoscaler.enabled=true", "service.enabled=true"],
    &["prometheusRule.enabled=true", "dashboards.enabled=true"],
    &[
        "openshift.enabled=true",
        "hardened.enabled=true",
        "runtimeClassName=nvidia",
    ],
    &[
        "nodeSelectorTerms[0].matchExpressions[0].key=pool",
        "nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
        "nodeSelectorTerms[1].matchFields[0].key=metadata.name",
        "nodeSelectorTerms[1].matchFields[0].operator=In",
        "nodeSelectorTerms[1].matchFields[0].values[0]=node-1",
        "kubeletRootDir=/data/kubelet",
        "priorityClassName=null",
    ],
    &[
        "extraArgs[0]=--log=debug",
        "extraEnv[0].name=A",
        "extraEnv[0].value=b",
        "extraEnvFrom[0].secretRef.name=env",
        "extraVolumes[0].name=v",
        "extraVolumes[0].emptyDir.sizeLimit=1Mi",
        "extraVolumeMounts[0].name=v",
        "extraVolumeMounts[0].mountPath=/v",
        "extraObjects[0].apiVersion=v1",
        "extraObjects[0].kind=Secret",
        "extraObjects[0].metadata.name=\\{\\{ .Release.Name \\}\\}-extra",
        "extraConfig=[attribution]\npayer = \"innermost\"",
        "namespace.create=true",
    ],
];

fn set_values(values: &[&str]) -> Vec<String> {
    let each = values.iter();
    each.flat_map(|value| ["--set".to_owned(), (*value).to_owned()])
        .collect()
}

fn template(tools: &Tools, values: &[&str]) -> String {
    let arguments = set_values(values);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tools.template(&arguments).unwrap()
}

/// Takes from each map whose keys are labels those that only Helm's objects have.
fn without_helms_labels(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for place in ["labels", "matchLabels"] {
                if let Some(Value::Object(labels)) = map.get_mut(place) {
                    labels.retain(|key, _| !HELMS_LABELS.contains(&key.as_str()));
                }
            }
            map.values_mut().for_each(without_helms_labels);
        }
        Value::Array(list) => list.iter_mut().for_each(without_helms_labels),
        _ => {}
    }
}

/// Documents by kind and name. What has a name in a list that Kubernetes merges by names stands in the
/// order of these, since that order means nothing.
fn by_name(documents: Vec<Value>) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for mut document in documents {
        without_helms_labels(&mut document);
        let pod = &mut document["spec"]["template"]["spec"];
        if pod.is_object() {
            sort(&mut pod["volumes"], "name");
            let container = &mut pod["containers"][0];
            sort(&mut container["env"], "name");
            sort(&mut container["volumeMounts"], "mountPath");
        }
        let kind = document["kind"].as_str().unwrap();
        let name = document["metadata"]["name"].as_str().unwrap();
        let key = format!("{kind}/{name}");
        assert!(found.insert(key.clone(), document).is_none(), "two {key}");
    }
    found
}

fn sort(list: &mut Value, by: &str) {
    let entries = list.as_array_mut().unwrap();
    entries.sort_by_key(|entry| entry[by].as_str().unwrap().to_owned());
}

#[test]
fn the_chart_renders_what_kustomize_renders() {
    let Some(tools) = tools() else { return };
    let names: Vec<_> = COUNTERPARTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, COMPONENTS);

    let mut texts = vec![tools.kustomize(&[]).unwrap(), template(&tools, &[])];
    for (component, values) in COUNTERPARTS {
        texts.push(tools.kustomize(&[component]).unwrap());
        texts.push(template(&tools, values));
    }
    let cases = std::iter::once("the base").chain(COMPONENTS);
    let mut documents = tools.documents_of(&texts).unwrap().into_iter();
    for case in cases {
        let mut kustomize = by_name(documents.next().unwrap());
        let helm = by_name(documents.next().unwrap());
        // Helm keeps its record of a release in the namespace, which therefore has to be there before.
        let namespace = kustomize.remove("Namespace/gpuacct");
        assert!(namespace.is_some(), "{case}");
        let (kustomizes, helms): (Vec<_>, Vec<_>) =
            (kustomize.keys().collect(), helm.keys().collect());
        assert_eq!(kustomizes, helms, "{case}");
        for (name, document) in &kustomize {
            assert_eq!(document, &helm[name], "{case}: {name}");
        }
    }
}

#[test]
fn the_chart_renders_the_namespace_of_kustomize_for_who_applies_templates() {
    let Some(tools) = tools() else { return };
    let texts = [
        tools.kustomize(&[]).unwrap(),
        template(&tools, &["namespace.create=true"]),
    ];
    let [kustomize, helm] = tools.documents_of(&texts).unwrap().try_into().unwrap();
    assert_eq!(by_name(kustomize), by_name(helm));
}

/// The lines of comments in a file.
fn comments(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| line.starts_with('#')).collect()
}

#[test]
fn each_argument_in_the_base_stands_in_the_chart_too() {
    let base = read(&deploy().join("kubernetes/base/daemon-set.yaml"));
    let template = read(&chart().join("templates/daemon-set.yaml"));
    let missing: Vec<_> = comments(&base)
        .difference(&comments(&template))
        .copied()
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn kubernetes_accepts_what_the_chart_renders() {
    let Some(tools) = tools() else { return };
    let mut sets: Vec<&[&str]> = MATRIX.to_vec();
    sets.extend(COUNTERPARTS.map(|(_, values)| values));
    let texts: Vec<_> = sets.iter().map(|values| template(&tools, values)).collect();
    let mut manifests = Vec::new();
    for (values, documents) in sets.iter().zip(tools.documents_of(&texts).unwrap()) {
        for document in documents {
            let kind = document["kind"].as_str().unwrap();
            if kind == "DaemonSet" {
                let pod = &document["spec"]["template"]["spec"];
                check_volumes(pod);
                check_affinity(pod);
                check_selector(&document);
                assert_eq!(
                    pod["automountServiceAccountToken"],
                    json!(false),
                    "{values:?}"
                );
                assert!(pod["containers"][0]["resources"]["limits"]["cpu"].is_null());
            }
            if kind == "ConfigMap"
                && let Some(text) = document["data"]["gpuacct.toml"].as_str()
            {
                Config::parse(text, "the ConfigMap").unwrap();
            }
            if !FOREIGN_KINDS.contains(&kind) && !manifests.contains(&document) {
                manifests.push(document);
            }
        }
    }
    let ends = [KUBERNETES[0], KUBERNETES[KUBERNETES.len() - 1]];
    tools.validate(&manifests, &ends).unwrap();
    let defaults = tools.documents(&template(&tools, &[])).unwrap();
    tools.validate(&defaults, &KUBERNETES).unwrap();
}

fn check_selector(daemon_set: &Value) {
    let spec = &daemon_set["spec"];
    let labels = &spec["template"]["metadata"]["labels"];
    let selector = spec["selector"]["matchLabels"].as_object().unwrap();
    assert!(!selector.is_empty());
    for (key, value) in selector {
        assert_eq!(&labels[key], value, "{key}");
    }
}

#[test]
fn values_that_cannot_work_are_refused_with_their_place() {
    let Some(tools) = tools() else { return };
    for (values, expected) in [
        (
            &["image.tag=9"][..],
            "at '/image/tag': got number, want string",
        ),
        (&["imag.tag=x"], "additional properties 'imag' not allowed"),
        (
            &["image.tags=x"],
            "at '/image': additional properties 'tags' not allowed",
        ),
        (
            &[
                "image.tag=x",
                "image.digest=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ],
            "at '/image/tag': maxLength",
        ),
        (&["image.digest=sha256:a"], "at '/image/digest'"),
        (
            &["image.pullPolicy=Sometimes"],
            "at '/image/pullPolicy': value must be one of",
        ),
        (&["otlp.endpoint=collector:4317"], "at '/otlp/endpoint'"),
        (&["otlp.protocol=http"], "at '/otlp/protocol'"),
        (&["records.endpoint=records:4317"], "at '/records/endpoint'"),
        (&["podMonitor.interval=often"], "at '/podMonitor/interval'"),
        (
            &["networkPolicy.otlpPorts[0]=70000"],
            "at '/networkPolicy/otlpPorts/0'",
        ),
        (
            &["hardened.capabilities[0]=CAP_BPF"],
            "at '/hardened/capabilities/0'",
        ),
        (&["gke.podQuota=0"], "at '/gke/podQuota'"),
        // The new agent waits for the old one, and Kubernetes for the new one.
        (
            &["updateStrategy.rollingUpdate.maxSurge=1"],
            "'maxSurge' not allowed",
        ),
        // A file that is mounted by it never changes.
        (
            &["extraVolumeMounts[0].subPath=x"],
            "at '/extraVolumeMounts/0/subPath'",
        ),
        (&["kubeletRootDir=kubelet"], "at '/kubeletRootDir'"),
        (
            &["tls.enabled=true", "tls.certManager.enabled=true"],
            "tls.certManager.issuerRef.name must be set",
        ),
        (
            &["podMonitor.enabled=true", "scrapeConfig.enabled=true"],
            "each series would be scraped twice",
        ),
    ] {
        let arguments = set_values(values);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = tools.template(&arguments).unwrap_err().to_string();
        assert!(refused.contains(expected), "{values:?}: {refused}");
    }
}

/// The value at a path of keys.
fn at<'a>(value: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(value, |value, key| &value[key])
}

/// Paths of all keys in the values, down to what the schema does not divide further.
fn keys_of(values: &Value, schema: &Value, path: &[String], found: &mut BTreeSet<String>) {
    let (Some(values), Some(known)) = (values.as_object(), schema["properties"].as_object()) else {
        found.insert(path.join("."));
        return;
    };
    for (key, value) in values {
        let path = [path, std::slice::from_ref(key)].concat();
        let schema = known.get(key);
        assert!(schema.is_some(), "{} is not in the schema", path.join("."));
        keys_of(value, schema.unwrap(), &path, found);
    }
}

/// Paths of all keys in the schema that have a value by themselves.
fn keys_of_schema(schema: &Value, path: &[String], found: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        found.insert(path.join("."));
        return;
    };
    assert_eq!(schema["additionalProperties"], json!(false), "{path:?}");
    for (key, schema) in properties {
        keys_of_schema(schema, &[path, std::slice::from_ref(key)].concat(), found);
    }
}

#[test]
fn the_schema_knows_each_value_and_no_other() {
    let Some(tools) = tools() else { return };
    let values = tools
        .documents(&read(&chart().join("values.yaml")))
        .unwrap();
    let schema: Value = serde_json::from_str(&read(&chart().join("values.schema.json"))).unwrap();
    let (mut of_values, mut of_schema) = (BTreeSet::new(), BTreeSet::new());
    keys_of(&values[0], &schema, &[], &mut of_values);
    keys_of_schema(&schema, &[], &mut of_schema);
    // What Helm passes to each chart, and what has no default.
    for absent in [
        "global",
        "hardened.seccompProfile.localhostProfile",
        "resources.claims",
        "affinity.nodeAffinity",
        "affinity.podAffinity",
        "affinity.podAntiAffinity",
    ] {
        assert!(of_schema.remove(absent), "{absent}");
    }
    of_schema.insert("affinity".to_owned());
    of_values.insert("affinity".to_owned());
    assert_eq!(of_values, of_schema);
}

/// A row of the table in the README.
#[derive(Debug)]
struct Documented {
    path: Vec<String>,
    text: String,
}

/// The keys of values.yaml with the comments that begin with `# --`. A key of a map is documented with
/// the map where that has such a comment.
fn documented(values: &str) -> Vec<Documented> {
    let mut found: Vec<Documented> = Vec::new();
    let (mut path, mut text) = (Vec::<(usize, String)>::new(), None);
    let mut whole: Option<usize> = None;
    for line in values.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(comment) = trimmed.strip_prefix("# -- ") {
            assert_eq!(
                text, None,
                "{line}: a comment is one line, whatever its length"
            );
            text = Some(comment.to_owned());
            continue;
        }
        let key = trimmed.split_once(':').map(|(key, _)| key);
        let Some(key) = key.filter(|_| !trimmed.starts_with(['#', '-'])) else {
            continue;
        };
        path.retain(|(at, _)| *at < indent);
        path.push((indent, key.to_owned()));
        if whole.is_some_and(|at| indent > at) {
            continue;
        }
        whole = None;
        let is_map = trimmed.ends_with(':');
        if let Some(text) = text.take() {
            let path = path.iter().map(|(_, key)| key.clone()).collect();
            found.push(Documented { path, text });
            whole = is_map.then_some(indent);
        } else {
            assert!(is_map, "{path:?} has no comment");
        }
    }
    found
}

const BEGIN: &str =
    "<!-- The table is written by `GPUACCT_UPDATE_DOCS=1 cargo xtask test -- chart::`. -->\n";

#[test]
fn the_readme_has_the_comments_of_the_values() {
    let Some(tools) = tools() else { return };
    let text = read(&chart().join("values.yaml"));
    let values = tools.documents(&text).unwrap();
    let mut table = String::from("| value | default | |\n|---|---|---|\n");
    for Documented { path, text } in documented(&text) {
        let default = at(&values[0], &path);
        assert!(!text.contains('|'), "{text}");
        table += &format!("| `{}` | `{default}` | {text} |\n", path.join("."));
    }
    let place = chart().join("README.md");
    let page = read(&place);
    let (above, below) = page
        .split_once(BEGIN)
        .expect("the README has a place for the table");
    let below = below.split_once("\n\n").map_or("", |(_, below)| below);
    let wanted = format!("{above}{BEGIN}{table}\n{below}");
    if std::env::var_os("GPUACCT_UPDATE_DOCS").is_some() {
        fs::write(&place, &wanted).unwrap();
    }
    assert_eq!(read(&place), wanted, "run it with GPUACCT_UPDATE_DOCS=1");
}

#[test]
fn the_chart_has_the_version_and_the_image_of_the_agent() {
    let Some(tools) = tools() else { return };
    let version = env!("CARGO_PKG_VERSION");
    let about = tools.documents(&read(&chart().join("Chart.yaml"))).unwrap();
    let about = &about[0];
    assert_eq!(about["version"], json!(version));
    assert_eq!(about["appVersion"], json!(version));
    assert_eq!(
        about["kubeVersion"],
        json!(format!(">={OLDEST_KUBERNETES}.0-0"))
    );
    assert_eq!(about["icon"], Value::Null, "there is no icon");

    let annotation = |name: &str| -> Vec<Map<String, Value>> {
        let text = about["annotations"][format!("artifacthub.io/{name}")].as_str();
        let documents = tools.documents(text.expect(name)).unwrap();
        serde_json::from_value(documents[0].clone()).unwrap()
    };
    let image = format!("gpuacct:{version}");
    assert_eq!(annotation("images")[0]["image"], json!(image));
    for change in annotation("changes") {
        let kinds = [
            "added",
            "changed",
            "deprecated",
            "removed",
            "fixed",
            "security",
        ];
        assert!(
            kinds.contains(&change["kind"].as_str().unwrap()),
            "{change:?}"
        );
        assert!(change["description"].is_string(), "{change:?}");
    }
    for link in annotation("links") {
        assert!(link["name"].is_string(), "{link:?}");
        assert!(
            link["url"].as_str().unwrap().starts_with("https://"),
            "{link:?}"
        );
    }
    let license = about["annotations"]["artifacthub.io/license"]
        .as_str()
        .unwrap();
    let manifest = read(&deploy().join("../Cargo.toml"));
    let licences = manifest.lines().find(|line| line.starts_with("license = "));
    assert!(licences.unwrap().contains(license), "{license}");
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    let Some(tools) = tools() else { return };
    let said = run(tools.helm().args(["lint", "--strict"]).arg(chart())).unwrap();
    assert!(
        said.contains("1 chart(s) linted, 0 chart(s) failed"),
        "{said}"
    );
    // There is no icon to name.
    let complaints = said.lines().filter(|line| line.starts_with('['));
    assert_eq!(
        complaints.collect::<Vec<_>>(),
        ["[INFO] Chart.yaml: icon is recommended"]
    );
}

#[test]
fn the_notes_have_the_two_commands_to_look_at_it() {
    let Some(tools) = tools() else { return };
    let notes = |values: &[&str]| {
        run(tools
            .helm()
            .args(["install", "gpuacct"])
            .arg(chart())
            .args(["--namespace", "accounts", "--dry-run=client"])
            .args(set_values(values)))
        .map(|text| text.split_once("NOTES:\n").unwrap().1.to_owned())
        .unwrap()
    };
    let plain = notes(&[]);
    for command in ["status", "check"] {
        let line =
            format!("kubectl --namespace accounts exec daemonset/gpuacct -- gpuacct {command}\n");
        assert!(plain.contains(&line), "{plain}");
    }
    assert!(plain.contains("pod-security.kubernetes.io/enforce=privileged"));
    assert!(plain.contains("Anyone who reaches port 10944"), "{plain}");
    let protected = notes(&["tls.enabled=true", "fullnameOverride=accounts"]);
    assert!(!protected.contains("Anyone who reaches"), "{protected}");
    assert!(protected.contains("exec daemonset/accounts -- gpuacct status"));
}

/// Reads each document by its model, and writes what the model has understood: nothing of one that it
/// refuses.
const UNDERSTAND: &str = r"
import importlib, json, sys
models = {}
for name in ('prometheus_operator.v1', 'prometheus_operator.v1alpha1', 'cert_manager.v1'):
    models.update(vars(importlib.import_module('cloudcoil.models.' + name)))
understood = []
for document in json.load(sys.stdin):
    try:
        model = models[document['kind']].model_validate(document)
    except ValueError:
        understood.append(None)
        continue
    understood.append(json.loads(model.model_dump_json(by_alias=True, exclude_unset=True)))
json.dump(understood, sys.stdout)
";

/// What the models understand of these documents. They let unknown keys pass and leave them out. In one
/// process: reading the models takes seconds.
fn understood(models: &Venv, documents: &[Value]) -> anyhow::Result<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("documents.json");
    fs::write(&file, serde_json::to_vec(documents)?)?;
    let script = UNDERSTAND.replace("sys.stdin", "open(sys.argv[1])");
    let mut command = Command::new(models.program("python"));
    let text = run(command.args(["-c", &script]).arg(&file))?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn the_operators_understand_what_the_chart_renders_for_them() {
    let Some(tools) = tools() else { return };
    let Some(models) = require("pypi", venv("models", &MODELS)) else {
        return;
    };
    let mut texts: Vec<_> = MATRIX
        .iter()
        .map(|values| template(&tools, values))
        .collect();
    texts.push(tools.kustomize(&["pod-monitor"]).unwrap());
    let documents = tools.documents_of(&texts).unwrap().into_iter().flatten();
    // The two kinds that remain have no model on PyPI.
    let others = ["SecurityContextConstraints", "VerticalPodAutoscaler"];
    let documents: Vec<Value> = documents
        .filter(|document| {
            let kind = document["kind"].as_str().unwrap();
            FOREIGN_KINDS.contains(&kind) && !others.contains(&kind)
        })
        .collect();
    let kinds: BTreeSet<_> = documents
        .iter()
        .map(|document| document["kind"].as_str().unwrap())
        .collect();
    let seen: Vec<_> = kinds.iter().chain(&others).copied().collect();
    let wanted: BTreeSet<_> = FOREIGN_KINDS.into_iter().collect();
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), wanted);
    // The check is one that can fail: by a wrong value, and by a key that nobody reads.
    let mut wrong = documents[0].clone();
    wrong["spec"]["dnsNames"] = json!(7);
    wrong["spec"]["selector"] = json!(7);
    let mut unknown = documents[0].clone();
    unknown["spec"]["honourLabels"] = json!(true);
    let all = [&documents[..], &[wrong, unknown.clone()]].concat();
    let read = understood(&models, &all).unwrap();
    let (right, broken) = read.split_at(documents.len());
    assert_eq!(right, documents);
    assert_eq!(broken[0], Value::Null);
    assert_ne!(broken[1], unknown);
}

#[test]
fn a_scraper_of_each_kind_sees_the_same_labels() {
    let Some(tools) = tools() else { return };
    let texts = ["podMonitor", "serviceMonitor", "scrapeConfig"].map(|kind| {
        template(
            &tools,
            &[&format!("{kind}.enabled=true"), "tls.enabled=true"],
        )
    });
    for documents in tools.documents_of(&texts).unwrap() {
        let monitor = documents
            .iter()
            .find(|document| FOREIGN_KINDS.contains(&document["kind"].as_str().unwrap()))
            .unwrap();
        let spec = &monitor["spec"];
        let endpoint = [&spec["podMetricsEndpoints"][0], &spec["endpoints"][0], spec]
            .into_iter()
            .find(|endpoint| endpoint.is_object())
            .unwrap();
        assert_eq!(endpoint["honorLabels"], json!(true), "{endpoint}");
        let scheme = endpoint["scheme"].as_str().unwrap();
        assert_eq!(scheme.to_lowercase(), "https");
        let targets: Vec<_> = endpoint["relabelings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|rule| rule["sourceLabels"] == json!(["__meta_kubernetes_pod_node_name"]))
            .map(|rule| rule["targetLabel"].as_str().unwrap())
            .collect();
        assert_eq!(targets, ["node", "instance"], "{endpoint}");
    }
}

/// The rules and dashboards beside the chart are in it, through links, once there are any.
#[test]
fn the_chart_has_the_rules_and_dashboards_that_are_shipped() {
    let Some(tools) = tools() else { return };
    for (value, link, shipped, suffix) in [
        ("prometheusRule", "alerts", "alerts", ".yaml"),
        ("dashboards", "dashboards", "grafana", ".json"),
    ] {
        let enabled = format!("{value}.enabled=true");
        let folder = deploy().join(shipped);
        if !folder.is_dir() {
            let arguments = ["--set", &enabled];
            let refused = tools.template(&arguments).unwrap_err().to_string();
            assert!(refused.contains("the chart has no"), "{refused}");
            continue;
        }
        let link = chart().join("files").join(link);
        let target = PathBuf::from("../../..").join(shipped);
        let found = fs::read_link(&link).ok();
        assert_eq!(found, Some(target), "{} must be a link", link.display());
        let rendered = tools.documents(&template(&tools, &[&enabled])).unwrap();
        let rendered = serde_json::to_string(&rendered).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if !name.ends_with(suffix) || name.contains("_test.") {
                continue;
            }
            if suffix == ".json" {
                assert!(rendered.contains(name), "{name}");
                continue;
            }
            for document in tools.documents(&read(&path)).unwrap() {
                for group in document["groups"].as_array().into_iter().flatten() {
                    let group = group["name"].as_str().unwrap();
                    // Prices are everybody's own.
                    let is_of_chart = group != "gpuacct.prices";
                    assert!(
                        !is_of_chart || rendered.contains(&json!(group).to_string()),
                        "{group}"
                    );
                }
            }
        }
    }
}
