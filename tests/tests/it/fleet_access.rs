//! `gpuacct report --from` at stores that want to know who asks: TLS with client certificates, passwords and
//! tokens from files.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use gpuacct_tests::certificates::{Authority, Certificate};
use gpuacct_tests::http::free_address;
use gpuacct_tests::nginx::{self, Nginx};
use gpuacct_tests::prometheus::Prometheus;
use gpuacct_tests::requirement::require;
use tempfile::TempDir;

use crate::fleet::{HOUR, base, programs, run, with_past, write_past};

const PASSWORD: &str = "correct-horse";
const TOKEN: &str = "token-of-the-bill";

/// One GPU that is busy for half of an hour.
fn past(base: i64) -> String {
    let mut text = String::new();
    for (name, busy) in [("elapsed", 1), ("busy", 2), ("idle", 2)] {
        text.push_str(&format!("# TYPE gpuacct_gpu_{name}_seconds counter\n"));
        for minute in 0..=120 {
            let (value, at) = (minute * 60 / busy, base + minute * 60);
            let series = format!("gpuacct_gpu_{name}_seconds_total{{gpu_uuid=\"GPU-0\"}}");
            text.push_str(&format!("{series} {value} {at}\n"));
        }
    }
    text + "# EOF\n"
}

/// The files of a client, and what it is asked with.
struct Client {
    dir: TempDir,
    authority: Authority,
    own: Certificate,
}

impl Client {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Authority::new(dir.path(), "authority").unwrap();
        let own = authority.for_name("billing").unwrap();
        Self {
            dir,
            authority,
            own,
        }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        // As editors leave it.
        fs::write(&path, format!("{text}\n")).unwrap();
        path.display().to_string()
    }

    /// The flags of TLS with another authority or without a certificate, if so.
    fn tls(&self, ca: Option<&Path>, has_own: bool) -> Vec<String> {
        let ca = ca.map_or_else(|| self.authority.ca(), PathBuf::from);
        let text = |path: &Path| path.display().to_string();
        let mut flags = vec!["--ca".to_owned(), text(&ca)];
        if has_own {
            flags.extend(["--cert".to_owned(), text(&self.own.cert)]);
            flags.extend(["--key".to_owned(), text(&self.own.key)]);
        }
        flags
    }
}

/// Asks for the first two hours that were written.
fn ask(url: &str, base: i64, flags: &[String], more: &[&str]) -> Output {
    let flags: Vec<&str> = flags
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    let flags = [&flags[..], &["-o", "csv", "--by", "gpu"]].concat();
    run(url, base, base + 2 * HOUR, &flags)
}

fn is_the_bill(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    let csv = String::from_utf8_lossy(&output.stdout);
    assert!(csv.contains(",idle,(none),GPU-0,"), "{csv}");
    let total = csv.lines().find(|line| line.contains(",total,")).unwrap();
    assert!(total.contains(",7200,3600,"), "{csv}");
}

/// It fails, says all of these words, and no secret.
fn says(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
    for secret in [PASSWORD, TOKEN, "wrong-secret"] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn prometheus_behind_tls_client_certificates_and_passwords() {
    for (program, promtool) in programs() {
        let client = Client::new();
        let dir = client.dir.path();
        let base = base();
        write_past(&promtool, dir, &past(base));
        let address = free_address().unwrap();
        let server = client.authority.for_address(address).unwrap();
        let web_config = client.file(
            "web.yml",
            &format!(
                "tls_server_config:\n  cert_file: {}\n  key_file: {}\n  client_ca_file: {}\n  \
                 client_auth_type: RequireAndVerifyClientCert\nbasic_auth_users:\n  bill: {}",
                server.cert.display(),
                server.key.display(),
                client.authority.ca().display(),
                bcrypt::hash(PASSWORD, 4).unwrap()
            ),
        );
        let web_config = Path::new(&web_config);
        let _store = Prometheus::guarded(&program, dir, address, web_config).unwrap();
        let url = format!("https://{address}");
        let right = client.file("password", PASSWORD);
        let wrong = client.file("wrong", "wrong-secret");
        let user =
            |password: &str| ["--user", "bill", "--password-file", password].map(str::to_owned);
        let with = |tls: Vec<String>, password: &str| [tls, user(password).to_vec()].concat();

        is_the_bill(&ask(&url, base, &with(client.tls(None, true), &right), &[]));

        let output = ask(&url, base, &with(client.tls(None, true), &wrong), &[]);
        says(&output, &["status 401", "the store wants to know who asks"]);
        let output = ask(&url, base, &client.tls(None, true), &[]);
        says(&output, &["status 401"]);
        let output = ask(&url, base, &with(client.tls(None, false), &right), &[]);
        says(
            &output,
            &[
                "client certificate",
                "--cert names none",
                "--cert and --key",
            ],
        );
        let other = Authority::new(dir, "other").unwrap();
        let output = ask(
            &url,
            base,
            &with(client.tls(Some(&other.ca()), true), &right),
            &[],
        );
        says(&output, &["no answer from https://", "--ca"]);
        let stranger = other.for_name("stranger").unwrap();
        let flags = [
            "--ca".to_owned(),
            client.authority.ca().display().to_string(),
            "--cert".to_owned(),
            stranger.cert.display().to_string(),
            "--key".to_owned(),
            stranger.key.display().to_string(),
        ];
        let output = ask(&url, base, &with(flags.to_vec(), &right), &[]);
        says(&output, &["no answer from https://"]);
        // In the clear it is not there.
        let plain = url.replace("https", "http");
        let output = ask(&plain, base, &user(&right), &[]);
        says(&output, &["status 400"]);
    }
}

#[test]
fn nginx_in_front_of_prometheus_wants_a_certificate_and_a_token() {
    let Some(front) = require("nginx", nginx::available()) else {
        return;
    };
    let Some((program, promtool)) = programs().into_iter().next() else {
        return;
    };
    let client = Client::new();
    let base = base();
    let store = with_past(&program, &promtool, client.dir.path(), &past(base));
    let front = Nginx::start_with_token(
        &front,
        client.dir.path(),
        &client.authority,
        store.address(),
        TOKEN,
    )
    .unwrap();
    let url = format!("https://{}", front.address());
    let right = client.file("token", TOKEN);
    let wrong = client.file("wrong", "wrong-secret");
    let tls = client.tls(None, true);
    is_the_bill(&ask(&url, base, &tls, &["--token-file", &right]));
    let header = client.file("header", &format!("Bearer {TOKEN}"));
    let header = format!("authorization={header}");
    is_the_bill(&ask(&url, base, &tls, &["--header-file", &header]));

    let output = ask(&url, base, &tls, &["--token-file", &wrong]);
    says(&output, &["status 401", "look at --token-file"]);
    let output = ask(&url, base, &tls, &[]);
    says(&output, &["status 401"]);
    let none = client.tls(None, false);
    let output = ask(&url, base, &none, &["--token-file", &right]);
    // nginx takes the connection, and refuses the request.
    says(
        &output,
        &["status 400", "No required SSL certificate was sent"],
    );
}
