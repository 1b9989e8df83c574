//! The web configuration file of Prometheus' exporters, held against node_exporter, which reads the
//! same file, against promtool, and with a real Prometheus that scrapes through it.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gpuacct::core::model::Clock;
use gpuacct::core::snapshot::Snapshot;
use gpuacct::outputs::counters::OutputCounters;
use gpuacct::outputs::prometheus::{Guard, Listeners, ProtectionFiles};
use gpuacct::published::Published;
use gpuacct_tests::agent;
use gpuacct_tests::daemon::Daemon;
use gpuacct_tests::endpoint;
use gpuacct_tests::http;
use gpuacct_tests::prometheus::Prometheus;
use gpuacct_tests::requirement::require;
use gpuacct_tests::web::{
    Authority, Client, Identity, NodeExporter, Purpose, alert_to_tls11, newest, promtool,
};
use rustls::AlertDescription;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
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
        let (metrics, address) = endpoint::bound(&runtime);
        let (probes_alone, probes) = endpoint::bound(&runtime);
        let listeners = Listeners {
            metrics,
            probes: Some(probes_alone),
        };
        let published = Published {
            books: Snapshot {
                sequence: 1,
                ..Snapshot::default()
            },
            ..Published::default()
        };
        let published = watch::channel(Arc::new(published)).1;
        let exposition = endpoint::exposition(published, &counters, Clock::default());
        endpoint::serve(&runtime, listeners, exposition, guard);
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
        // rustls looks for what TLS 1.2 would need before it looks at the version.
        let alert = alert_to_tls11(server).expect("it answers");
        let refusals = [
            AlertDescription::ProtocolVersion,
            AlertDescription::HandshakeFailure,
        ];
        assert!(refusals.contains(&alert), "{alert:?}");
    }
}

/// What promtool says of a file, and what this endpoint says.
fn verdicts(folder: &Folder, text: &str) -> (Result<(), String>, Result<String, String>) {
    let file = folder.file("web.yml", text);
    let files = ProtectionFiles {
        web_config: Some(file.clone()),
        bearer_tokens: None,
    };
    let found = files.check().map_err(|error| error.to_string());
    (promtool(&file).expect("promtool runs"), found)
}

#[test]
fn promtool_takes_and_refuses_the_same_files() {
    if require(PART, newest("promtool")).is_none() {
        return;
    }
    let folder = Folder::new();
    let other = folder.server();
    other.write(folder.path(), "other").expect("there is room");
    let users = format!("basic_auth_users:\n  prom: {}\n", hash("right"));
    let indented = |pem: &str| pem.replace('\n', "\n    ");
    let inline = format!(
        "tls_server_config:\n  cert: |\n    {}\n  key: |\n    {}\n  client_ca: |\n    {}\n  client_auth_type: RequireAndVerifyClientCert\n",
        indented(&other.certificate),
        indented(&other.key),
        indented(&folder.authority.pem()),
    );
    for (text, is_taken) in [
        (String::new(), true),
        (TLS.to_owned(), true),
        (users.clone(), true),
        (inline, true),
        (
            format!("{TLS}  min_version: TLS12\n  max_version: TLS13\n"),
            true,
        ),
        (
            format!("{TLS}  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n"),
            true,
        ),
        (
            format!("{TLS}  curve_preferences: [X25519, CurveP256, CurveP384]\n"),
            true,
        ),
        (format!("{TLS}  prefer_server_cipher_suites: false\n"), true),
        (format!("{TLS}http_server_config:\n  http2: false\n"), true),
        (
            "http_server_config:\n  headers:\n    X-Frame-Options: sameorigin\n".to_owned(),
            true,
        ),
        ("rate_limit:\n  interval: 1s\n  burst: 5\n".to_owned(), true),
        (
            "tls_server_config:\n  cert_file: server.crt\n".to_owned(),
            false,
        ),
        (
            "tls_server_config:\n  cert_file: server.crt\n  key_file: other.key\n".to_owned(),
            false,
        ),
        (
            "tls_server_config:\n  cert_file: absent.crt\n  key_file: server.key\n".to_owned(),
            false,
        ),
        (
            format!(
                "{TLS}  client_ca_file: absent.crt\n  client_auth_type: RequireAndVerifyClientCert\n"
            ),
            false,
        ),
        (format!("{TLS}  client_ca_file: ca.crt\n"), false),
        (format!("{TLS}  client_auth_type: Always\n"), false),
        (format!("{TLS}  min_version: SSL3\n"), false),
        (format!("{TLS}  cipher_suites: [TLS_NONE]\n"), false),
        (format!("{TLS}  curve_preferences: [CurveP1]\n"), false),
        (format!("{TLS}  certificate: x\n"), false),
        ("basic_auth_users:\n  prom: plain\n".to_owned(), false),
        (
            "http_server_config:\n  headers:\n    X-Frame-Options: allow\n".to_owned(),
            false,
        ),
        (
            "http_server_config:\n  headers:\n    Server: x\n".to_owned(),
            false,
        ),
        ("rate_limit:\n  interval: soon\n".to_owned(), false),
        ("unknown: 1\n".to_owned(), false),
        ("tls_server_config: [\n".to_owned(), false),
    ] {
        let (expected, found) = verdicts(&folder, &text);
        assert_eq!(expected.is_ok(), is_taken, "{text}\n{expected:?}");
        assert_eq!(found.is_ok(), is_taken, "{text}\n{found:?}");
    }
    // What promtool takes, and rustls or this server cannot honour. Each is an error with its key. The
    // last is one in exporter-toolkit, too, since it learnt that these names would be ignored.
    for (text, key) in [
        (
            format!("{TLS}  min_version: TLS10\n"),
            "tls_server_config.min_version",
        ),
        (
            format!("{TLS}  max_version: TLS11\n  min_version: TLS11\n"),
            "tls_server_config.min_version",
        ),
        (
            format!("{TLS}  max_version: TLS12\n  min_version: TLS13\n"),
            "tls_server_config.min_version",
        ),
        (
            format!("{TLS}  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]\n"),
            "tls_server_config.cipher_suites",
        ),
        (
            format!("{TLS}  curve_preferences: [CurveP521]\n"),
            "tls_server_config.curve_preferences",
        ),
        (
            format!("{TLS}  client_auth_type: RequireAndVerifyClientCert\n"),
            "tls_server_config.client_auth_type",
        ),
        (
            format!("{TLS}  client_ca: junk\n  client_auth_type: RequireAndVerifyClientCert\n"),
            "tls_server_config.client_ca",
        ),
        (
            format!("{TLS}http_server_config:\n  http2: true\n"),
            "http_server_config.http2",
        ),
        (
            format!("{TLS}  client_allowed_sans: [a]\n"),
            "tls_server_config.client_allowed_sans",
        ),
    ] {
        let (expected, found) = verdicts(&folder, &text);
        assert_eq!(expected, Ok(()), "{text}");
        let found = found.expect_err(&text);
        assert!(found.starts_with(&format!("{key}:")), "{text}\n{found}");
    }
}

#[test]
fn prometheus_scrapes_with_a_password_a_certificate_and_a_token() {
    let Some(program) = require(PART, newest("prometheus")) else {
        return;
    };
    let folder = Folder::new();
    let at = |name: &str| folder.path().join(name);
    folder
        .client(&["prometheus"])
        .write(folder.path(), "client")
        .expect("there is room");
    let users = format!("basic_auth_users:\n  prom: {}\n", hash("right"));
    let with_password = Endpoint::of(&folder.file("password.yml", &format!("{TLS}{users}")));
    let certificates = format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n  client_allowed_sans: [prometheus]\n"
    );
    let with_certificate = Endpoint::of(&folder.file("certificate.yml", &certificates));
    let with_token = Endpoint::serve(ProtectionFiles {
        web_config: Some(folder.file("tls.yml", TLS)),
        bearer_tokens: Some(folder.file("tokens", "old-token\nnew-token\n")),
    });
    let tls = json!({"ca_file": at("ca.crt"), "server_name": "localhost"});
    let mut with_client = tls.clone();
    with_client["cert_file"] = json!(at("client.crt"));
    with_client["key_file"] = json!(at("client.key"));
    let job =
        |name: &str, endpoint: &Endpoint, tls: &serde_json::Value, more: serde_json::Value| {
            let mut job = json!({
                "job_name": name,
                "scheme": "https",
                "tls_config": tls,
                "static_configs": [{"targets": [endpoint.address]}],
            });
            for (key, value) in more.as_object().into_iter().flatten() {
                job[key] = value.clone();
            }
            job
        };
    let password =
        |password: &str| json!({"basic_auth": {"username": "prom", "password": password}});
    let config = json!({
        "global": {"scrape_interval": "300ms", "scrape_timeout": "300ms"},
        "scrape_configs": [
            job("password", &with_password, &tls, password("right")),
            job("wrong-password", &with_password, &tls, password("wrong")),
            job("certificate", &with_certificate, &with_client, json!({})),
            job("no-certificate", &with_certificate, &tls, json!({})),
            job("token", &with_token, &tls, json!({"authorization": {"credentials": "new-token"}})),
            job("no-token", &with_token, &tls, json!({})),
        ],
    });
    let interval = Duration::from_millis(300);
    let prometheus = Prometheus::start_with(&program, folder.path(), &config, interval)
        .expect("it takes the configuration");
    prometheus
        .wait_for_any("count(up == 1) == 3 and count(up) == 6", PATIENCE)
        .expect("three are up");
    let up = prometheus.query("up == 1").expect("it answers");
    let mut jobs: Vec<&str> = up.iter().map(|up| up.labels["job"].as_str()).collect();
    jobs.sort_unstable();
    assert_eq!(jobs, ["certificate", "password", "token"]);
    for (endpoint, reason) in [
        (
            &with_password,
            &with_password.counters.metrics_refused.unauthorized,
        ),
        (
            &with_certificate,
            &with_certificate.counters.metrics_refused.handshake,
        ),
        (
            &with_token,
            &with_token.counters.metrics_refused.unauthorized,
        ),
    ] {
        assert!(reason.get() > 0, "{}", endpoint.address);
    }
}

#[test]
fn a_certificate_is_replaced_without_a_failed_scrape() {
    let Some(program) = require(PART, newest("prometheus")) else {
        return;
    };
    let folder = Folder::new();
    let at = |name: &str| folder.path().join(name);
    // A mounted Secret: the files are links into the folder that `..data` leads to.
    let generation = |name: &str| {
        fs::create_dir(at(name)).expect("there is room");
        folder
            .server()
            .write(&at(name), "tls")
            .expect("there is room");
        let link = at("..tmp");
        symlink(name, &link).expect("there is room");
        fs::rename(link, at("..data")).expect("it can be moved");
    };
    generation("..first");
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), at(name)).expect("there is room");
    }
    let file = folder.file(
        "web.yml",
        "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n",
    );
    let endpoint = Endpoint::of(&file);
    let config = json!({
        // A scrape that a busy machine delays has not failed.
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{
            "job_name": "gpuacct",
            "scheme": "https",
            "tls_config": {"ca_file": at("ca.crt"), "server_name": "localhost"},
            "static_configs": [{"targets": [endpoint.address]}],
        }],
    });
    let interval = Duration::from_secs(1);
    let prometheus = Prometheus::start_with(&program, folder.path(), &config, interval)
        .expect("it takes the configuration");
    prometheus.wait_for_scrape(PATIENCE).expect("it scrapes");
    let client = Client {
        tls: Some(&folder.authority),
        ..Client::default()
    };
    let first = client
        .certificate_of(endpoint.address)
        .expect("it is shown");
    generation("..second");
    let deadline = Instant::now() + PATIENCE;
    // Each of these scrapes has a connection of its own, so that each sees the certificate of its time.
    loop {
        assert_eq!(
            client.ask(endpoint.address).expect("it answers").code(),
            200
        );
        if client
            .certificate_of(endpoint.address)
            .expect("it is shown")
            != first
        {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the certificate stays the old one"
        );
    }
    assert_eq!(endpoint.counters.web_config_applied.get(), 1);
    assert_eq!(endpoint.counters.metrics_refused.handshake.get(), 0);
    let before = prometheus
        .query("count_over_time(up[1m])")
        .expect("it answers")[0]
        .value;
    prometheus
        .wait_for("count_over_time(up[1m])", PATIENCE, |found| {
            found.iter().any(|scrapes| scrapes.value > before + 3.0)
        })
        .expect("it goes on scraping");
    let worst = prometheus
        .query("min_over_time(up[1m])")
        .expect("it answers");
    assert!(worst[0].value > 0.5, "no scrape has failed: {worst:?}");
}

#[test]
fn probes_need_no_certificate_and_no_password_and_say_one_word() {
    let folder = Folder::new();
    let client = folder.client(&["prometheus"]);
    let text = format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\nbasic_auth_users:\n  prom: {}\nrate_limit:\n  interval: 1h\n  burst: 1\n",
        hash("right")
    );
    let endpoint = Endpoint::of(&folder.file("web.yml", &text));
    let ask = |server, tls, identity, path| {
        let client = Client {
            tls,
            identity,
            path,
            ..Client::default()
        };
        client.ask(server).expect("it answers").code()
    };
    let tls = Some(&folder.authority);
    for path in ["/healthz", "/readyz"] {
        // As the kubelet asks: in the clear, on the port of the probes.
        assert_eq!(ask(endpoint.probes, None, None, path), 200, "{path}");
        assert_eq!(
            ask(endpoint.address, tls, Some(&client), path),
            200,
            "{path}"
        );
        assert_eq!(ask(endpoint.address, tls, None, path), 0, "{path}");
    }
    for path in ["/metrics", "/"] {
        assert_eq!(ask(endpoint.probes, None, None, path), 404, "{path}");
    }
    assert_eq!(ask(endpoint.address, tls, Some(&client), "/metrics"), 401);
    assert_eq!(ask(endpoint.address, tls, Some(&client), "/metrics"), 429);
    assert_eq!(ask(endpoint.address, tls, Some(&client), "/readyz"), 200);
    let (_, body) =
        http::get(&format!("http://{}/readyz", endpoint.probes), "*/*").expect("it answers");
    assert_eq!(body, "ready\n", "reasons are for those who may read");
}

#[test]
fn guesses_do_not_keep_out_a_scraper_that_has_been_let_in() {
    let folder = Folder::new();
    // As dear as htpasswd makes it.
    let hash = bcrypt::hash("right", 10).expect("it can be hashed");
    let endpoint =
        Endpoint::of(&folder.file("web.yml", &format!("basic_auth_users:\n  prom: {hash}\n")));
    let server = endpoint.address;
    let ask = move |name: &str, password: &str| {
        let client = Client {
            authorization: basic(name, password),
            ..Client::default()
        };
        client.ask(server).map(|answer| answer.code())
    };
    assert_eq!(ask("prom", "right").expect("it answers"), 200);
    let stop = Arc::new(AtomicBool::new(false));
    let guessers: Vec<_> = (0..6)
        .map(|guesser| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut guess = 0;
                while !stop.load(Ordering::Relaxed) {
                    guess += 1;
                    // All are from one address, so that some are closed for others.
                    if let Ok(code) = ask("prom", &format!("{guesser} {guess}")) {
                        assert!([0, 401, 503].contains(&code), "{code}");
                    }
                }
            })
        })
        .collect();
    let refused = &endpoint.counters.metrics_refused;
    let deadline = Instant::now() + PATIENCE;
    let mut scrapes = 0;
    while refused.busy.get() == 0 || refused.unauthorized.get() < 3 || scrapes < 50 {
        assert_eq!(ask("prom", "right").expect("it answers"), 200);
        scrapes += 1;
        assert!(Instant::now() < deadline, "nobody was turned away");
    }
    stop.store(true, Ordering::Relaxed);
    for guesser in guessers {
        guesser.join().expect("every guess was refused");
    }
}

#[test]
fn a_handshake_that_is_never_finished_is_closed() {
    let folder = Folder::new();
    let endpoint = Endpoint::of(&folder.file("web.yml", TLS));
    let mut silent = TcpStream::connect(endpoint.address).expect("it listens");
    let mut slow = TcpStream::connect(endpoint.address).expect("it listens");
    slow.write_all(&[0x16, 3, 1, 2, 0]).expect("it listens");
    for client in [&mut silent, &mut slow] {
        client.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut end = Vec::new();
        client.read_to_end(&mut end).expect("it is closed");
    }
    assert_eq!(endpoint.counters.metrics_connections.slow_header.get(), 2);
}

#[test]
fn an_agent_shows_a_broken_file_and_does_not_start_with_one() {
    let Some(binary) = require("agent", agent::binary()) else {
        return;
    };
    let folder = Folder::new();
    let address = http::free_address().expect("loopback has free ports");
    let socket = folder.path().join("agent.sock");
    let web = folder.file(
        "web.yml",
        "tls_server_config:\n  cert_file: absent\n  key_file: absent\n",
    );
    let config = folder.file(
        "gpuacct.toml",
        &format!(
            "[prometheus]\nlisten = \"{address}\"\nweb_config_file = {web:?}\n\
             [socket]\npath = {socket:?}\n[store]\nenabled = false\n\
             [docker]\nenabled = false\n[cri]\nenabled = false\n[pod_resources]\nenabled = false\n"
        ),
    );
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .env("GPUACCT_CONFIG", &config)
            .env("GPUACCT_SOCKET", &socket)
            .stdin(Stdio::null());
        command
    };
    let refused = command(&["agent"]).output().expect("it can be run");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("tls_server_config.cert_file: cannot read"),
        "{said}"
    );
    let checked = command(&["check"]).output().expect("it can be run");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("protection of /metrics"), "{said}");
    assert!(
        said.contains("tls_server_config.cert_file: cannot read"),
        "{said}"
    );

    fs::write(&web, TLS).expect("there is room");
    let log = folder.path().join("agent.log");
    let _running = Daemon::start("agent", &mut command(&["agent"]), &log).expect("it can be run");
    let client = Client {
        tls: Some(&folder.authority),
        ..Client::default()
    };
    let state = || {
        let status = command(&["status", "-o", "json"])
            .output()
            .expect("it can be run");
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        let sources = status["snapshot"]["sources"].as_array()?.clone();
        let found = sources
            .into_iter()
            .find(|of| of["source"] == "prometheus")?;
        Some(found)
    };
    let wait_for = |what: &str, holds: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}: {:?}", state());
            thread::sleep(Duration::from_millis(50));
        }
    };
    let scraped = || client.ask(address).is_ok_and(|answer| answer.code() == 200);
    let is = |wanted: &str| state().is_some_and(|state| state["state"] == wanted);
    wait_for("it serves", &scraped);
    wait_for("it is up", &|| is("up"));
    fs::write(&web, "tls_server_config: [").expect("there is room");
    wait_for("the fault is shown", &|| {
        assert!(scraped(), "what was in force stays in force");
        is("down")
    });
    assert_eq!(state().expect("there is one")["class"], "web_config");
    fs::write(&web, TLS).expect("there is room");
    wait_for("it is up again", &|| scraped() && is("up"));
}
