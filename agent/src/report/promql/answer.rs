//! What a store answers, checked: nothing in it is believed before.
//!
//! A value has to be a number that a counter can have, times have to be those that were asked for and in
//! order, and no series may occur twice.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::errors::quoted;
use crate::secrets::Secrets;

/// The labels of a series.
pub type Labels = BTreeMap<String, String>;

/// A series of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its labels, without its name.
    pub labels: Labels,
    /// Times in milliseconds since 1970, rising, and values, at least 0 and finite.
    pub points: Vec<(i64, f64)>,
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// It is not what the API answers.
    #[error("found {found}, expected JSON as /api/v1 answers it: {why}")]
    Form {
        /// Its beginning.
        found: String,
        /// Where and why it is none.
        why: String,
    },
    /// It reports an error with a status that does not.
    #[error("it reports {0}")]
    Failed(String),
    /// It is of another type.
    #[error("the result is a {0}, expected a matrix")]
    Type(String),
    /// A value that no counter has.
    #[error("{series} has the value {found:?}, expected a number of at least 0")]
    Value {
        /// The labels.
        series: String,
        /// What stands there.
        found: String,
    },
    /// A time that was not asked for, or not after the one before it.
    #[error("{series} has a sample at {found}, which was not asked for or is out of order")]
    Time {
        /// The labels.
        series: String,
        /// The time in seconds, as it stands there.
        found: f64,
    },
    /// A series occurs twice.
    #[error("{0} occurs twice")]
    Twice(String),
}

impl AnswerError {
    /// The same without the secrets that it may repeat.
    pub(super) fn without(self, secrets: &Secrets) -> Self {
        let strike = |text: String| secrets.struck_out(&text).into_owned();
        match self {
            Self::Form { found, why } => Self::Form {
                found: strike(found),
                why: strike(why),
            },
            Self::Failed(said) => Self::Failed(strike(said)),
            Self::Type(found) => Self::Type(strike(found)),
            Self::Value { series, found } => Self::Value {
                series: strike(series),
                found: strike(found),
            },
            Self::Time { series, found } => Self::Time {
                series: strike(series),
                found,
            },
            Self::Twice(series) => Self::Twice(strike(series)),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<T> {
    status: String,
    data: Option<T>,
    #[serde(default)]
    error_type: String,
    #[serde(default)]
    error: String,
    /// Null where there are none, with some stores.
    warnings: Option<Vec<String>>,
    infos: Option<Vec<String>>,
    /// VictoriaMetrics' cluster says so.
    #[serde(default)]
    is_partial: bool,
    /// Thanos' word for a part that is missing, with some versions.
    #[serde(default)]
    partial: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Result_ {
    result_type: String,
    #[serde(default)]
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Found {
    metric: Labels,
    values: Vec<(f64, String)>,
}

/// An answer with what it says beside it.
type Told<T> = (T, Vec<String>);

/// What a store answers for a point that is no number.
const NOT_A_NUMBER: &str = "NaN";

/// The series of a matrix. `is_asked` says whether a time, in milliseconds, was asked for.
///
/// # Errors
/// If it is none, or has what cannot be.
pub fn matrix(
    body: &[u8],
    is_asked: impl Fn(i64) -> bool,
) -> Result<Told<Vec<Series>>, AnswerError> {
    series(body, is_asked, |_| false)
}

/// The same of samples as they were stored, without markers of staleness.
///
/// A Prometheus that does not find a series any more stores a marker, which is a NaN, and writes it to
/// other stores as well (section "Stale Markers" of the remote-write specification 1.0). Prometheus leaves
/// markers out of an answer. VictoriaMetrics answers them as `NaN`.
///
/// # Errors
/// As [`matrix`].
pub fn samples(
    body: &[u8],
    is_asked: impl Fn(i64) -> bool,
) -> Result<Told<Vec<Series>>, AnswerError> {
    series(body, is_asked, |text| text == NOT_A_NUMBER)
}

fn series(
    body: &[u8],
    is_asked: impl Fn(i64) -> bool,
    is_left_out: impl Fn(&str) -> bool,
) -> Result<Told<Vec<Series>>, AnswerError> {
    let (data, told): Told<Result_> = data(body)?;
    if data.result_type != "matrix" {
        return Err(AnswerError::Type(
            data.result_type.chars().take(40).collect(),
        ));
    }
    let found: Vec<Found> =
        serde_json::from_value(data.result).map_err(|error| form(body, &error))?;
    let mut known = BTreeSet::new();
    let mut all = Vec::with_capacity(found.len());
    for Found { mut metric, values } in found {
        metric.remove("__name__");
        let shown = || shown(&metric);
        if !known.insert(metric.clone()) {
            return Err(AnswerError::Twice(shown()));
        }
        let mut points: Vec<(i64, f64)> = Vec::with_capacity(values.len());
        for (at, text) in values {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "as saturates, and is checked next"
            )]
            let at_ms = (at * 1000.0).round() as i64;
            let is_next = points.last().is_none_or(|(before, _)| *before < at_ms);
            if !is_next || !is_asked(at_ms) {
                return Err(AnswerError::Time {
                    series: shown(),
                    found: at,
                });
            }
            if is_left_out(&text) {
                continue;
            }
            let value = text
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite() && *value >= 0.0);
            let value = value.ok_or_else(|| AnswerError::Value {
                series: shown(),
                found: text.chars().take(40).collect(),
            })?;
            points.push((at_ms, value));
        }
        all.push(Series {
            labels: metric,
            points,
        });
    }
    Ok((all, told))
}

/// Sets of labels, as `/api/v1/series` has them.
///
/// # Errors
/// If it is none.
pub fn label_sets(body: &[u8]) -> Result<Told<Vec<Labels>>, AnswerError> {
    data(body)
}

/// A list of values of a label.
///
/// # Errors
/// If it is none.
pub fn values(body: &[u8]) -> Result<Told<BTreeSet<String>>, AnswerError> {
    data(body)
}

/// What a refusal says, in one line.
#[must_use]
pub fn refusal(body: &[u8]) -> String {
    match serde_json::from_slice::<Envelope<serde_json::Value>>(body) {
        Ok(answer) if !answer.error.is_empty() => failed(&answer),
        _ if body.is_empty() => "without a reason".to_owned(),
        _ => quoted(body),
    }
}

fn failed<T>(answer: &Envelope<T>) -> String {
    in_line(&format!("{}: {}", answer.error_type, answer.error))
}

/// A text of the store: bounded, on one line.
fn in_line(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    text.chars().take(500).collect()
}

fn data<T: DeserializeOwned>(body: &[u8]) -> Result<Told<T>, AnswerError> {
    let answer: Envelope<T> = serde_json::from_slice(body).map_err(|error| {
        // An error has no data of the type that is expected.
        match serde_json::from_slice::<Envelope<serde_json::Value>>(body) {
            Ok(answer) if answer.status != "success" => AnswerError::Failed(failed(&answer)),
            _ => form(body, &error),
        }
    })?;
    if answer.status != "success" {
        return Err(AnswerError::Failed(failed(&answer)));
    }
    let is_partial = answer.is_partial || answer.partial;
    let mut told: Vec<String> = answer
        .warnings
        .into_iter()
        .chain(answer.infos)
        .flatten()
        .map(|text| in_line(&text))
        .collect();
    if is_partial {
        told.push("the answer is only a part of what it should be".to_owned());
    }
    match answer.data {
        Some(data) => Ok((data, told)),
        None => Err(AnswerError::Form {
            found: quoted(body),
            why: "it has no data".to_owned(),
        }),
    }
}

fn form(body: &[u8], error: &serde_json::Error) -> AnswerError {
    AnswerError::Form {
        found: quoted(body),
        why: error.to_string(),
    }
}

/// Labels in one line.
fn shown(labels: &Labels) -> String {
    let each = labels
        .iter()
        .map(|(name, value)| format!("{name}={value:?}"));
    let text = format!("{{{}}}", each.collect::<Vec<_>>().join(","));
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::chain;

    fn read(body: &str) -> Result<Told<Vec<Series>>, String> {
        matrix(body.as_bytes(), |at| at % 3_600_000 == 0).map_err(|error| chain(&error))
    }

    fn of(series: &str) -> String {
        format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":[{series}]}}}}"#)
    }

    #[test]
    fn an_answer_is_read_with_its_warnings() {
        let body = r#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"__name__":"x","a":"b"},"values":[[3600,"1.5"],[7200.000,"2e3"]]}]},
            "warnings":["store gateway is down"],"infos":null,"isPartial":true}"#;
        let (series, told) = read(body).unwrap();
        assert_eq!(series[0].points, [(3_600_000, 1.5), (7_200_000, 2000.0)]);
        assert_eq!(series[0].labels.len(), 1);
        assert_eq!(told.len(), 2, "{told:?}");
    }

    #[test]
    fn markers_of_staleness_made_a_bill_impossible() {
        let body = of(r#"{"metric":{},"values":[[1,"5"],[2,"NaN"],[3,"6"]]}"#);
        let (series, _) = samples(body.as_bytes(), |_| true).unwrap();
        assert_eq!(series[0].points, [(1_000, 5.0), (3_000, 6.0)]);
        let body = of(r#"{"metric":{},"values":[[1,"5"],[2,"+Inf"]]}"#);
        assert!(samples(body.as_bytes(), |_| true).is_err());
    }

    #[test]
    fn nothing_that_cannot_be_is_believed() {
        for (body, expected) in [
            (of(r#"{"metric":{"a":"b"},"values":[[3600,"NaN"]]}"#), "NaN"),
            (of(r#"{"metric":{},"values":[[3600,"-1"]]}"#), "\"-1\""),
            (of(r#"{"metric":{},"values":[[3600,"+Inf"]]}"#), "Inf"),
            (of(r#"{"metric":{},"values":[[3600,"x"]]}"#), "at least 0"),
            (
                of(r#"{"metric":{},"values":[[7200,"1"],[3600,"1"]]}"#),
                "out of order",
            ),
            (
                of(r#"{"metric":{},"values":[[3601,"1"]]}"#),
                "not asked for",
            ),
            (
                of(r#"{"metric":{},"values":[[1e300,"1"]]}"#),
                "not asked for",
            ),
            (
                of(r#"{"metric":{},"values":[]},{"metric":{},"values":[]}"#),
                "twice",
            ),
            (
                of(r#"{"metric":{},"values":[[3600,1]]}"#),
                "expected JSON as",
            ),
            (of(r#"{"metric":{}}"#), "missing field"),
            (
                r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#.to_owned(),
                "a vector, expected a matrix",
            ),
            (
                r#"{"status":"error","errorType":"execution","error":"too many"}"#.to_owned(),
                "execution: too many",
            ),
            (r#"{"status":"success"}"#.to_owned(), "no data"),
            ("<html>".to_owned(), "<html>"),
            (String::new(), "expected JSON"),
            (
                r#"{"status":"success","data":{"resultType":"matr"#.to_owned(),
                "EOF",
            ),
        ] {
            let found = read(&body).expect_err(&body);
            assert!(found.contains(expected), "{body}: {found}");
        }
    }
}
