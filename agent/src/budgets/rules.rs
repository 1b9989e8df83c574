//! Writes budgets as rules of Prometheus: what of each was used this month, what it comes to at the end of
//! the month, and alerts.
//!
//! They read `namespace_month:…:sum` of `deploy/alerts/gpuacct.recording.yaml`, which goes on from evaluation
//! to evaluation and begins at 0 with each month of UTC. So a budget needs no month of samples, and nothing
//! is extrapolated: these sums telescope as the counters do.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_saphyr::LitString;

use super::{Budget, Budgets, Limit, Who};
use crate::core::model::NONE;
use crate::outputs::instruments::pod_label_key;
use crate::report::prices::Prices;

/// What stands before the rules.
const HEADER: &str = "\
# Written by `gpuacct budgets render`. Change the file of budgets, not this one.
#
# It needs gpuacct.recording.yaml. Months are those of UTC.
";
/// Seconds of a week.
const WEEK: u32 = 604_800;
/// Seconds that are left of the month.
const LEFT: &str =
    "((days_in_month() - day_of_month() + 1) * 86400 - hour() * 3600 - minute() * 60)";
/// The month, as a label of the value 1.
const MONTH: &str = "count_values(\"month\", month())";

#[derive(Serialize)]
struct File {
    groups: Vec<Group>,
}

#[derive(Serialize)]
struct Group {
    name: &'static str,
    interval: &'static str,
    rules: Vec<Rule>,
}

#[derive(Serialize)]
struct Rule {
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<&'static str>,
    expr: LitString,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    wait: Option<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, &'static str>,
}

impl Rule {
    /// A rule that is neither recorded nor an alert yet. A literal block keeps the expression's lines.
    fn of(expr: impl Into<String>) -> Self {
        Self {
            record: None,
            alert: None,
            expr: LitString(expr.into()),
            wait: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// The rules as a file of Prometheus. With prices it also has them, in place of
/// `deploy/alerts/gpuacct.prices.yaml`.
///
/// # Errors
/// If YAML cannot be written.
pub fn render(
    budgets: &Budgets,
    prices: Option<&Prices>,
) -> Result<String, serde_saphyr::SerializeError> {
    let mut groups = Vec::new();
    let mut header = HEADER.to_owned();
    if let Some(prices) = prices {
        header += "# Load it in place of gpuacct.prices.yaml: it has the prices.\n";
        groups.push(Group {
            name: "gpuacct.prices",
            interval: "1m",
            rules: of_prices(prices),
        });
    }
    let mut rules: Vec<Rule> = Vec::new();
    for budget in &budgets.budgets {
        rules.extend(of_budget(budget, prices));
    }
    rules.push(forecast());
    rules.extend(alerts());
    groups.push(Group {
        name: "gpuacct.budgets",
        interval: "5m",
        rules,
    });
    Ok(header + &serde_saphyr::to_string(&File { groups })?)
}

fn of_prices(prices: &Prices) -> Vec<Rule> {
    let busy = prices.busy_hours().into_iter();
    busy.map(|(model, profile, price)| Rule {
        record: Some("gpuacct:gpu_hour_price"),
        labels: BTreeMap::from([
            ("model", model.unwrap_or("(default)").to_owned()),
            ("mig_profile", profile.unwrap_or(NONE).to_owned()),
            ("currency", prices.currency.clone()),
        ]),
        ..Rule::of(format!("vector({price})"))
    })
    .collect()
}

fn of_budget(budget: &Budget, prices: Option<&Prices>) -> [Rule; 3] {
    let Budget { name, who, limit } = budget;
    let (amount, sum, divisor) = match limit {
        Limit::BusyHours(hours) => (hours, "namespace_month:gpuacct_busy_seconds:sum", " / 3600"),
        Limit::AllocatedHours(hours) => (
            hours,
            "namespace_month:gpuacct_allocated_seconds:sum",
            " / 3600",
        ),
        Limit::Money(money) => (money, "namespace_month:gpuacct_busy_cost:sum", ""),
    };
    let unit = match (limit, prices) {
        (Limit::Money(_), Some(prices)) => prices.currency.clone(),
        (Limit::Money(_), None) => "money".to_owned(),
        _ => "GPU hours".to_owned(),
    };
    let selector = selector(who);
    let members = members(who);
    // Another group records the sum each five minutes, so its last sample may be older than what an instant
    // selector finds. The month that it is of is a label.
    let used = format!(
        "(sum(last_over_time({sum}{selector}[3d]) and on (month) {MONTH}{members}){divisor})\nor vector(0)"
    );
    let week = format!(
        "(sum(((last_over_time({sum}{selector}[7d]) - last_over_time({sum}{selector}[3d] offset 7d))\n  or \
         last_over_time({sum}{selector}[7d])){members}){divisor})\nor vector(0)"
    );
    let rule = |record, expr| Rule {
        record: Some(record),
        labels: BTreeMap::from([("budget", name.clone()), ("unit", unit.clone())]),
        ..Rule::of(expr)
    };
    [
        rule(
            "budget:gpuacct_limit:month",
            format!("vector({})", amount.normalize()),
        ),
        rule("budget:gpuacct_used:month", used),
        rule("budget:gpuacct_used:sum7d", week),
    ]
}

/// What each budget comes to at the end of the month, if the rest of it is like the last seven days.
fn forecast() -> Rule {
    Rule {
        record: Some("budget:gpuacct_forecast:month"),
        ..Rule::of(format!(
            "budget:gpuacct_used:month\n  + on (budget, unit)\n  budget:gpuacct_used:sum7d / {WEEK}\n    * on () \
             group_left () {LEFT}"
        ))
    }
}

/// The matchers of namespaces and cluster.
fn selector(who: &Who) -> String {
    let mut matchers = Vec::new();
    if !who.namespaces.is_empty() {
        // A namespace has nothing that a regular expression would take for more than itself.
        matchers.push(format!("namespace=~\"{}\"", who.namespaces.join("|")));
    }
    if let Some(cluster) = &who.cluster {
        matchers.push(format!("cluster={}", quoted(cluster)));
    }
    match matchers.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", matchers.join(", ")),
    }
}

/// The condition that the namespace has labels now, by kube-state-metrics, which names them as it names the
/// labels of pods.
fn members(who: &Who) -> String {
    let matchers: Vec<String> = who
        .labels
        .iter()
        .map(|(key, value)| format!("{}={}", pod_label_key(key), quoted(value)))
        .collect();
    match matchers.is_empty() {
        true => String::new(),
        false => format!(
            " and on (cluster, namespace) kube_namespace_labels{{{}}}",
            matchers.join(", ")
        ),
    }
}

/// A text as PromQL has it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The alerts, which are the same for all budgets.
fn alerts() -> [Rule; 3] {
    let of = "budget:gpuacct_used:month / on (budget, unit) budget:gpuacct_limit:month";
    let forecast = "budget:gpuacct_forecast:month / on (budget, unit) budget:gpuacct_limit:month";
    let alert = |alert, expr: String, wait, summary, description| Rule {
        alert: Some(alert),
        wait,
        labels: BTreeMap::from([("severity", "warning".to_owned())]),
        annotations: BTreeMap::from([
            ("summary", summary),
            ("description", description),
            ("runbook_url", "docs/OPERATIONS.md#budgets"),
        ]),
        ..Rule::of(expr)
    };
    [
        alert(
            "GpuacctBudgetNearlyUsed",
            format!("({of} >= 0.8) < 1"),
            None,
            "{{ $value | humanizePercentage }} of the budget {{ $labels.budget }} is used",
            "The budget {{ $labels.budget }} of this month, in {{ $labels.unit }}, is used by four fifths. Look \
             at who of it uses most, and at the forecast.",
        ),
        alert(
            "GpuacctBudgetUsed",
            format!("{of} >= 1"),
            None,
            "{{ $value | humanizePercentage }} of the budget {{ $labels.budget }} is used",
            "The budget {{ $labels.budget }} of this month, in {{ $labels.unit }}, is used up. Nothing is \
             stopped: gpuacct only counts.",
        ),
        alert(
            "GpuacctBudgetForecast",
            format!("({forecast} > 1) unless on (budget, unit) ({of} >= 1)"),
            Some("1h"),
            "The budget {{ $labels.budget }} will not last the month",
            "If the rest of the month is like the last seven days, {{ $value | humanizePercentage }} of the \
             budget {{ $labels.budget }}, in {{ $labels.unit }}, will be used at its end.",
        ),
    ]
}
