//! Who may read `/metrics`: TLS, clients' certificates, passwords, tokens, and a limit of requests.
//!
//! It is exporter-toolkit's web configuration file, with a file of bearer tokens beside it. Both are
//! looked at anew when a client comes, at most once a second, and by their times and sizes alone: so a
//! certificate is replaced, or a user added, without a restart. exporter-toolkit answers with errors
//! while its file is broken. Here what was in force stays in force, the fault is logged once and
//! counted, and it is the state of the output `prometheus`. A change that would leave `/metrics` open
//! counts as a fault: an empty file is one that somebody is just writing.
//!
//! Probes are let through without a password, a token or a limit, and say one word. Where clients need
//! a certificate, a second listener has only them.

pub(super) mod answers;
mod client_certificates;
pub(super) mod door;
mod error;
mod file;
mod passwords;
mod rate;
mod tls;
mod tls_values;
mod tokens;
mod watched;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tracing::{error, info};

use self::file::{Pem, RateLimit, WebFile};
use self::passwords::{Passwords, Verdict};
use self::rate::Bucket;
use self::tls::{CertificateRules, Tls};
use self::tokens::Tokens;
use self::watched::Stamps;
use crate::core::input::SourceHealth;
use crate::core::model::{SourceId, SourceState};
use crate::errors::chain;
use crate::outputs::ReadClock;
use crate::outputs::counters::OutputCounters;

pub use self::error::WebConfigError;

/// How often the files are looked at, at most.
const LOOK_EACH: Duration = Duration::from_secs(1);
/// How long a client waits for that. A file system that does not answer holds up nobody for longer.
const LOOK_FOR: Duration = Duration::from_secs(1);

/// The files that say who may read `/metrics`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtectionFiles {
    /// The web configuration file of Prometheus' exporters.
    pub web_config: Option<PathBuf>,
    /// A file with bearer tokens, one a line.
    pub bearer_tokens: Option<PathBuf>,
}

impl ProtectionFiles {
    /// Whether anybody who reaches the port may read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.web_config.is_none() && self.bearer_tokens.is_none()
    }

    /// Reads the files, and says what protects `/metrics` then.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn check(&self) -> Result<String, WebConfigError> {
        let rules = self.read().rules?;
        Ok(rules.words())
    }

    /// Reads everything. Files that are read are stamped before they are.
    fn read(&self) -> Reading {
        let own = self.web_config.iter().chain(&self.bearer_tokens);
        let own = Stamps::of(own.map(PathBuf::as_path));
        let file = match &self.web_config {
            Some(path) => WebFile::read(path),
            None => Ok(WebFile::default()),
        };
        let file = match file {
            Ok(file) => file,
            Err(fault) => {
                return Reading {
                    stamps: own,
                    rules: Err(fault),
                };
            }
        };
        let tls = file.tls.as_ref();
        let pems = tls.map(|tls| {
            [
                Some(&tls.certificate),
                Some(&tls.key),
                tls.client_ca.as_ref(),
            ]
        });
        let named = pems.into_iter().flatten().flatten().filter_map(Pem::path);
        let named = Stamps::of(named);
        Reading {
            stamps: own.and(named),
            rules: self.rules(file),
        }
    }

    fn rules(&self, file: WebFile) -> Result<Rules, WebConfigError> {
        Ok(Rules {
            tls: file.tls.as_ref().map(tls::server).transpose()?,
            tokens: self
                .bearer_tokens
                .as_deref()
                .map(Tokens::read)
                .transpose()?,
            headers: file.headers,
            users: file.users,
            rate_limit: file.rate_limit,
        })
    }
}

/// What the files were like, and what they say.
struct Reading {
    stamps: Stamps,
    rules: Result<Rules, WebConfigError>,
}

/// What is in force.
#[derive(Default)]
struct Rules {
    tls: Option<Tls>,
    headers: Vec<(HeaderName, HeaderValue)>,
    users: BTreeMap<String, String>,
    tokens: Option<Tokens>,
    rate_limit: Option<RateLimit>,
}

impl Rules {
    fn has_passwords(&self) -> bool {
        !self.users.is_empty()
    }

    /// Whether a request has to say who it is from.
    fn asks_who(&self) -> bool {
        self.has_passwords() || self.tokens.is_some()
    }

    /// What is demanded of clients' certificates.
    fn certificates(&self) -> CertificateRules {
        self.tls
            .as_ref()
            .map(|tls| tls.certificates)
            .unwrap_or_default()
    }

    /// Refuses rules that would leave open what these protect.
    fn stay_closed(&self, next: &Self) -> Result<(), WebConfigError> {
        let what = if self.tls.is_some() && next.tls.is_none() {
            "TLS"
        } else if self.asks_who() && !next.asks_who() {
            "a password or a token"
        } else if let Some(what) = self.certificates().weakened_by(next.certificates()) {
            what
        } else {
            return Ok(());
        };
        Err(WebConfigError::Unprotected { what })
    }

    fn words(&self) -> String {
        let parts = [
            self.tls.is_some().then_some("TLS"),
            self.certificates()
                .is_mandatory
                .then_some("client certificates"),
            self.has_passwords().then_some("passwords"),
            self.tokens.is_some().then_some("bearer tokens"),
            self.rate_limit.is_some().then_some("a rate limit"),
        ];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        match parts.is_empty() {
            true => "open to everybody who reaches the port".to_owned(),
            false => parts.join(", "),
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// It is answered.
    Yes,
    /// Nobody who may read has sent it.
    No,
    /// Too many passwords are being checked.
    Busy,
}

/// When the files were looked at last, and what they were like.
struct Looked {
    at: Instant,
    stamps: Stamps,
}

/// Decides who may read.
pub struct Guard {
    files: ProtectionFiles,
    rules: Mutex<Arc<Rules>>,
    looked: Arc<tokio::sync::Mutex<Looked>>,
    passwords: Arc<Passwords>,
    bucket: Mutex<Option<Bucket>>,
    counters: Arc<OutputCounters>,
    report: Option<Report>,
}

/// Where the state of the output goes.
pub struct Report {
    /// Takes the state.
    pub health: mpsc::Sender<SourceHealth>,
    /// The time now.
    pub clock: ReadClock,
    /// The address that is listened on.
    pub place: Arc<str>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// If one of them cannot be used: an agent that is to be protected does not start without.
    pub fn read(
        files: ProtectionFiles,
        counters: Arc<OutputCounters>,
    ) -> Result<Self, WebConfigError> {
        let Reading { stamps, rules } = files.read();
        let rules = rules?;
        info!(protection = rules.words(), "/metrics is protected");
        Ok(Self::with(files, counters, stamps, rules))
    }

    /// A guard that lets everybody in.
    #[must_use]
    pub fn open(counters: Arc<OutputCounters>) -> Self {
        let files = ProtectionFiles::default();
        Self::with(files, counters, Stamps::default(), Rules::default())
    }

    fn with(
        files: ProtectionFiles,
        counters: Arc<OutputCounters>,
        stamps: Stamps,
        rules: Rules,
    ) -> Self {
        Self {
            files,
            bucket: Mutex::new(rules.rate_limit.map(Bucket::new)),
            rules: Mutex::new(Arc::new(rules)),
            looked: Arc::new(tokio::sync::Mutex::new(Looked {
                at: Instant::now(),
                stamps,
            })),
            passwords: Arc::new(Passwords::new()),
            counters,
            report: None,
        }
    }

    /// The same, and its state is told.
    #[must_use]
    pub fn reporting(mut self, report: Report) -> Self {
        self.report = Some(report);
        self
    }

    fn tell(&self, state: SourceState) {
        let Some(report) = &self.report else {
            return;
        };
        // One that finds no room is told with the next change. A state of this output changes with a
        // file, and is counted beside this.
        let _ = report.health.try_send(SourceHealth {
            source: SourceId::Prometheus,
            state,
            since: (report.clock)().boot,
            place: Arc::clone(&report.place),
        });
    }

    /// Whether anything protects `/metrics`.
    pub(super) fn is_on(&self) -> bool {
        !self.files.is_empty()
    }

    /// What is in force now, after a look at the files if the last one is a while ago.
    async fn rules(self: &Arc<Self>) -> Arc<Rules> {
        if self.is_on()
            // Whoever finds somebody else looking takes what is in force.
            && let Ok(looked) = Arc::clone(&self.looked).try_lock_owned()
            && looked.at.elapsed() >= LOOK_EACH
        {
            let guard = Arc::clone(self);
            let look = spawn_blocking(move || guard.look(looked));
            let _ = timeout(LOOK_FOR, look).await;
        }
        Arc::clone(&lock(&self.rules))
    }

    /// Looks whether the files have changed, and reads them anew then. The lock goes with it, so that
    /// there is one look at a time, however long it takes.
    fn look(&self, mut looked: OwnedMutexGuard<Looked>) {
        looked.at = Instant::now();
        if looked.stamps.are_true() {
            return;
        }
        let Reading { stamps, rules } = self.files.read();
        looked.stamps = stamps;
        let before = Arc::clone(&lock(&self.rules));
        let rules = rules.and_then(|next| before.stay_closed(&next).map(|()| next));
        match rules {
            Ok(rules) => {
                info!(
                    protection = rules.words(),
                    "the files that protect /metrics have changed and are in force"
                );
                self.counters.web_config_applied.add(1);
                self.limit(rules.rate_limit);
                *lock(&self.rules) = Arc::new(rules);
                self.tell(SourceState::Up);
            }
            Err(fault) => {
                let reason = chain(&fault);
                error!(
                    %reason,
                    "the files that protect /metrics have changed and cannot be used; what was in force stays in force"
                );
                self.counters.web_config_failed.add(1);
                self.tell(SourceState::Down {
                    class: fault.class().into(),
                    reason: format!("{reason}; what was in force stays in force").into(),
                    next_retry: None,
                });
            }
        }
    }

    /// Puts another limit of requests in force. One that stays the same keeps what it has counted.
    fn limit(&self, limit: Option<RateLimit>) {
        let mut bucket = lock(&self.bucket);
        if bucket.as_ref().map(Bucket::limit) != limit {
            *bucket = limit.map(Bucket::new);
        }
    }

    /// Takes a token of the rate limit.
    fn may_ask(&self) -> bool {
        lock(&self.bucket).as_mut().is_none_or(Bucket::take)
    }

    /// Whether a request with these headers is from somebody who may read.
    async fn admits(
        &self,
        rules: &Rules,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Admission {
        if !rules.asks_who() {
            return Admission::Yes;
        }
        let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let Some((scheme, shown)) = shown.and_then(scheme_of) else {
            return Admission::No;
        };
        if let Some(tokens) = &rules.tokens
            && scheme.eq_ignore_ascii_case(b"bearer")
        {
            return match tokens.contain(shown) {
                true => Admission::Yes,
                false => Admission::No,
            };
        }
        if !rules.has_passwords() || !scheme.eq_ignore_ascii_case(b"basic") {
            return Admission::No;
        }
        let Ok(shown) = STANDARD.decode(shown) else {
            return Admission::No;
        };
        let Some(colon) = shown.iter().position(|byte| *byte == b':') else {
            return Admission::No;
        };
        let (name, password) = (&shown[..colon], &shown[colon + 1..]);
        let checked = self.passwords.check(&rules.users, name, password, address);
        match checked.await {
            Verdict::Right => Admission::Yes,
            Verdict::Wrong => Admission::No,
            Verdict::Busy => Admission::Busy,
        }
    }
}

/// The scheme of an `Authorization` header and what follows it.
fn scheme_of(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    Some((&value[..space], &value[space + 1..]))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a web configuration file and a file of tokens.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let path = std::path::Path::new("/etc/fuzz/web.yml");
    if let Ok(file) = WebFile::parse(&text, path)
        && let Some(RateLimit { interval, .. }) = file.rate_limit
    {
        assert!(!interval.is_zero(), "a limit without an interval");
    }
    if let Ok(tokens) = Tokens::parse(&text) {
        assert!(!tokens.contain(b""), "nothing is no token");
    }
}

#[cfg(test)]
#[path = "web/tests.rs"]
mod tests;
