use std::fs;
use std::path::Path;

use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::core::model::{BootTime, Clock, WallTime};

/// A folder with a web configuration file, and the guard that reads it.
struct Guarded {
    folder: tempfile::TempDir,
    files: ProtectionFiles,
}

impl Guarded {
    fn new(web_config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = ProtectionFiles {
            web_config: Some(folder.path().join("web.yml")),
            bearer_tokens: None,
        };
        let guarded = Self { folder, files };
        guarded.write("web.yml", web_config);
        for name in ["one", "two"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            guarded.write(
                &format!("{name}.crt"),
                &params.self_signed(&key).unwrap().pem(),
            );
            guarded.write(&format!("{name}.key"), &key.serialize_pem());
        }
        guarded
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn read(&self) -> Result<Guard, WebConfigError> {
        Guard::read(self.files.clone(), Arc::default())
    }

    fn rules(&self) -> Result<Rules, WebConfigError> {
        self.files.read().rules
    }
}

const TLS: &str = "tls_server_config:\n  cert_file: one.crt\n  key_file: one.key\n";

fn users(password: &str) -> String {
    let hash = bcrypt::hash(password, 4).unwrap();
    format!("basic_auth_users:\n  prom: {hash}\n")
}

fn basic(password: &str) -> HeaderMap {
    let shown = STANDARD.encode(format!("prom:{password}"));
    with(&format!("Basic {shown}"))
}

fn with(authorization: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, authorization.parse().unwrap());
    headers
}

#[test]
fn certificates_and_keys_that_cannot_be_used_are_named() {
    for (tls, expected) in [
        (
            "cert_file: one.crt\n  key_file: two.key",
            "tls_server_config.key_file: the key is not that of the certificate",
        ),
        (
            "cert_file: absent.crt\n  key_file: one.key",
            "tls_server_config.cert_file: cannot read",
        ),
        (
            "cert_file: one.key\n  key_file: one.key",
            "tls_server_config.cert_file: expected PEM with a CERTIFICATE, found none",
        ),
        (
            "cert_file: one.crt\n  key_file: one.crt",
            "tls_server_config.key_file: expected PEM with a PRIVATE KEY",
        ),
        (
            "cert_file: one.crt\n  key: hunter2-secret",
            "tls_server_config.key: expected PEM with a PRIVATE KEY",
        ),
        (
            "cert_file: one.crt\n  key_file: one.key\n  client_auth_type: Always",
            "tls_server_config.client_auth_type: found \"Always\", expected NoClientCert,",
        ),
        (
            "cert_file: one.crt\n  key_file: one.key\n  client_ca_file: one.crt",
            "tls_server_config.client_auth_type: there is a client_ca_file",
        ),
        (
            "cert_file: one.crt\n  key_file: one.key\n  client_auth_type: RequireAndVerifyClientCert",
            "tls_server_config.client_auth_type: found RequireAndVerifyClientCert, expected client_ca_file",
        ),
        (
            "cert_file: one.crt\n  key_file: one.key\n  client_ca_file: one.key\n  client_auth_type: VerifyClientCertIfGiven",
            "tls_server_config.client_ca_file: expected PEM with a CERTIFICATE",
        ),
        (
            "cert_file: one.crt\n  key_file: one.key\n  client_auth_type: RequestClientCert\n  client_allowed_sans: [a]",
            "tls_server_config.client_allowed_sans: expected client_auth_type RequireAndVerifyClientCert",
        ),
        (
            "cert_file: one.crt\n  key_file: one.key\n  client_allowed_sans: [a]",
            "tls_server_config.client_allowed_sans: expected client_auth_type",
        ),
    ] {
        let guarded = Guarded::new(&format!("tls_server_config:\n  {tls}\n"));
        let error = guarded.read().expect_err(tls).to_string();
        assert!(error.starts_with(expected), "{tls}\n{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn every_value_that_rustls_can_honour_is_taken() {
    let guarded = Guarded::new("");
    for lines in [
        "client_auth_type: NoClientCert",
        "client_auth_type: RequestClientCert",
        "client_auth_type: RequireAnyClientCert",
        "client_auth_type: RequireClientCert",
        "client_auth_type: RequireAnyClientCert\n  client_allowed_sans: [a]",
        "client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: one.crt",
        "client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: one.crt",
        "min_version: TLS13",
        "max_version: TLS12",
        "cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]",
        "cipher_suites: [TLS_AES_256_GCM_SHA384]",
        "curve_preferences: [CurveP384, X25519, CurveP256]",
        "prefer_server_cipher_suites: false",
    ] {
        guarded.write("web.yml", &format!("{TLS}  {lines}\n"));
        let rules = guarded.rules();
        assert!(rules.is_ok_and(|rules| rules.tls.is_some()), "{lines}");
    }
    guarded.write("web.yml", &format!("{TLS}  min_version: TLS13\n"));
    assert_eq!(guarded.rules().unwrap().words(), "TLS");
}

#[test]
fn a_change_could_have_taken_away_the_demand_for_a_client_certificate() {
    let guarded = Guarded::new("");
    let demands = [
        "",
        "  client_auth_type: RequestClientCert\n",
        "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: one.crt\n",
        "  client_auth_type: RequireAnyClientCert\n",
        "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: one.crt\n",
        "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: one.crt\n  \
         client_allowed_sans: [a]\n",
    ];
    let rules = demands.map(|lines| {
        guarded.write("web.yml", &format!("{TLS}{lines}"));
        guarded.rules().unwrap()
    });
    // From each demand to each of those that ask for as much.
    let allowed: [&[usize]; 6] = [
        &[0, 1, 2, 3, 4, 5],
        &[0, 1, 2, 3, 4, 5],
        &[2, 4, 5],
        &[3, 4, 5],
        &[4, 5],
        &[5],
    ];
    for (from, allowed) in allowed.iter().enumerate() {
        for to in 0..demands.len() {
            let stays = rules[from].stay_closed(&rules[to]);
            assert_eq!(stays.is_ok(), allowed.contains(&to), "{from} to {to}");
        }
    }
    assert_eq!(rules[4].words(), "TLS, client certificates");
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_in_force_and_a_broken_one_is_not() {
    let guarded = Guarded::new(&format!("{TLS}{}", users("first")));
    let (health, mut told) = mpsc::channel(8);
    let clock = || Clock {
        boot: BootTime(7),
        wall: WallTime(7),
    };
    let guard = guarded.read().unwrap().reporting(Report {
        health,
        clock: Arc::new(clock),
        place: "here".into(),
    });
    let guard = Arc::new(guard);
    let later = || tokio::time::advance(LOOK_EACH);
    let admitted = async |password: &str| {
        let rules = guard.rules().await;
        guard.admits(&rules, &basic(password), None).await
    };
    assert_eq!(admitted("first").await, Admission::Yes);
    guarded.write("web.yml", &format!("{TLS}{}", users("second")));
    assert_eq!(admitted("first").await, Admission::Yes, "not looked at yet");
    later().await;
    assert_eq!(admitted("second").await, Admission::Yes);
    assert_eq!(admitted("first").await, Admission::No);
    assert_eq!(told.try_recv().unwrap().state, SourceState::Up);

    let tls = async || Arc::clone(&guard.rules().await.tls.as_ref().unwrap().config);
    let before = tls().await;
    let faults: [(&str, &str, &str, &str); 5] = [
        ("web.yml", "tls_server_config: [", "web_config", "web.yml"),
        (
            "web.yml",
            "",
            "unprotected",
            "TLS would no longer be asked for",
        ),
        (
            "web.yml",
            TLS,
            "unprotected",
            "a password or a token would no longer",
        ),
        ("two.crt", "", "", ""),
        (
            "one.crt",
            "rubbish",
            "certificate",
            "tls_server_config.cert_file",
        ),
    ];
    for (name, text, class, expected) in faults {
        guarded.write("web.yml", &format!("{TLS}{}", users("second")));
        guarded.write(name, text);
        later().await;
        assert_eq!(admitted("second").await, Admission::Yes, "{name} {text}");
        // A file that is not used says nothing.
        let found = std::iter::from_fn(|| told.try_recv().ok()).last();
        match found.expect("the web file was written").state {
            SourceState::Down {
                class: found,
                reason,
                ..
            } => {
                assert_eq!(&*found, class);
                assert!(reason.contains(expected), "{reason}");
                assert!(
                    reason.ends_with("what was in force stays in force"),
                    "{reason}"
                );
            }
            state => assert_eq!((state, class), (SourceState::Up, "")),
        }
    }
    assert_eq!(guard.counters.web_config_failed.get(), 4);
    // It is told once, not with each client.
    later().await;
    assert_eq!(admitted("second").await, Admission::Yes);
    assert!(told.try_recv().is_err());

    // Another certificate, file by file: while they do not fit each other, the first one is used.
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["three".to_owned()]).unwrap();
    guarded.write("one.crt", &params.self_signed(&key).unwrap().pem());
    later().await;
    let between = tls().await;
    assert_eq!(told.try_recv().unwrap().place, "here".into());
    guarded.write("one.key", &key.serialize_pem());
    later().await;
    let after = tls().await;
    assert_eq!(told.try_recv().unwrap().state, SourceState::Up);
    for earlier in [before, between] {
        assert!(!Arc::ptr_eq(&earlier, &after));
    }
}

#[tokio::test]
async fn a_token_or_a_password_is_enough_and_nothing_else_is() {
    let mut guarded = Guarded::new(&users("right"));
    guarded.write("tokens", "token-of-prometheus\n");
    guarded.files.bearer_tokens = Some(guarded.folder.path().join("tokens"));
    let guard = Arc::new(guarded.read().unwrap());
    let rules = guard.rules().await;
    assert_eq!(rules.words(), "passwords, bearer tokens");
    let basic_of = |text: &str| format!("Basic {}", STANDARD.encode(text));
    for (headers, expected) in [
        (HeaderMap::new(), Admission::No),
        (basic("right"), Admission::Yes),
        (basic("wrong"), Admission::No),
        (
            with(&basic_of("prom:right").replace("Basic", "bAsIc")),
            Admission::Yes,
        ),
        (with(&basic_of("prom")), Admission::No),
        (with(&basic_of("prom:right:")), Admission::No),
        (with("Basic not/base64!"), Admission::No),
        (with("Basic"), Admission::No),
        (with("Bearer token-of-prometheus"), Admission::Yes),
        (with("bearer token-of-prometheus"), Admission::Yes),
        (with("Bearer token-of-Prometheus"), Admission::No),
        (with("Bearer "), Admission::No),
        (with("Basic token-of-prometheus"), Admission::No),
        (with("Digest x"), Admission::No),
    ] {
        let found = guard.admits(&rules, &headers, None).await;
        assert_eq!(found, expected, "{headers:?}");
    }
    let absent = ProtectionFiles {
        web_config: None,
        bearer_tokens: Some(Path::new("/absent/tokens").into()),
    };
    let error = absent.check().expect_err("it is not there");
    assert!(
        error
            .to_string()
            .starts_with("prometheus.bearer_token_file: cannot read")
    );
}
