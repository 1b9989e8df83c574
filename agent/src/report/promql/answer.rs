//! What a store answers, checked: nothing in it is believed before.
//!
//! A value has to be a number that a counter can have, times have to be those that were asked for and in
//! order, and no series may occur twice.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::value::RawValue;

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

/// The result is read after its type is known, because each type has another form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed<'a> {
    result_type: String,
    #[serde(borrow)]
    result: &'a RawValue,
}

#[derive(Deserialize)]
struct Found<'a> {
    metric: Labels,
    /// A number as text never has an escape, so it can be borrowed.
    #[serde(borrow)]
    values: Vec<(f64, &'a str)>,
}

/// An answer with what it says beside it.
type Told<T> = (T, Vec<String>);

/// The series of a matrix. `is_asked` says whether a time, in milliseconds, was asked for.
///
/// # Errors
/// If it is none, or has what cannot be.
pub fn matrix(
    body: &[u8],
    is_asked: impl Fn(i64) -> bool,
) -> Result<Told<Vec<Series>>, AnswerError> {
    read_matrix(body, is_asked, false)
}

/// The samples of series, as they were stored. VictoriaMetrics answers staleness markers among them, which
/// are no values: a scraper writes one where a series ends, as "NaN". A sample that was sent to it twice may
/// be there twice.
///
/// # Errors
/// As [`matrix`].
pub fn samples(
    body: &[u8],
    is_asked: impl Fn(i64) -> bool,
) -> Result<Told<Vec<Series>>, AnswerError> {
    read_matrix(body, is_asked, true)
}

/// How a staleness marker is written.
const STALE: &str = "NaN";

/// A matrix. A `raw` one may have staleness markers and samples that are there twice.
fn read_matrix(
    body: &[u8],
    is_asked: impl Fn(i64) -> bool,
    is_raw: bool,
) -> Result<Told<Vec<Series>>, AnswerError> {
    let (data, told): Told<Typed<'_>> = data(body)?;
    if data.result_type != "matrix" {
        return Err(AnswerError::Type(
            data.result_type.chars().take(40).collect(),
        ));
    }
    let found: Vec<Found<'_>> =
        serde_json::from_str(data.result.get()).map_err(|error| form(body, &error))?;
    let mut all = Vec::with_capacity(found.len());
    for Found { mut metric, values } in found {
        metric.remove("__name__");
        let shown = || shown(&metric);
        let mut points: Vec<(i64, f64)> = Vec::with_capacity(values.len());
        for (at, text) in values {
            if is_raw && text == STALE {
                continue;
            }
            #[expect(
                clippy::cast_possible_truncation,
                reason = "as saturates, and is checked next"
            )]
            let at_ms = (at * 1000.0).round() as i64;
            let value = text
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite() && *value >= 0.0);
            let value = value.ok_or_else(|| AnswerError::Value {
                series: shown(),
                found: text.chars().take(40).collect(),
            })?;
            if is_raw && points.last() == Some(&(at_ms, value)) {
                continue;
            }
            let is_next = points.last().is_none_or(|(before, _)| *before < at_ms);
            if !is_next || !is_asked(at_ms) {
                return Err(AnswerError::Time {
                    series: shown(),
                    found: at,
                });
            }
            points.push((at_ms, value));
        }
        all.push(Series {
            labels: metric,
            points,
        });
    }
    let mut labels: Vec<&Labels> = all.iter().map(|series| &series.labels).collect();
    labels.sort_unstable();
    match labels.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(AnswerError::Twice(shown(two[0]))),
        None => Ok((all, told)),
    }
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

fn data<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<Told<T>, AnswerError> {
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
    fn what_ends_a_series_is_no_sample_of_it() {
        let body = of(
            r#"{"metric":{"a":"b"},"values":[[1,"1"],[2,"2"],[2,"2"],[3,"NaN"],[4,"2"]]},
               {"metric":{"a":"c"},"values":[[4,"2"],[5,"NaN"]]}"#,
        );
        let (series, _) = samples(body.as_bytes(), |_| true).unwrap();
        assert_eq!(series[0].points, [(1_000, 1.0), (2_000, 2.0), (4_000, 2.0)]);
        assert_eq!(series[1].points.len(), 1);
        for wrong in [
            r#"[[2,"2"],[2,"3"]]"#,
            r#"[[2,"2"],[1,"2"]]"#,
            r#"[[2,"-1"]]"#,
        ] {
            let body = of(&format!(r#"{{"metric":{{}},"values":{wrong}}}"#));
            assert!(samples(body.as_bytes(), |_| true).is_err(), "{wrong}");
        }
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
