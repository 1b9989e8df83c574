//! The web configuration file of Prometheus' exporters, held against node_exporter, which reads the
//! same file, against promtool, and with a real Prometheus that scrapes through it.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gpuacct::core::model::{BootTime, Clock, Nanos, WallTime};
use gpuacct::core::snapshot::Snapshot;
use gpuacct::outputs::counters::OutputCounters;
use gpuacct::outputs::instruments::OptIn;
use gpuacct::outputs::prometheus::{
    Exposition, Guard, Listeners, ProtectionFiles, bind, serve_guarded,
};
use gpuacct::published::Published;
use gpuacct_tests::requirement::require;
use gpuacct_tests::web::{
    Answer, Authority, Client, Identity, NodeExporter, Purpose, alert_to_tls11, newest, promtool,
};
use rustls::AlertDescription;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The part that these tests lack if the newest Prometheus is not there.
const PART: &str = "prometheus-new";

/// A folder with certificates, and whoever has signed them.
struct Folder {
    dir: TempDir,
    authority: Authority,
    stranger: Authority,
}

impl Folder {
    fn new() -> Self {
        let folder = Self {
            dir: TempDir::new().expect("there is room"),
            authority: Authority::new("authority").expect("keys can be made"),
            stranger: Authority::new("stranger").expect("keys can be made"),
        };
        let server = folder.server();
        server
            .write(folder.path(), "server")
            .expect("there is room");
        fs::write(folder.path().join("ca.crt"), folder.authority.pem()).expect("there is room");
        folder
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn server(&self) -> Identity {
        let made = self
            .authority
            .signs(Purpose::Server, &["localhost"], |_| {});
        made.expect("it can be signed")
    }

    fn client(&self, names: &[&str]) -> Identity {
        let made = self.authority.signs(Purpose::Client, names, |_| {});
        made.expect("it can be signed")
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.path().join(name);
        fs::write(&file, text).expect("there is room");
        file
    }
}

/// An endpoint in this process.
struct Endpoint {
    address: SocketAddr,
    probes: SocketAddr,
    counters: Arc<OutputCounters>,
    _runtime: Runtime,
}

impl Endpoint {
    fn serve(files: ProtectionFiles) -> Self {
        let runtime = Runtime::new().expect("threads can be had");
        let counters: Arc<OutputCounters> = Arc::default();
        let guard = Guard::read(files, Arc::clone(&counters)).expect("the files can be used");
        let free = || {
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            let listener = runtime.block_on(bind(address)).expect("it is free");
            let address = listener.local_addr().expect("it is bound");
            (listener, address)
        };
        let ((metrics, address), (probes_alone, probes)) = (free(), free());
        let listeners = Listeners {
            metrics,
            probes: Some(probes_alone),
        };
        let clock = || Clock {
            boot: BootTime(0),
            wall: WallTime(0),
        };
        let published = Published {
            books: Snapshot {
                sequence: 1,
                ..Snapshot::default()
            },
            ..Published::default()
        };
        let exposition = Exposition {
            published: watch::channel(Arc::new(published)).1,
            counters: Arc::clone(&counters),
            opt_in: OptIn::default(),
            clock: Arc::new(clock),
            stuck_after: Nanos::from_secs(30),
        };
        let guard = Arc::new(guard);
        runtime.spawn(serve_guarded(
            listeners,
            exposition,
            guard,
            std::future::pending(),
        ));
        Self {
            address,
            probes,
            counters,
            _runtime: runtime,
        }
    }

    fn of(web_config: &Path) -> Self {
        Self::serve(ProtectionFiles {
            web_config: Some(web_config.to_owned()),
            bearer_tokens: None,
        })
    }
}

fn basic(name: &str, password: &str) -> Option<String> {
    let shown = STANDARD.encode(format!("{name}:{password}"));
    Some(format!("Basic {shown}"))
}

fn hash(password: &str) -> String {
    bcrypt::hash(password, 4).expect("it can be hashed")
}

const TLS: &str = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";

/// Asks node_exporter and the agent's endpoint the same, and has the same answers.
fn compare(folder: &Folder, name: &str, text: &str, rows: &[(&str, Client<'_>, u16)]) {
    let file = folder.file(name, text);
    let oracle = NodeExporter::start(&file).expect("it takes the file");
    let endpoint = Endpoint::of(&file);
    let mut wrong = String::new();
    for (what, client, code) in rows {
        let expected = client.ask(oracle.address()).expect("it answers");
        let found = client.ask(endpoint.address).expect("it answers");
        if expected != found || found.code() != *code {
            writeln!(
                wrong,
                "{name}, {what}: expected {code}\n  node_exporter: {expected:?}\n  gpuacct:       {found:?}"
            )
            .expect("a String takes everything");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_file_gives_the_answers_that_node_exporter_gives_to_users() {
    if require(PART, newest("prometheus-node-exporter")).is_none() {
        return;
    }
    let folder = Folder::new();
    let tls = Some(&folder.authority);
    let client = |authorization| Client {
        tls,
        authorization,
        ..Client::default()
    };
    let in_the_clear = Client::default();
    compare(
        &folder,
        "tls.yml",
        TLS,
        &[
            ("over TLS", client(None), 200),
            ("in the clear", in_the_clear.clone(), 400),
            (
                "with a user that nobody asks for",
                client(basic("a", "b")),
                200,
            ),
        ],
    );
    let users = format!(
        "basic_auth_users:\n  prom: {}\n  \"\": {}\n",
        hash("right"),
        hash("nameless")
    );
    let header = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n    X-Content-Type-Options: nosniff\n    X-XSS-Protection: \"1\"\n    Strict-Transport-Security: max-age=60\n    Content-Security-Policy: \"default-src 'none'\"\n";
    let rows = |tls| {
        let client = move |authorization: Option<String>| Client {
            tls,
            authorization,
            ..Client::default()
        };
        let bearer = basic("prom", "right").map(|text| text.replace("Basic", "Bearer"));
        let lower = basic("prom", "right").map(|text| text.replace("Basic", "basic"));
        [
            ("no user", client(None), 401),
            ("wrong user", client(basic("other", "right")), 401),
            ("wrong password", client(basic("prom", "wrong")), 401),
            ("no password", client(basic("prom", "")), 401),
            ("right user", client(basic("prom", "right")), 200),
            ("right user again", client(basic("prom", "right")), 200),
            ("no name", client(basic("", "nameless")), 200),
            ("another scheme", client(bearer), 401),
            ("the scheme in small letters", client(lower), 200),
            ("no base64", client(Some("Basic right".to_owned())), 401),
            (
                "another page",
                Client {
                    path: "/absent",
                    ..client(None)
                },
                401,
            ),
        ]
    };
    compare(&folder, "users.yml", &users, &rows(None));
    compare(
        &folder,
        "tls_users_headers.yml",
        &format!("{TLS}{users}{header}"),
        &rows(tls),
    );
    compare(
        &folder,
        "limit.yml",
        "rate_limit:\n  interval: 1h\n  burst: 2\n",
        &[
            ("the first", in_the_clear.clone(), 200),
            ("the second", in_the_clear.clone(), 200),
            ("one too many", in_the_clear.clone(), 429),
        ],
    );
}

#[test]
fn the_file_gives_the_answers_that_node_exporter_gives_to_certificates() {
    if require(PART, newest("prometheus-node-exporter")).is_none() {
        return;
    }
    let folder = Folder::new();
    let right = folder.client(&["prometheus.monitoring"]);
    let wrong_name = folder.client(&["somebody.else"]);
    let by_address = folder.client(&["10.1.2.3"]);
    let expired = folder
        .authority
        .signs_expired(Purpose::Client, &["prometheus.monitoring"])
        .expect("it can be signed");
    let strange = folder
        .stranger
        .signs(Purpose::Client, &["prometheus.monitoring"], |_| {})
        .expect("it can be signed");
    let of_a_server = folder
        .authority
        .signs(Purpose::Server, &["prometheus.monitoring"], |_| {})
        .expect("it can be signed");
    let shown = [
        ("no certificate", None),
        ("the right one", Some(&right)),
        ("another name", Some(&wrong_name)),
        ("an address", Some(&by_address)),
        ("an expired one", Some(&expired)),
        ("a stranger's", Some(&strange)),
        ("a server's", Some(&of_a_server)),
    ];
    let ca = "  client_ca_file: ca.crt\n";
    let sans = "  client_allowed_sans: [prometheus.monitoring, 10.1.2.3]\n";
    // The codes in the order of `shown`.
    for (kind, more, codes) in [
        ("NoClientCert", String::new(), [200; 7]),
        ("RequestClientCert", String::new(), [200; 7]),
        ("RequestClientCert", ca.to_owned(), [200; 7]),
        (
            "RequireAnyClientCert",
            String::new(),
            [0, 200, 200, 200, 200, 200, 200],
        ),
        (
            "RequireClientCert",
            String::new(),
            [0, 200, 200, 200, 200, 200, 200],
        ),
        (
            "RequireAnyClientCert",
            sans.to_owned(),
            [0, 200, 0, 200, 200, 200, 200],
        ),
        (
            "VerifyClientCertIfGiven",
            ca.to_owned(),
            [200, 200, 200, 200, 0, 0, 0],
        ),
        (
            "RequireAndVerifyClientCert",
            ca.to_owned(),
            [0, 200, 200, 200, 0, 0, 0],
        ),
        (
            "RequireAndVerifyClientCert",
            format!("{ca}{sans}"),
            [0, 200, 0, 200, 0, 0, 0],
        ),
    ] {
        for version in ["TLS12", "TLS13"] {
            let text = format!(
                "{TLS}  client_auth_type: {kind}\n{more}  min_version: {version}\n  max_version: {version}\n"
            );
            let rows: Vec<_> = std::iter::zip(shown, codes)
                .map(|((what, identity), code)| {
                    let client = Client {
                        tls: Some(&folder.authority),
                        identity,
                        ..Client::default()
                    };
                    (what, client, code)
                })
                .collect();
            compare(&folder, &format!("{kind}-{version}.yml"), &text, &rows);
        }
    }
}

#[test]
fn tls_1_1_is_refused_as_node_exporter_refuses_it() {
    if require(PART, newest("prometheus-node-exporter")).is_none() {
        return;
    }
    let folder = Folder::new();
    let file = folder.file("web.yml", TLS);
    let oracle = NodeExporter::start(&file).expect("it takes the file");
    let endpoint = Endpoint::of(&file);
    for server in [oracle.address(), endpoint.address] {
        let alert = alert_to_tls11(server).expect("it answers");
        assert_eq!(alert, AlertDescription::ProtocolVersion);
    }
}
