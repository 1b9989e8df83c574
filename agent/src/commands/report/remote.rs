//! The flags of a report from a store of metrics.

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;

use super::super::complaint::complain;
use super::super::environment::path;
use super::super::progress::Progress;
use crate::config::Span;
use crate::receiver::{TlsFileNames, TlsFiles};
use crate::report::fleet::{self, FleetError};
use crate::report::promql::{Access, Store};
use crate::report::tally::{Question, Report};

/// A store of metrics, and how it is reached.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "A store of metrics, for a whole fleet")]
pub(super) struct Remote {
    /// Read a store that is asked in PromQL instead of ledgers: the URL below which it has /api/v1
    #[arg(long, value_name = "URL", conflicts_with = "store")]
    from: Option<String>,
    /// Only series with these labels, such as '{cluster="a"}'
    #[arg(
        long,
        value_name = "MATCHERS",
        requires = "from",
        default_value = "",
        hide_default_value = true
    )]
    selector: String,
    /// The label of the series that names their cluster, for --by cluster and prices by cluster
    /// [default: cluster or k8s_cluster_name]
    #[arg(long, value_name = "NAME", requires = "from")]
    cluster_label: Option<String>,
    /// A header of every request; several are possible
    #[arg(long, value_name = "NAME=VALUE", requires = "from", value_parser = header)]
    header: Vec<(String, String)>,
    /// A header whose value is in a file; several are possible
    #[arg(long, value_name = "NAME=FILE", requires = "from", value_parser = header)]
    header_file: Vec<(String, String)>,
    /// A file with the bearer token
    #[arg(long, value_name = "FILE", requires = "from", conflicts_with = "user", value_parser = path())]
    token_file: Option<PathBuf>,
    /// The user of basic authentication
    #[arg(long, value_name = "NAME", requires_all = ["from", "password_file"])]
    user: Option<String>,
    /// A file with that user's password
    #[arg(long, value_name = "FILE", requires = "user", value_parser = path())]
    password_file: Option<PathBuf>,
    /// PEM with the authorities that may have signed the store's certificate [default: the system's]
    #[arg(long, value_name = "FILE", requires = "from", value_parser = path())]
    ca: Option<PathBuf>,
    /// PEM with a client certificate
    #[arg(long, value_name = "FILE", requires_all = ["from", "key"], value_parser = path())]
    cert: Option<PathBuf>,
    /// PEM with its key
    #[arg(long, value_name = "FILE", requires = "cert", value_parser = path())]
    key: Option<PathBuf>,
    /// How long one request to the store may take
    #[arg(long, value_name = "D", requires = "from", default_value = "2m")]
    timeout: Span,
}

impl std::fmt::Debug for Remote {
    /// Without what may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let from = self.from.as_deref().map(crate::secrets::shown);
        f.debug_struct("Remote")
            .field("from", &from)
            .field("selector", &self.selector)
            .finish_non_exhaustive()
    }
}

/// A name and what follows it. A value that is wrong is not repeated: it may be a secret.
fn header(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = parts.ok_or("expected a name, = and what follows it")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Remote {
    /// Whether a store is to be read.
    pub(super) const fn is_chosen(&self) -> bool {
        self.from.is_some()
    }

    /// The report, or how to exit after the error that was said.
    pub(super) async fn report(
        &self,
        question: &Question,
        now: Timestamp,
    ) -> Result<Report, ExitCode> {
        let progress = Progress::start("reading the store");
        let made = self.read(question, now).await;
        drop(progress);
        made.map_err(|error| complain(&error, code_of(&error)))
    }

    async fn read(&self, question: &Question, now: Timestamp) -> Result<Report, FleetError> {
        let files = self.header_file.iter();
        let access = Access {
            url: self.from.clone().unwrap_or_default(),
            selector: self.selector.clone(),
            headers: self.header.clone(),
            header_files: files
                .map(|(name, path)| (name.clone(), path.into()))
                .collect(),
            token_file: self.token_file.clone(),
            user: self.user.clone().zip(self.password_file.clone()),
            tls: TlsFiles {
                ca_file: self.ca.clone(),
                cert_file: self.cert.clone(),
                key_file: self.key.clone(),
                server_name: None,
                names: TlsFileNames {
                    ca: "--ca",
                    cert: "--cert",
                    key: "--key",
                },
            },
            timeout: self.timeout.0,
        };
        let cluster = self.cluster_label.as_deref();
        fleet::make(&mut Store::new(access)?, question, cluster, now).await
    }
}

/// The exit code of an error.
const fn code_of(error: &FleetError) -> u8 {
    match error {
        FleetError::Store(error) if error.is_usage() => 2,
        FleetError::Store(_)
        | FleetError::Lacks { .. }
        | FleetError::Contradiction { .. }
        | FleetError::OwnNamespace { .. } => 1,
        FleetError::Nothing { .. }
        | FleetError::Future(_)
        | FleetError::NoPodLabels { .. }
        | FleetError::LacksPodLabels { .. }
        | FleetError::AllocatedPrice
        | FleetError::Zone(_)
        | FleetError::Money(_) => 2,
    }
}
