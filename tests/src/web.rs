//! What tests of the web configuration file share: certificates, a client that says what it shows, and
//! exporters that read the same file.
//!
//! node_exporter is the oracle: it is built on exporter-toolkit, whose file this is. It comes from
//! Debian's newest release, as do promtool and Prometheus beside it.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, Stream};

use crate::daemon::Daemon;
use crate::http;
use crate::requirement::fetched;

/// The environment variable that names where the newest Prometheus is: a tree with `usr/bin/prometheus`,
/// `usr/bin/promtool` and `usr/bin/prometheus-node-exporter` in it, as `cargo xtask test` unpacks it.
pub const NEWEST_PROMETHEUS: &str = "GPUACCT_NEWEST_PROMETHEUS";
/// The same of the release between the distribution's and the newest, without node_exporter.
pub const LATER_PROMETHEUS: &str = "GPUACCT_LATER_PROMETHEUS";
/// How long an answer may take. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program of that tree.
///
/// # Errors
/// If there is none.
pub fn newest(program: &str) -> Result<PathBuf> {
    program_in(NEWEST_PROMETHEUS, program)
}

/// A program of the release in between.
///
/// # Errors
/// If there is none.
pub fn later(program: &str) -> Result<PathBuf> {
    program_in(LATER_PROMETHEUS, program)
}

fn program_in(variable: &str, program: &str) -> Result<PathBuf> {
    let program = fetched(variable)?.join("usr/bin").join(program);
    ensure!(program.is_file(), "{} is not there", program.display());
    Ok(program)
}

/// Who signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A server.
    Server,
    /// A client.
    Client,
}

impl Authority {
    /// An authority called `name`.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let common_name = rcgen::DnType::CommonName;
        params.distinguished_name.push(common_name, name);
        let key = KeyPair::generate()?;
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    /// Its own certificate, as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with these names, of which `edit` changes what it likes.
    ///
    /// # Errors
    /// If a name is none.
    pub fn signs(
        &self,
        purpose: Purpose,
        names: &[&str],
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![match purpose {
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        edit(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// The same, valid until the end of 2020.
    ///
    /// # Errors
    /// As [`Authority::signs`].
    pub fn signs_expired(&self, purpose: Purpose, names: &[&str]) -> Result<Identity> {
        self.signs(purpose, names, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 12, 31);
        })
    }
}

impl Identity {
    /// Writes it into two files: `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        for (kind, text) in [("crt", &self.certificate), ("key", &self.key)] {
            let file = folder.join(format!("{name}.{kind}"));
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}

/// What a client says.
#[derive(Clone, Debug, Default)]
pub struct Client<'a> {
    /// Whether it speaks TLS, and by whose certificate it knows the server.
    pub tls: Option<&'a Authority>,
    /// The certificate that it shows.
    pub identity: Option<&'a Identity>,
    /// Its `Authorization`.
    pub authorization: Option<String>,
    /// What it asks for; empty for `/metrics`.
    pub path: &'a str,
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// HTTP.
    Http {
        /// The code.
        code: u16,
        /// Headers that say how access is decided, in order.
        headers: Vec<String>,
        /// The body; left out if the code is 200.
        body: String,
    },
    /// The connection ended without an answer: by an alert, or by being closed.
    Refused,
}

impl Answer {
    /// Its code; 0 if the connection was refused.
    #[must_use]
    pub const fn code(&self) -> u16 {
        match self {
            Self::Http { code, .. } => *code,
            Self::Refused => 0,
        }
    }
}

/// Headers that are compared.
const COMPARED: [&str; 8] = [
    "content-security-policy",
    "content-type",
    "strict-transport-security",
    "www-authenticate",
    "x-content-type-options",
    "x-frame-options",
    "x-xss-protection",
    "retry-after",
];

impl Client<'_> {
    /// Asks a server once, over a connection of its own.
    ///
    /// # Errors
    /// If the server is not there, does not end its answer in time, or says what is not HTTP.
    pub fn ask(&self, server: SocketAddr) -> Result<Answer> {
        let mut tcp = TcpStream::connect(server).with_context(|| format!("no {server}"))?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let path = match self.path {
            "" => "/metrics",
            path => path,
        };
        let authorization = self.authorization.as_ref();
        let authorization =
            authorization.map_or_else(String::new, |value| format!("Authorization: {value}\r\n"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: exporter\r\nConnection: close\r\n{authorization}\r\n"
        );
        let mut answer = Vec::new();
        let asked = match self.tls {
            None => tcp
                .write_all(request.as_bytes())
                .and_then(|()| tcp.read_to_end(&mut answer)),
            Some(authority) => {
                let mut connection = self.connection(authority)?;
                let mut stream = Stream::new(&mut connection, &mut tcp);
                stream
                    .write_all(request.as_bytes())
                    .and_then(|()| stream.read_to_end(&mut answer))
            }
        };
        match asked {
            Ok(_) if !answer.is_empty() => read(&answer),
            // A server may close without the goodbye of TLS after a whole answer.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {
                read(&answer)
            }
            Ok(_) => Ok(Answer::Refused),
            Err(error) if is_refusal(&error) => Ok(Answer::Refused),
            Err(error) => Err(error).with_context(|| format!("{server} to {self:?}")),
        }
    }

    /// The certificate that a server shows.
    ///
    /// # Errors
    /// If there is no handshake.
    pub fn certificate_of(&self, server: SocketAddr) -> Result<Vec<u8>> {
        let authority = self.tls.context("a client that speaks TLS")?;
        let mut connection = self.connection(authority)?;
        let mut tcp = TcpStream::connect(server)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        let shown = connection.peer_certificates().and_then(<[_]>::first);
        Ok(shown.context("a server shows one")?.to_vec())
    }

    fn connection(&self, authority: &Authority) -> Result<ClientConnection> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(
                    identity.certificate.as_bytes(),
                )?],
                PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?,
            )?,
        };
        let name = ServerName::try_from("localhost")?;
        Ok(ClientConnection::new(Arc::new(config), name)?)
    }
}

/// Whether an error is the server's way of saying no.
fn is_refusal(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(tls, Some(rustls::Error::AlertReceived(_)))
        || matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        )
}

fn read(answer: &[u8]) -> Result<Answer> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("no HTTP: {text:?}"))?;
    let mut lines = head.split("\r\n");
    let code: u16 = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("no HTTP: {head:?}"))?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value));
    let mut headers: Vec<String> = headers
        .filter(|(name, _)| COMPARED.contains(&&**name))
        // What is exposed differs.
        .filter(|(name, _)| code != 200 || name != "content-type")
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    headers.sort();
    Ok(Answer::Http {
        code,
        headers,
        body: match code {
            200 => String::new(),
            _ => body.to_owned(),
        },
    })
}

/// The alert with which a server answers a client that speaks TLS 1.1 and nothing newer.
///
/// # Errors
/// If it answers with anything else.
pub fn alert_to_tls11(server: SocketAddr) -> Result<AlertDescription> {
    // A ClientHello of TLS 1.1, which no library here would still send: version, random, no session,
    // two cipher suites, no compression, the groups and the format of points.
    let mut hello = vec![0x03, 0x02];
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend([0, 4, 0xc0, 0x13, 0xc0, 0x09]);
    hello.extend([1, 0]);
    hello.extend([0, 14, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0]);
    let length = u16::try_from(hello.len())?;
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend((length + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(length.to_be_bytes());
    record.extend(hello);
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&record)?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    ensure!(answer[0] == 0x15, "an alert begins with 0x15: {answer:?}");
    Ok(AlertDescription::from(answer[6]))
}

/// A node_exporter. Ended when dropped.
#[derive(Debug)]
pub struct NodeExporter {
    _daemon: Daemon,
    address: SocketAddr,
}

impl NodeExporter {
    /// Starts one with a web configuration file, in whose folder its log goes.
    ///
    /// # Errors
    /// If there is none, or it does not come up.
    pub fn start(web_config: &Path) -> Result<Self> {
        let address = http::free_address()?;
        let mut command = Command::new(newest("prometheus-node-exporter")?);
        command
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--web.config.file={}", web_config.display()))
            .args(["--collector.disable-defaults", "--collector.uname"]);
        let log = web_config.with_extension("node_exporter.log");
        let mut daemon = Daemon::start("node_exporter", &mut command, &log)?;
        daemon.wait_until_listening(&[address])?;
        Ok(Self {
            _daemon: daemon,
            address,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What promtool says of a web configuration file: nothing, or why it refuses it.
///
/// # Errors
/// If there is no promtool.
pub fn promtool(web_config: &Path) -> Result<Result<(), String>> {
    let output = Command::new(newest("promtool")?)
        .args(["check", "web-config"])
        .arg(web_config)
        .output()
        .context("cannot run promtool")?;
    Ok(match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    })
}
