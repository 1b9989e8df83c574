use super::*;

/// A hash of `pass`, cheap to check.
const HASH: &str = "$2y$04$C6UzMDM.H6dfI/f/IKxGhuFCYSc0lYYyYQRUTKZ5YFfTvX0uPAPWW";

fn parsed(text: &str) -> Result<WebFile, WebConfigError> {
    WebFile::parse(text, Path::new("/etc/web/web.yml"))
}

#[test]
fn a_file_without_a_key_protects_nothing() {
    for text in [
        "",
        "\n# nothing\n",
        "---\n",
        "{}",
        "tls_server_config:\nbasic_auth_users:\nhttp_server_config:\nrate_limit:\n",
        "tls_server_config: {}\n",
        "tls_server_config:\n  min_version: TLS13\n",
        "http_server_config:\n  http2: false\n",
        "http_server_config:\n  http2: no\n",
        "rate_limit:\n  interval: 0\n  burst: 5\n",
        "rate_limit:\n  interval: -1s\n",
    ] {
        let file = parsed(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(file == WebFile::default(), "{text}");
    }
}

#[test]
fn paths_are_relative_to_the_file_and_files_come_before_texts() {
    let text = format!(
        "tls_server_config:\n  cert_file: server.crt\n  cert: ignored\n  key_file: /keys/server.key\n  \
         client_ca: |\n    PEM\n  client_auth_type: RequireAndVerifyClientCert\n\
         http_server_config:\n  headers:\n    X-Frame-Options: deny\n    X-XSS-Protection: \"1\"\n\
         basic_auth_users:\n  prom: {HASH}\n  \"with: colon\": {HASH}\n\
         rate_limit:\n  interval: 1.5s\n  burst: 20\n"
    );
    let file = parsed(&text).unwrap();
    let tls = file.tls.expect("there is TLS");
    assert_eq!(
        tls.certificate.path(),
        Some(Path::new("/etc/web/server.crt"))
    );
    assert_eq!(tls.key.path(), Some(Path::new("/keys/server.key")));
    let authority = tls.client_ca.expect("there is one");
    assert_eq!(authority.key(), "tls_server_config.client_ca");
    assert_eq!(authority.read().unwrap(), "PEM\n");
    assert!(tls.prefer_server_cipher_suites);
    assert_eq!(
        (&*tls.values.min_version, &*tls.values.max_version),
        ("TLS12", "TLS13")
    );
    assert_eq!(file.headers.len(), 2);
    assert_eq!(file.users.len(), 2);
    let limit = file.rate_limit.expect("there is one");
    assert_eq!(limit.interval, Duration::from_millis(1_500));
    assert_eq!(limit.burst, 20);
}

#[test]
fn what_cannot_be_honoured_is_named_with_its_key_and_what_is_possible() {
    let tls = |line: &str| format!("tls_server_config:\n  cert_file: c\n  key_file: k\n  {line}\n");
    for (text, expected) in [
        ("tls_server_confg: {}\n".to_owned(), "tls_server_confg"),
        (tls("cert_fil: x"), "cert_fil"),
        (tls("cert_file: twice"), "cert_file"),
        ("- a\n- b\n".to_owned(), "web.yml"),
        ("tls_server_config: [".to_owned(), "web.yml"),
        (
            tls("min_version: TLS10"),
            "tls_server_config.min_version: found TLS10, which is obsolete (RFC 8996) and not offered, expected TLS12 or TLS13",
        ),
        (
            tls("max_version: TLS11"),
            "tls_server_config.max_version: found TLS11, which is obsolete",
        ),
        (
            tls("min_version: SSL3"),
            "tls_server_config.min_version: found \"SSL3\", expected TLS12 or TLS13",
        ),
        (
            tls("min_version: TLS13\n  max_version: TLS12"),
            "tls_server_config.min_version: found TLS13, which is above max_version, TLS12",
        ),
        (
            tls("cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]"),
            "tls_server_config.cipher_suites: found \"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA\", which is not offered, expected some of TLS_ECDHE_ECDSA",
        ),
        (
            tls("cipher_suites: [TLS_AES_128_GCM_SHA256]\n  max_version: TLS12"),
            "tls_server_config.cipher_suites: none of them is of TLS 1.2",
        ),
        (
            tls("curve_preferences: [X25519, CurveP521]"),
            "tls_server_config.curve_preferences: found \"CurveP521\", which is not offered, expected some of X25519, CurveP256, CurveP384",
        ),
        (
            "tls_server_config:\n  cert_file: c\n".to_owned(),
            "tls_server_config: expected one of key_file and key, found none",
        ),
        (
            "tls_server_config:\n  client_auth_type: NoClientCert\n".to_owned(),
            "tls_server_config: expected one of cert_file and cert, found none",
        ),
        (
            "tls_server_config:\n  client_allowed_sans: [a]\n".to_owned(),
            "tls_server_config.client_allowed_sans: there is no certificate",
        ),
        (
            "http_server_config:\n  http2: true\n".to_owned(),
            "http_server_config.http2: found true; gpuacct speaks HTTP/1.1 only",
        ),
        (
            "http_server_config:\n  headers:\n    Server: x\n".to_owned(),
            "http_server_config.headers.Server: this header cannot be set, expected one of Strict-Transport-Security,",
        ),
        (
            "http_server_config:\n  headers:\n    X-Frame-Options: allow\n".to_owned(),
            "http_server_config.headers.X-Frame-Options: found \"allow\", expected deny or sameorigin",
        ),
        (
            "rate_limit:\n  interval: soon\n".to_owned(),
            "rate_limit.interval: found \"soon\", expected a duration such as 1s",
        ),
        (
            "rate_limit:\n  burst: many\n".to_owned(),
            "web.yml: invalid i64 at line 2",
        ),
    ] {
        let error = parsed(&text)
            .err()
            .unwrap_or_else(|| panic!("{text} passes"));
        assert!(error.to_string().contains(expected), "{text}\n{error}");
    }
}

#[test]
fn a_password_in_place_of_a_hash_is_refused_and_not_shown() {
    let short = &HASH[..59];
    let no_cost = HASH.replace("$04$", "$03$");
    for wrong in ["hunter2-secret", short, &no_cost, "\"\""] {
        let error = parsed(&format!("basic_auth_users:\n  prom: {wrong}\n"));
        let error = error.err().expect("it is refused").to_string();
        assert!(error.starts_with("basic_auth_users.prom: expected a bcrypt hash"));
        assert!(!error.contains("hunter2"), "{error}");
    }
    // A mistake elsewhere shows nothing of the lines around it either.
    let text = format!("basic_auth_users:\n  prom: {HASH}\n  other: [\n");
    let error = parsed(&text).err().expect("it is refused").to_string();
    assert!(!error.contains("$2y$"), "{error}");
}

#[test]
fn durations_are_those_of_go() {
    for (text, expected) in [
        ("0", Some(0)),
        ("100", Some(100)),
        ("1ns", Some(1)),
        ("1us", Some(1_000)),
        ("1\u{b5}s", Some(1_000)),
        ("1\u{3bc}s", Some(1_000)),
        ("1ms", Some(1_000_000)),
        ("1h1m1.5s", Some(3_661_500_000_000)),
        (".5s", Some(500_000_000)),
        ("1.s", Some(1_000_000_000)),
        ("-2s", Some(-2_000_000_000)),
        ("+2s", Some(2_000_000_000)),
        ("0.1234567891234567891234s", Some(123_456_789)),
        ("1d", None),
        ("s", None),
        (".s", None),
        ("1", Some(1)),
        ("1.5", None),
        ("1 s", None),
        ("", None),
        ("-", None),
        ("1.2.3s", None),
        ("9223372036854775807h", None),
        ("99999999999999999999s", None),
    ] {
        assert_eq!(go_duration(text), expected, "{text:?}");
    }
}
