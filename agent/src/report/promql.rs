//! A store of metrics that is asked in PromQL over HTTP: Prometheus, VictoriaMetrics, Thanos, Mimir.
//!
//! Four requests are made, all of them reading: `/api/v1/query_range`, `/api/v1/query` for the samples
//! of an hour in which a counter fell, `/api/v1/series` and `/api/v1/label/__name__/values`. Every query
//! has `max_source_resolution=0s`, since Thanos would otherwise average counters, and `nocache=1`, since
//! VictoriaMetrics would otherwise move the times that are asked for.
//!
//! Answers are bounded in size and time, and nothing in them is believed before it is checked
//! ([`answer`]). A request that fails for a reason that may pass is repeated a few times.

pub mod answer;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::{HeaderMap, Uri};
use url::Url;

use self::answer::{AnswerError, Labels, Series};
use crate::receiver::{HeaderError, HttpClient, HttpError, Protocol, Receiver, TlsFiles};
use crate::secrets::{self, Secrets};
use crate::text_file::{self, TextFileError};

/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How often a request is made at most.
const TRIES: u32 = 3;
/// How long to wait before the second try; the third waits twice as long.
#[cfg(not(test))]
const PAUSE: Duration = Duration::from_millis(500);
/// A test's store is busy by itself.
#[cfg(test)]
const PAUSE: Duration = Duration::from_millis(1);
/// Statuses of servers that are busy or begin.
const PASSING: [u16; 4] = [429, 502, 503, 504];
/// Statuses that say that a query asks for too much.
const TOO_MUCH: [u16; 2] = [413, 422];
/// Different warnings that are kept.
const MAX_WARNINGS: usize = 20;

/// Where a store is, and how it is spoken to.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The URL below which `/api/v1` is.
    pub url: String,
    /// Matchers that every query has, as in `{cluster="a"}`; empty for none.
    pub selector: String,
    /// Headers that go with every request.
    pub headers: Vec<(String, String)>,
    /// Headers whose values are in files.
    pub header_files: Vec<(String, PathBuf)>,
    /// A file with a bearer token.
    pub token_file: Option<PathBuf>,
    /// The user of basic authentication, and the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// The files of TLS.
    pub tls: TlsFiles,
    /// How long one request may take.
    pub timeout: Duration,
}

/// Why a store gives no answer. No secret is in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such address.
    #[error(
        "cannot use {url:?} as the URL of a store: found {found}, expected http://host:port or https://host:port"
    )]
    Url {
        /// As it was given, without its user.
        url: String,
        /// What is wrong with it.
        found: String,
    },
    /// The matchers are none.
    #[error(
        "cannot use the selector {0:?}: expected matchers in braces, such as {{cluster=\"a\"}}"
    )]
    Selector(String),
    /// A header cannot be sent.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A file with a token or a password cannot be read.
    #[error("cannot read {what} from {}", path.display())]
    Secret {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: TextFileError,
    },
    /// Nobody answers.
    #[error("no answer from {url} to {query}{}", of_tls(tls))]
    Unreachable {
        /// The store.
        url: String,
        /// What was asked.
        query: String,
        /// What TLS says, if it is the reason.
        tls: Option<String>,
        /// What went wrong last.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It takes too long.
    #[error("{url} has not answered {query} within {} s, in {TRIES} tries", limit.as_secs_f64())]
    Slow {
        /// The store.
        url: String,
        /// What was asked.
        query: String,
        /// How long one try may take.
        limit: Duration,
    },
    /// It refuses.
    #[error("{url} refuses {query}: status {status}, {said}")]
    Refused {
        /// The store.
        url: String,
        /// What was asked.
        query: String,
        /// Status of HTTP.
        status: u16,
        /// What it said.
        said: String,
    },
    /// The answer is longer than is read.
    #[error("the answer of {url} to {query} is longer than {} MiB", MAX_ANSWER_BYTES >> 20)]
    TooLong {
        /// The store.
        url: String,
        /// What was asked.
        query: String,
    },
    /// The answer cannot be what it should be.
    #[error("the answer of {url} to {query} cannot be used")]
    Answer {
        /// The store.
        url: String,
        /// What was asked.
        query: String,
        /// What is wrong with it.
        source: AnswerError,
    },
}

fn of_tls(fault: &Option<String>) -> String {
    fault
        .as_ref()
        .map_or_else(String::new, |fault| format!(" ({fault})"))
}

impl StoreError {
    /// Whether less at a time may be answered.
    pub(super) fn is_too_much(&self) -> bool {
        match self {
            Self::TooLong { .. } => true,
            Self::Refused { status, .. } => TOO_MUCH.contains(status),
            _ => false,
        }
    }

    /// Whether it took too long, to us, to the store (503) or to somebody between (504).
    pub(super) fn is_too_slow(&self) -> bool {
        match self {
            Self::Slow { .. } => true,
            Self::Refused { status, .. } => matches!(status, 503 | 504),
            _ => false,
        }
    }

    /// Whether the command line is wrong, and not the store.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Url { .. } | Self::Selector(_) | Self::Header(_) | Self::Secret { .. }
        )
    }
}

/// An answer about a range of times, not read yet.
#[derive(Debug)]
pub struct RangeAnswer {
    parameters: [(&'static str, String); 4],
    body: bytes::Bytes,
    /// The times that were asked for, in milliseconds.
    times: BTreeSet<i64>,
}

/// A store.
#[derive(Debug)]
pub struct Store {
    headers: HeaderMap,
    client: HttpClient,
    /// The URL without an end, a query and a user.
    url: String,
    selector: String,
    secrets: Secrets,
    timeout: Duration,
    warnings: BTreeSet<String>,
}

impl Store {
    /// A store, not asked yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the address, the selector, a header or a file cannot be used.
    pub fn new(access: Access) -> Result<Self, StoreError> {
        let address = access.url;
        let shown = secrets::shown(&address);
        let wrong = |found: String| StoreError::Url {
            url: shown.clone(),
            found,
        };
        let mut receiver = Receiver::new(address.clone(), Protocol::HttpProtobuf);
        let url = Url::parse(&receiver.endpoint).map_err(|error| wrong(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(format!("the scheme {}", url.scheme())));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("parameters behind the path".to_owned()));
        }
        let mut headers = access.headers;
        if let Some(path) = &access.token_file {
            let token = secret("the token", path)?;
            headers.push(("authorization".to_owned(), format!("Bearer {token}")));
        }
        if let Some((user, path)) = &access.user {
            let password = secret("the password", path)?;
            headers.push(("authorization".to_owned(), secrets::basic(user, &password)));
        }
        for (name, path) in &access.header_files {
            headers.push((name.clone(), secret("the value of a header", path)?));
        }
        receiver = receiver.with_headers(headers);
        receiver.timeout = access.timeout;
        receiver.tls = access.tls;
        let headers = receiver.headers_now()?;
        let values = receiver.headers.iter().map(|(_, value)| value.as_str());
        let secrets = Secrets::of(values, [address.as_str()]);
        Ok(Self {
            client: receiver.http_client(),
            url: url.as_str().trim_end_matches('/').to_owned(),
            selector: matchers(&access.selector)?,
            secrets,
            timeout: access.timeout,
            warnings: BTreeSet::new(),
            headers,
        })
    }

    /// Where it is, without a user.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it has said beside its answers, each thing once.
    pub fn take_warnings(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.warnings)
    }

    /// A metric with the selector of every query, and further matchers.
    #[must_use]
    pub fn vector(&self, metric: &str, further: &str) -> String {
        let matchers = [self.selector.as_str(), further];
        let matchers: Vec<&str> = matchers.into_iter().filter(|of| !of.is_empty()).collect();
        format!("{metric}{{{}}}", matchers.join(","))
    }

    /// What an expression is at the times from `first` to `last`, in seconds, each `step` apart.
    ///
    /// # Errors
    /// If there is no answer, or none that can be used.
    pub async fn range(
        &mut self,
        query: &str,
        first: i64,
        last: i64,
        step: i64,
    ) -> Result<Vec<Series>, StoreError> {
        let query = query.to_owned();
        let answer = self.ask_range(query, first, last, step, false).await?;
        self.read_range(answer)
    }

    /// The same, without reading the answer. Several can be asked at once. One that takes too long is not
    /// repeated if the caller `can_ask_for_less`.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn ask_range(
        &self,
        query: String,
        first: i64,
        last: i64,
        step: i64,
        can_ask_for_less: bool,
    ) -> Result<RangeAnswer, StoreError> {
        let parameters = [
            ("query", query),
            ("start", first.to_string()),
            ("end", last.to_string()),
            ("step", step.to_string()),
        ];
        let body = self
            .ask("query_range", &parameters, can_ask_for_less)
            .await?;
        let times = (first..=last).step_by(usize::try_from(step.max(1)).unwrap_or(1));
        Ok(RangeAnswer {
            parameters,
            body,
            times: times.map(|at| at * 1000).collect(),
        })
    }

    /// The series of an answer.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn read_range(&mut self, answer: RangeAnswer) -> Result<Vec<Series>, StoreError> {
        let RangeAnswer {
            parameters,
            body,
            times,
        } = answer;
        self.read(&parameters, &body, |body| {
            answer::matrix(body, |at_ms| times.contains(&at_ms))
        })
    }

    /// The samples of the series of a vector, of the `seconds` before `at`.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub async fn samples(
        &mut self,
        vector: &str,
        seconds: i64,
        at: i64,
    ) -> Result<Vec<Series>, StoreError> {
        let parameters = [
            ("query", format!("{vector}[{seconds}s]")),
            ("time", at.to_string()),
        ];
        let body = self.ask("query", &parameters, false).await?;
        let window = (at - seconds) * 1000..=at * 1000;
        self.read(&parameters, &body, |body| {
            answer::samples(body, |at_ms| window.contains(&at_ms))
        })
    }

    /// The labels of the series of a vector that had samples between two times, in seconds.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub async fn series(
        &mut self,
        vector: &str,
        first: i64,
        last: i64,
    ) -> Result<Vec<Labels>, StoreError> {
        let parameters = matched(vector, first, last);
        let body = self.ask("series", &parameters, false).await?;
        self.read(&parameters, &body, answer::label_sets)
    }

    /// The names of the metrics of a vector that had samples between two times, in seconds.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub async fn names(
        &mut self,
        vector: &str,
        first: i64,
        last: i64,
    ) -> Result<BTreeSet<String>, StoreError> {
        let parameters = matched(vector, first, last);
        let body = self
            .ask("label/__name__/values", &parameters, false)
            .await?;
        self.read(&parameters, &body, answer::values)
    }

    fn read<T>(
        &mut self,
        parameters: &[(&str, String)],
        body: &[u8],
        read: impl FnOnce(&[u8]) -> Result<(T, Vec<String>), AnswerError>,
    ) -> Result<T, StoreError> {
        let (found, warnings) = read(body).map_err(|source| StoreError::Answer {
            url: self.url.clone(),
            query: question(parameters),
            source: source.without(&self.secrets),
        })?;
        for warning in warnings {
            if self.warnings.len() < MAX_WARNINGS {
                self.warnings
                    .insert(self.secrets.struck_out(&warning).into_owned());
            }
        }
        Ok(found)
    }

    async fn ask(
        &self,
        path: &str,
        parameters: &[(&str, String)],
        can_ask_for_less: bool,
    ) -> Result<bytes::Bytes, StoreError> {
        let query = question(parameters);
        let wrong = |found: String| StoreError::Url {
            url: self.url.clone(),
            found,
        };
        let mut url = Url::parse(&format!("{}/api/v1/{path}", self.url))
            .map_err(|error| wrong(error.to_string()))?;
        url.query_pairs_mut()
            .extend_pairs(parameters)
            .extend_pairs([("max_source_resolution", "0s"), ("nocache", "1")]);
        let url: Uri = url
            .as_str()
            .parse()
            .map_err(|error: hyper::http::uri::InvalidUri| wrong(error.to_string()))?;
        let mut tried = 0;
        loop {
            tried += 1;
            let error = match self.try_once(url.clone(), &query).await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            let passes = match &error {
                StoreError::Refused { status, .. } => PASSING.contains(status),
                StoreError::Unreachable { tls, .. } => tls.is_none(),
                StoreError::Slow { .. } => true,
                _ => false,
            };
            let is_last = tried >= TRIES || (can_ask_for_less && error.is_too_slow());
            if !passes || is_last {
                return Err(error);
            }
            tokio::time::sleep(PAUSE * tried).await;
        }
    }

    async fn try_once(&self, url: Uri, query: &str) -> Result<bytes::Bytes, StoreError> {
        let (of, query) = (self.url.clone(), query.to_owned());
        let headers = self.headers.clone();
        let asked = self.client.get(url, headers, MAX_ANSWER_BYTES);
        let (answer, is_cut) = match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(source)) => return Err(self.unreachable(query, source)),
            Err(_) => {
                let limit = self.timeout;
                return Err(StoreError::Slow {
                    url: of,
                    query,
                    limit,
                });
            }
        };
        // What is refused is said in the body, whatever its length.
        if answer.status != 200 {
            let said = answer::refusal(&answer.body);
            return Err(StoreError::Refused {
                url: of,
                query,
                status: answer.status,
                said: self.secrets.struck_out(&said).into_owned(),
            });
        }
        if is_cut {
            return Err(StoreError::TooLong { url: of, query });
        }
        Ok(answer.body)
    }

    fn unreachable(&self, query: String, source: HttpError) -> StoreError {
        let fault = self.client.notes().take_fault();
        StoreError::Unreachable {
            url: self.url.clone(),
            query,
            tls: fault.map(|fault| fault.to_string()),
            source: Box::new(source),
        }
    }
}

fn matched(vector: &str, first: i64, last: i64) -> [(&'static str, String); 3] {
    [
        ("match[]", vector.to_owned()),
        ("start", first.to_string()),
        ("end", last.to_string()),
    ]
}

/// What was asked, in an error.
fn question(parameters: &[(&str, String)]) -> String {
    let words = parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    words.collect::<Vec<_>>().join(" ")
}

fn secret(what: &'static str, path: &Path) -> Result<String, StoreError> {
    text_file::value(path).map_err(|source| StoreError::Secret {
        what,
        path: path.to_owned(),
        source,
    })
}

/// The matchers of a selector, without its braces.
fn matchers(selector: &str) -> Result<String, StoreError> {
    let selector = selector.trim();
    if selector.is_empty() {
        return Ok(String::new());
    }
    let inner = selector
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .map(|inner| inner.trim().trim_end_matches(','));
    inner
        .filter(|inner| !inner.is_empty() && inner.contains(['=', '~']))
        .map(str::to_owned)
        .ok_or_else(|| StoreError::Selector(selector.to_owned()))
}

/// A text as PromQL has it in quotes.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// A matcher of a label that has one of these values.
#[must_use]
pub fn one_of(label: &str, values: &[&str]) -> String {
    let escaped = values.iter().map(|value| {
        let each = value
            .chars()
            .map(|c| match c.is_ascii_alphanumeric() || "-_/".contains(c) {
                true => c.to_string(),
                false => format!("\\{c}"),
            });
        each.collect::<String>()
    });
    let values = escaped.collect::<Vec<_>>().join("|");
    // A name that only newer stores know stands in quotes.
    let is_plain = label
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || c == b'_');
    let label = if is_plain {
        label.to_owned()
    } else {
        quoted(label)
    };
    format!("{label}=~{}", quoted(&values))
}
