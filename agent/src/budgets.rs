//! Budgets: what a namespace, a team or a cluster may use of GPUs in a month of UTC.
//!
//! ```toml
//! prices = "prices.toml"              # of `gpuacct report`; for budgets of money
//!
//! [[budget]]
//! name = "research"
//! namespaces = ["research", "research-dev"]
//! gpu_hours = 2000
//! of = "allocated"                    # or "busy", which it is unless given
//!
//! [[budget]]
//! name = "vision"
//! namespace_label = { team = "vision" }   # a label of namespaces, from kube-state-metrics
//! cluster = "a"                       # may stand alone
//! money = "5000.00"
//! ```
//!
//! A file becomes rules of Prometheus ([`rules`]). All that is wrong with it is said at once, with line and
//! column. It refuses to guess: a budget says who, how much, and of what.

pub mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rust_decimal::Decimal;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::{Lines, Mistake, listed};
use crate::report::prices::{MoneyError, Prices};
use crate::text_file::{self, TextFileError};

/// What a budget may be called, in characters, and any other text in the file.
const LONGEST: usize = 63;
/// The largest budget, in GPU hours or in money.
const MOST: u64 = 1_000_000_000;
/// Mistakes that are listed at most.
const MOST_MISTAKES: usize = 50;

/// Why there are no budgets.
#[derive(Debug, thiserror::Error)]
pub enum BudgetsError {
    /// The file cannot be read.
    #[error("cannot read the budgets in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: TextFileError,
    },
    /// The file is read and cannot be used.
    #[error("cannot use the budgets{}", listed(.0))]
    Wrong(Vec<Mistake>),
    /// Its prices are of a kind that rules cannot use.
    #[error("{}: found {found}, expected {expected}", path.display())]
    UnusablePrices {
        /// The file of prices.
        path: PathBuf,
        /// What is in it.
        found: &'static str,
        /// What the rules need.
        expected: &'static str,
    },
    /// Its prices cannot be used.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// The budgets of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// In the order of the file.
    pub budgets: Vec<Budget>,
    /// The file of prices, relative to the one of budgets.
    pub prices: Option<PathBuf>,
}

/// How much somebody may use in a month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub who: Who,
    /// How much it is.
    pub limit: Limit,
}

/// Whose a budget is: all that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Namespaces, of which one must fit; none if any does.
    pub namespaces: Vec<String>,
    /// Labels of the namespace, by key.
    pub labels: BTreeMap<String, String>,
    /// The label `cluster`.
    pub cluster: Option<String>,
}

/// How much a budget is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Hours in which a GPU was busy.
    BusyHours(Decimal),
    /// Hours for which a GPU was allocated.
    AllocatedHours(Decimal),
    /// Money for busy time, in the currency of the prices.
    Money(Decimal),
}

/// Reads a file of budgets, and the prices that it names.
///
/// # Errors
/// If one of the two cannot be read or used.
pub fn read(path: &Path) -> Result<(Budgets, Option<Prices>), BudgetsError> {
    let text = text_file::read(path).map_err(|source| BudgetsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let budgets = parse(&text, &path.display().to_string())?;
    let beside = path.parent().unwrap_or(Path::new(""));
    let prices = budgets.prices.as_ref().map(|prices| beside.join(prices));
    let Some(path) = prices else {
        return Ok((budgets, None));
    };
    let prices = Prices::read(&path)?;
    let wrong = |found, expected| {
        Err(BudgetsError::UnusablePrices {
            path: path.clone(),
            found,
            expected,
        })
    };
    if prices.are_by_owner_or_place() {
        let expected = "prices of models: the rules price each model alike";
        return wrong("prices of nodes, clusters or labels ([[for]])", expected);
    }
    if prices.are_by_profile_alone() {
        let expected = "prices of profiles in the tables of models: the rules look for both";
        return wrong("prices of MIG profiles in [default]", expected);
    }
    if prices
        .busy_hours()
        .iter()
        .all(|(_, _, price)| price.is_zero())
    {
        return wrong("no busy_hour", "one: budgets of money are about busy time");
    }
    Ok((budgets, Some(prices)))
}

/// Reads a text that came from `origin`.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(text: &str, origin: &str) -> Result<Budgets, BudgetsError> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { wrong: Vec::new() };
    for error in &errors {
        let span = error.span().unwrap_or_default();
        reader.wrong(&span, String::new(), error.message());
    }
    let budgets = reader.file(&table);
    // What follows from text that is not TOML is no second mistake.
    if !errors.is_empty() {
        reader.wrong.retain(|(_, key, _)| key.is_empty());
    }
    if reader.wrong.is_empty() {
        return Ok(budgets);
    }
    reader.wrong.sort();
    reader.wrong.dedup();
    let lines = Lines::of(text);
    let mistakes = reader.wrong.into_iter().take(MOST_MISTAKES);
    let mistakes = mistakes.map(|(offset, key, problem)| Mistake {
        origin: origin.to_owned(),
        place: Some(lines.place(offset)),
        key,
        problem,
    });
    Err(BudgetsError::Wrong(mistakes.collect()))
}

type Table<'a> = DeTable<'a>;
type Value<'a> = Spanned<DeValue<'a>>;

/// What was found wrong: where, which key, and what.
struct Reader {
    wrong: Vec<(usize, String, String)>,
}

impl Reader {
    fn wrong(&mut self, span: &Range<usize>, key: impl Into<String>, problem: impl Into<String>) {
        self.wrong.push((span.start, key.into(), problem.into()));
    }

    /// Refuses keys that are not among these.
    fn only(&mut self, table: &Table<'_>, within: &str, known: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let expected = known.join(", ");
                let problem = format!("there is no such key, expected one of {expected}");
                self.wrong(&key.span(), format!("{within}{name}"), problem);
            }
        }
    }

    fn file(&mut self, file: &Spanned<Table<'_>>) -> Budgets {
        let table = file.get_ref();
        self.only(table, "", &["prices", "budget"]);
        let prices = table.get("prices");
        let prices = prices.and_then(|value| self.text(value, "prices"));
        let mut budgets: Vec<Budget> = Vec::new();
        let elements = match table.get("budget").map(Spanned::get_ref) {
            Some(DeValue::Array(elements)) => &elements[..],
            Some(_) => {
                let span = table.get("budget").map_or(0..0, Spanned::span);
                self.wrong(&span, "budget", "found one table, expected [[budget]]");
                return Budgets {
                    budgets,
                    prices: None,
                };
            }
            None => &[],
        };
        if elements.is_empty() {
            self.wrong(&(0..0), "budget", "there is none, expected at least one");
        }
        for (at, element) in elements.iter().enumerate() {
            let within = format!("budget[{at}]");
            let DeValue::Table(of) = element.get_ref() else {
                self.wrong(&element.span(), within, "expected a table");
                continue;
            };
            if let Some(budget) = self.budget(of, &element.span(), &format!("{within}.")) {
                if budgets.iter().any(|other| other.name == budget.name) {
                    let span = of.get("name").map_or(element.span(), Spanned::span);
                    let problem = format!("{:?} is the name of another budget", budget.name);
                    self.wrong(&span, format!("{within}.name"), problem);
                }
                if matches!(budget.limit, Limit::Money(_)) && prices.is_none() {
                    let span = of.get("money").map_or(element.span(), Spanned::span);
                    let problem = "there are no prices; name their file with prices at the top";
                    self.wrong(&span, format!("{within}.money"), problem);
                }
                budgets.push(budget);
            }
        }
        Budgets {
            budgets,
            prices: prices.map(PathBuf::from),
        }
    }

    fn budget(&mut self, table: &Table<'_>, span: &Range<usize>, within: &str) -> Option<Budget> {
        let known = [
            "name",
            "namespaces",
            "namespace_label",
            "cluster",
            "gpu_hours",
            "money",
            "of",
        ];
        self.only(table, within, &known);
        let key = |name: &str| format!("{within}{name}");
        let name = match table.get("name") {
            Some(name) => self.text(name, &key("name")),
            None => {
                self.wrong(span, key("name"), "is missing");
                None
            }
        };
        let namespaces = table.get("namespaces");
        let namespaces = namespaces.map(|value| self.namespaces(value, &key("namespaces")));
        let labels = table.get("namespace_label");
        let labels = labels.map(|value| self.labels(value, &key("namespace_label")));
        let cluster = table.get("cluster");
        let cluster = cluster.map(|value| self.text(value, &key("cluster")));
        if namespaces.is_none() && labels.is_none() && cluster.is_none() {
            let problem = "says not whose it is: expected namespaces, namespace_label or cluster";
            self.wrong(span, within.trim_end_matches('.'), problem);
        }
        let limit = self.limit(table, span, within);
        Some(Budget {
            name: name?,
            who: Who {
                namespaces: namespaces.unwrap_or_default(),
                labels: labels.unwrap_or_default(),
                cluster: cluster.flatten(),
            },
            limit: limit?,
        })
    }

    fn limit(&mut self, table: &Table<'_>, span: &Range<usize>, within: &str) -> Option<Limit> {
        let key = |name: &str| format!("{within}{name}");
        let hours = table.get("gpu_hours");
        let money = table.get("money");
        let of = table.get("of");
        let kind = of.and_then(|of| self.text(of, &key("of")).map(|text| (text, of.span())));
        match (hours, money) {
            (None, None) => {
                let problem = "says not how much it is: expected gpu_hours or money";
                self.wrong(span, within.trim_end_matches('.'), problem);
                None
            }
            (Some(_), Some(money)) => {
                let problem = "there is gpu_hours too; make two budgets of it";
                self.wrong(&money.span(), key("money"), problem);
                None
            }
            (Some(hours), None) => {
                let hours = self.amount(hours, &key("gpu_hours"));
                match kind {
                    None => hours.map(Limit::BusyHours),
                    Some((text, _)) if text == "busy" => hours.map(Limit::BusyHours),
                    Some((text, _)) if text == "allocated" => hours.map(Limit::AllocatedHours),
                    Some((text, span)) => {
                        let problem = format!("found {text:?}, expected \"busy\" or \"allocated\"");
                        self.wrong(&span, key("of"), problem);
                        None
                    }
                }
            }
            (None, Some(money)) => {
                if let Some((_, span)) = kind {
                    let problem = "is for gpu_hours; money is for busy time";
                    self.wrong(&span, key("of"), problem);
                }
                self.amount(money, &key("money")).map(Limit::Money)
            }
        }
    }

    /// A text that is not blank and that a page can show.
    fn text(&mut self, value: &Value<'_>, key: &str) -> Option<String> {
        let DeValue::String(text) = value.get_ref() else {
            let problem = format!("found {}, expected text", kind_of(value));
            self.wrong(&value.span(), key, problem);
            return None;
        };
        let is_good = !text.trim().is_empty()
            && text.chars().count() <= LONGEST.max(if key == "prices" { 4096 } else { 0 })
            && !text.chars().any(char::is_control);
        if !is_good {
            let problem = format!("found {text:?}, expected 1 to {LONGEST} characters in one line");
            self.wrong(&value.span(), key, problem);
        }
        is_good.then(|| text.to_string())
    }

    fn namespaces(&mut self, value: &Value<'_>, key: &str) -> Vec<String> {
        let DeValue::Array(elements) = value.get_ref() else {
            let problem = format!("found {}, expected a list of names", kind_of(value));
            self.wrong(&value.span(), key, problem);
            return Vec::new();
        };
        if elements.is_empty() {
            self.wrong(&value.span(), key, "is empty, expected at least one name");
        }
        let mut names = Vec::new();
        for (at, element) in elements.iter().enumerate() {
            let key = format!("{key}[{at}]");
            let Some(name) = self.text(element, &key) else {
                continue;
            };
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.chars().all(is_name) {
                names.push(name);
            } else {
                let problem =
                    format!("found {name:?}, expected a namespace: a-z, 0-9 and - are possible");
                self.wrong(&element.span(), key, problem);
            }
        }
        names
    }

    fn labels(&mut self, value: &Value<'_>, key: &str) -> BTreeMap<String, String> {
        let DeValue::Table(table) = value.get_ref() else {
            let found = kind_of(value);
            let problem =
                format!("found {found}, expected a table such as {{ team = \"vision\" }}");
            self.wrong(&value.span(), key, problem);
            return BTreeMap::new();
        };
        if table.is_empty() {
            self.wrong(&value.span(), key, "is empty, expected at least one label");
        }
        let mut labels = BTreeMap::new();
        for (name, value) in table {
            let name = name.get_ref().to_string();
            if let Some(text) = self.text(value, &format!("{key}.{name}")) {
                labels.insert(name, text);
            }
        }
        labels
    }

    /// A decimal as text, or a whole number: 0.1 is no binary fraction.
    fn amount(&mut self, value: &Value<'_>, key: &str) -> Option<Decimal> {
        let found = match value.get_ref() {
            DeValue::String(text) => Decimal::from_str_exact(text).ok(),
            DeValue::Integer(whole) => Decimal::from_str_exact(whole.as_str()).ok(),
            _ => None,
        };
        let is_good = |amount: &Decimal| {
            *amount > Decimal::ZERO && *amount <= Decimal::from(MOST) && amount.scale() <= 9
        };
        let found = found.filter(is_good);
        if found.is_none() {
            let problem = format!(
                "found {}, expected a whole number, or a decimal as text such as \"99.50\", above 0 and up to \
                 {MOST}",
                shown(value)
            );
            self.wrong(&value.span(), key, problem);
        }
        found
    }
}

fn kind_of(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn shown(value: &Value<'_>) -> String {
    match value.get_ref() {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(whole) => whole.as_str().to_owned(),
        _ => kind_of(value).to_owned(),
    }
}
