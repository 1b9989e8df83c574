//! What the shipped queries may speak of: the families of `docs/METRICS.md`, with their labels, and what
//! the rules in `deploy/alerts` record.
//!
//! An expression is read by Prometheus' own parser. From its tree follows which labels each part of it
//! has, so a label that is not there, or is lost by an aggregation, is found. What a scraper adds
//! ([`TARGET`]) and how it renames owners ([`OWNER_PREFIXES`]) is allowed for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::manifests::{deploy, root};
use crate::prometheus::Prometheus;

/// Labels that are not the agent's: of the target, and of the store.
pub const TARGET: [&str; 4] = ["cluster", "job", "instance", "node"];
/// What `namespace`, `pod` and `container` begin with if the scraper has renamed them, or the agent was
/// told to.
pub const OWNER_PREFIXES: [&str; 2] = ["exported_", "owner_"];
/// The labels that name an owner.
pub const OWNER: [&str; 3] = ["namespace", "pod", "container"];
/// A family that tells by its labels what the scraper adds: it has no owner of its own.
const WITHOUT_OWNER: &str = "gpuacct_build_info";
/// What Prometheus itself has of a target.
const OF_PROMETHEUS: [&str; 1] = ["up"];
/// What looks back at itself, with its labels: a sum that goes on where it was.
const LOOKS_BACK: [(&str, &[&str]); 3] = [
    (
        "namespace_month:gpuacct_busy_seconds:sum",
        &["cluster", "namespace", "month"],
    ),
    (
        "namespace_month:gpuacct_allocated_seconds:sum",
        &["cluster", "namespace", "month"],
    ),
    (
        "namespace_month:gpuacct_busy_cost:sum",
        &["cluster", "namespace", "month", "currency"],
    ),
];
/// Functions of the time that is asked for, unless they are given another one.
const OF_TIME: [&str; 5] = ["day_of_month", "days_in_month", "hour", "minute", "month"];
/// Metrics of other projects that dashboards show beside ours, with their labels: Kueue
/// (`pkg/metrics/metrics.go`), the KAI scheduler (`pkg/queuecontroller/metrics/metrics.go`) and HAMi
/// (`cmd/scheduler/metrics.go`).
pub const OTHERS: [(&str, &[&str]); 5] = [
    (
        "kueue_cluster_queue_nominal_quota",
        &["cohort", "cluster_queue", "flavor", "resource"],
    ),
    (
        "kueue_cluster_queue_resource_usage",
        &["cohort", "cluster_queue", "flavor", "resource"],
    ),
    ("kai_queue_deserved_gpus", &["queue_name"]),
    ("kai_queue_allocated_gpus", &["queue_name"]),
    (
        "hami_resource_quota_used",
        &["namespace", "quota_name", "limit"],
    ),
];
/// The rule files that are shipped, in the order in which they depend on each other.
pub const RULE_FILES: [&str; 3] = [
    "gpuacct.prices.yaml",
    "gpuacct.recording.yaml",
    "gpuacct.alerts.yaml",
];

/// `deploy/alerts` of the working copy.
#[must_use]
pub fn alerts_folder() -> PathBuf {
    deploy().join("alerts")
}

/// A rule, as its file has it.
#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    /// What it records, if it does.
    pub record: Option<String>,
    /// The alert that it is, if it is one.
    pub alert: Option<String>,
    /// PromQL.
    pub expr: String,
    /// What it adds.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it tells people.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The rules of a file.
///
/// # Errors
/// If it cannot be read or is not one.
pub fn rules(file: &Path) -> Result<Vec<Rule>> {
    #[derive(Deserialize)]
    struct File {
        groups: Vec<Group>,
    }
    #[derive(Deserialize)]
    struct Group {
        rules: Vec<Rule>,
    }
    let text = fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    let file: File =
        serde_saphyr::from_str(&text).with_context(|| format!("{}", file.display()))?;
    Ok(file.groups.into_iter().flat_map(|g| g.rules).collect())
}

/// All rules that are shipped.
///
/// # Errors
/// As [`rules`].
pub fn shipped_rules() -> Result<Vec<Rule>> {
    let files = RULE_FILES
        .iter()
        .map(|file| rules(&alerts_folder().join(file)));
    Ok(files.collect::<Result<Vec<_>>>()?.concat())
}

/// Families with their labels in Prometheus, as `docs/METRICS.md` has them.
///
/// # Errors
/// If it cannot be read, or is laid out in another way.
pub fn documented() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let file = root().join("docs/METRICS.md");
    let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let mut families = BTreeMap::new();
    for section in text.split("\n## `").skip(1) {
        let (name, rest) = section
            .split_once('`')
            .context("a heading without an end")?;
        let row = rest.lines().find(|line| line.starts_with("| Prometheus |"));
        let labels = row.and_then(|row| row.split('|').nth(4));
        let labels = labels.with_context(|| format!("{name} has no labels"))?;
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned);
        families.insert(name.to_owned(), labels.collect());
    }
    ensure!(families.len() > 70, "only {} families", families.len());
    Ok(families)
}

/// What is known to exist.
#[derive(Debug)]
pub struct Names {
    parser: Prometheus,
    _dir: TempDir,
    families: BTreeMap<String, BTreeSet<String>>,
    recorded: BTreeMap<String, Vec<Rule>>,
}

/// The labels that a part of an expression can have. `None` for a number.
type Labels = Option<BTreeSet<String>>;

impl Names {
    /// Of what is documented, and what is recorded by the shipped rules. `program` is a Prometheus 3,
    /// which is started to read expressions.
    ///
    /// # Errors
    /// If it does not start, or the documents or the rules cannot be read.
    pub fn start(program: &Path) -> Result<Self> {
        let mut recorded: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for rule in shipped_rules()? {
            if let Some(name) = &rule.record {
                recorded.entry(name.clone()).or_default().push(rule);
            }
        }
        let dir = tempfile::tempdir()?;
        Ok(Self {
            parser: Prometheus::idle(program, dir.path())?,
            _dir: dir,
            families: documented()?,
            recorded,
        })
    }

    /// The syntax tree of an expression.
    ///
    /// # Errors
    /// If it cannot be parsed.
    pub fn parse(&self, promql: &str) -> Result<Value> {
        self.parser.parse(promql)
    }

    /// The labels that the result of an expression can have.
    ///
    /// # Errors
    /// If it is not PromQL, or names a metric or a label that is not there.
    pub fn labels(&self, promql: &str) -> Result<BTreeSet<String>> {
        let tree = self.parser.parse(promql)?;
        let labels = self.of(&tree).with_context(|| format!("in {promql}"))?;
        Ok(labels.unwrap_or_default())
    }

    /// The labels of a metric.
    fn of_metric(&self, name: &str) -> Result<BTreeSet<String>> {
        let target = TARGET.map(str::to_owned);
        if let Some(labels) = looking_back(name) {
            return Ok(labels);
        }
        if let Some(rules) = self.recorded.get(name) {
            // What a rule looks back at is what it records itself: it adds nothing.
            let mut labels = BTreeSet::new();
            for rule in rules {
                labels.extend(self.labels(&rule.expr)?);
                labels.extend(rule.labels.keys().cloned());
            }
            return Ok(labels);
        }
        if OF_PROMETHEUS.contains(&name) {
            return Ok(target.into());
        }
        if let Some((_, labels)) = OTHERS.iter().find(|(other, _)| *other == name) {
            let labels = labels.iter().map(|label| (*label).to_owned());
            return Ok(labels.chain(target).collect());
        }
        let own = self.families.get(name);
        let own = own.with_context(|| format!("there is no metric {name}"))?;
        let mut labels = own.clone();
        for label in OWNER.iter().filter(|label| own.contains(**label)) {
            labels.extend(OWNER_PREFIXES.map(|prefix| format!("{prefix}{label}")));
        }
        if name == WITHOUT_OWNER {
            labels.insert("namespace".to_owned());
        }
        labels.extend(target);
        Ok(labels)
    }

    fn of(&self, tree: &Value) -> Result<Labels> {
        let kind = tree["type"].as_str().context("a node without a type")?;
        match kind {
            "numberLiteral" | "stringLiteral" => Ok(None),
            "vectorSelector" | "matrixSelector" => {
                let name = tree["name"].as_str().context("a selector without a name")?;
                let labels = self.of_metric(name)?;
                let matchers = tree["matchers"].as_array().into_iter().flatten();
                for matcher in matchers {
                    let label = text(&matcher["name"])?;
                    ensure!(
                        label == "__name__" || labels.contains(&label),
                        "{name} has no label {label}"
                    );
                }
                Ok(Some(labels))
            }
            "parenExpr" | "unaryExpr" | "subquery" => self.of(&tree["expr"]),
            "aggregation" => self.of_aggregation(tree),
            "call" => self.of_call(tree),
            "binaryExpr" => self.of_binary(tree),
            _ => bail!("a node of the unknown type {kind}"),
        }
    }

    fn of_aggregation(&self, tree: &Value) -> Result<Labels> {
        let inner = self
            .of(&tree["expr"])?
            .context("an aggregation of a number")?;
        let grouping = texts(&tree["grouping"])?;
        for label in &grouping {
            ensure!(
                inner.contains(label),
                "there is no label {label} to aggregate by; there are {inner:?}"
            );
        }
        let keeps_all = matches!(tree["op"].as_str(), Some("topk" | "bottomk"));
        if tree["op"] == "count_values" {
            let value = text(&tree["param"]["val"])?;
            return Ok(Some(grouping.into_iter().chain([value]).collect()));
        }
        Ok(Some(if keeps_all {
            inner
        } else if tree["without"] == true {
            inner.difference(&grouping).cloned().collect()
        } else {
            grouping
        }))
    }

    fn of_call(&self, tree: &Value) -> Result<Labels> {
        let arguments = tree["args"]
            .as_array()
            .context("a call without arguments")?;
        let mut found = None;
        for argument in arguments {
            found = found.or(self.of(argument)?);
        }
        match tree["func"]["name"].as_str() {
            Some("label_replace") => {
                let mut labels = found.context("labels of a number")?;
                let source = text(&arguments[3]["val"])?;
                ensure!(
                    labels.contains(&source),
                    "there is no label {source} to replace by"
                );
                labels.insert(text(&arguments[1]["val"])?);
                Ok(Some(labels))
            }
            Some(name) if arguments.is_empty() && OF_TIME.contains(&name) => {
                Ok(Some(BTreeSet::new()))
            }
            Some("vector" | "absent") => Ok(Some(BTreeSet::new())),
            _ => Ok(found),
        }
    }

    fn of_binary(&self, tree: &Value) -> Result<Labels> {
        let (left, right) = match (self.of(&tree["lhs"])?, self.of(&tree["rhs"])?) {
            (Some(left), Some(right)) => (left, right),
            (left, right) => return Ok(left.or(right)),
        };
        let operator = tree["op"].as_str().unwrap_or_default();
        let matching = &tree["matching"];
        let labels = texts(&matching["labels"])?;
        let is_on = matching["on"] == true;
        for label in labels.iter().filter(|_| is_on) {
            ensure!(
                left.contains(label) && right.contains(label),
                "{label} is matched on, and not on both sides"
            );
        }
        let include = texts(&matching["include"])?;
        let (many, one) = match matching["card"].as_str() {
            Some("one-to-many") => (&right, &left),
            _ => (&left, &right),
        };
        for label in &include {
            ensure!(one.contains(label), "there is no label {label} to include");
        }
        Ok(Some(match (operator, matching["card"].as_str()) {
            ("or", _) => left.union(&right).cloned().collect(),
            ("and" | "unless" | ">" | "<" | ">=" | "<=" | "==" | "!=", _) => left,
            (_, Some("one-to-one")) if is_on => labels,
            _ => many.union(&include).cloned().collect(),
        }))
    }
}

/// The labels of what looks back at itself. They are said, since they do not follow from its rule without
/// them; a test compares the two.
#[must_use]
pub fn looking_back(name: &str) -> Option<BTreeSet<String>> {
    let (_, labels) = LOOKS_BACK.iter().find(|(known, _)| *known == name)?;
    Some(labels.iter().map(|label| (*label).to_owned()).collect())
}

fn text(value: &Value) -> Result<String> {
    let text = value.as_str();
    text.map(str::to_owned)
        .with_context(|| format!("{value} is no text"))
}

fn texts(value: &Value) -> Result<BTreeSet<String>> {
    value.as_array().into_iter().flatten().map(text).collect()
}
