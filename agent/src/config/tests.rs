//! Tests of `config`.

use super::*;

#[test]
fn each_containerd_that_is_asked_has_its_folder_among_the_bundles() {
    let config = Config::default();
    for (socket, folder) in [
        ("/run/containerd/containerd.sock", "/run/containerd"),
        ("/run/k3s/containerd/containerd.sock", "/run/k3s/containerd"),
        (
            "/var/snap/microk8s/common/run/containerd.sock",
            "/var/snap/microk8s/common/run/containerd",
        ),
        ("/run/k0s/containerd.sock", "/run/k0s/containerd"),
    ] {
        assert!(config.cri.sockets.contains(&socket.into()), "{socket}");
        assert!(
            config.bundle.containerd.contains(&folder.into()),
            "{folder}"
        );
    }
}

#[test]
fn an_empty_file_is_the_defaults_and_what_is_printed_reads_back() {
    let config = Config::parse("", "test").unwrap();
    assert_eq!(config, Config::default());
    let printed = config.to_toml().unwrap();
    assert_eq!(
        Config::parse(&printed, "printed").unwrap(),
        config,
        "{printed}"
    );
}

#[test]
fn every_kind_of_mistake_is_named_with_its_place_its_key_and_what_is_expected() {
    for (text, expected) in [
        (
            "[gpu]\nintervall = \"1s\"",
            "test:2:1: gpu.intervall: unknown key (did you mean `interval`?), expected one of library, \
             cdi, interval, lists_interval",
        ),
        (
            "[gpus]\n",
            "test:1:2: gpus: unknown key (did you mean `gpu`?), expected one of kernel, ",
        ),
        (
            "[nonsense]\n",
            "test:1:2: nonsense: unknown key, expected one of kernel, ",
        ),
        (
            "[gpu]\ninterval = 1",
            "test:2:12: gpu.interval: found the number 1, expected a duration in quotes, such as \"10s\"",
        ),
        (
            "[gpu]\ninterval = \"soon\"",
            "gpu.interval: found \"soon\", expected a duration in quotes, such as \"10s\" or \"1m 30s\", \
             with the units ms, s, m, h, d and w",
        ),
        (
            "[gpu]\ninterval = \"-1s\"",
            "found \"-1s\", expected a duration",
        ),
        (
            "[gpu]\ninterval = \"1 month\"",
            "found \"1 month\", expected a duration",
        ),
        (
            "[gpu]\ninterval = \"7s\"",
            "test:2:12: gpu.interval: found \"7s\", expected 100ms to 5s",
        ),
        (
            "[kernel]\nring_bytes = 5000",
            "test:2:14: kernel.ring_bytes: found 5000, expected a power of two",
        ),
        (
            "[kernel]\nring_bytes = -1",
            "kernel.ring_bytes: found the number -1, expected a whole number, not negative",
        ),
        (
            "[kernel]\nring_bytes = \"1MiB\"",
            "kernel.ring_bytes: found \"1MiB\", expected a whole number, not negative",
        ),
        (
            "[store]\nmax_size = 99999999999999999999",
            "store.max_size: found a number that is too large, expected a whole number",
        ),
        (
            "[store]\nmax_size = 1.5",
            "found the number 1.5, expected a whole number, not negative",
        ),
        (
            "[docker]\nenabled = \"yes\"",
            "test:2:11: docker.enabled: found \"yes\", expected true or false",
        ),
        (
            "[docker]\nsockets = \"/a\"",
            "docker.sockets: found \"/a\", expected a list, such as [\"a\", \"b\"]",
        ),
        (
            "[docker]\nsockets = [\"/a\", 5]",
            "test:2:18: docker.sockets[1]: found the number 5, expected a path in quotes",
        ),
        (
            "docker = 5",
            "test:1:10: docker: found the number 5, expected a table",
        ),
        (
            "[gpu]\nlibrary = {}",
            "gpu.library: found a table, expected a path in quotes",
        ),
        (
            "[prometheus]\nlisten = \"everywhere\"",
            "prometheus.listen: found \"everywhere\", expected an IP address and a port in quotes, such as \
             \"[::]:10944\"",
        ),
        (
            "[prometheus]\nlisten = 0.0.0.0:9100",
            "test:2:10: prometheus.listen: this is text without quotes; put it in quotes",
        ),
        (
            "[prometheus]\nlisten = [::]:9100",
            "test:2:10: prometheus.listen: this is text without quotes; put it in quotes",
        ),
        (
            "[prometheus]\nlisten = 9100",
            "prometheus.listen: found the number 9100, expected an IP address and a port in quotes",
        ),
        (
            "[log]\nlevel = info",
            "test:2:9: log.level: this is text without quotes",
        ),
        (
            "[log]\nlevel =\nformat = \"json\"",
            "test:2:8: log.level: there is no value",
        ),
        (
            "[log]\nlevel = \"info\n",
            "log.level: the closing quote is missing",
        ),
        ("[log]\nlevel: \"info\"\n", "test:2:6: expected KEY = VALUE"),
        (
            "[log]\nlevel = \"info\"\nlevel = \"warn\"",
            "test:3:1: it is there twice",
        ),
        (
            "[log]\nlevel = \"warning\"",
            "test:2:9: log.level: found \"warning\", expected off, error, warn, info, debug, trace, or",
        ),
        (
            "[log]\nlevel = \"gpuacct=loud\"",
            "log.level: found \"gpuacct=loud\", expected off",
        ),
        (
            "[cadvisor]\nduty_cycle = \"mine\"",
            "cadvisor.duty_cycle: found \"mine\", expected \"device\" or \"container\"",
        ),
        (
            "[cadvisor]\nduty_cycle = true",
            "cadvisor.duty_cycle: found true, expected \"device\" or \"container\"",
        ),
        (
            "[otlp]\nprotocol = \"udp\"",
            "otlp.protocol: found \"udp\", expected \"grpc\" or \"http/protobuf\"",
        ),
        (
            "[otlp]\nendpoint = \"collector:4317\"",
            "otlp.endpoint: found \"collector:4317\", expected http://HOST[:PORT] or https://",
        ),
        (
            "[otlp]\nendpoint = \"ftp://collector\"",
            "test:2:12: otlp.endpoint: found \"ftp://collector\", expected http://HOST[:PORT] or https://",
        ),
        (
            "[otlp.logs]\nendpoint = \"ftp://collector\"",
            "test:2:12: otlp.logs.endpoint: found \"ftp://collector\", expected http://HOST[:PORT] or",
        ),
        (
            "[records]\nendpoint = \"collector:4317\"",
            "test:2:12: records.endpoint: found \"collector:4317\", expected http://HOST[:PORT] or",
        ),
        (
            "[records]\nendpoint = \"http://me:hun/ter22@collector\"",
            "records.endpoint: found \"http://(redacted)@collector\", expected http://",
        ),
        (
            "[records]\ninterval = \"10ms\"",
            "records.interval: found \"10ms\", expected 1s to 1h",
        ),
        (
            "[records]\nenabled = true\n[store]\nenabled = false",
            "test:2:11: records.enabled: found true, expected false, since store.enabled is false",
        ),
        (
            "[otlp.tls]\nca_file = \"ca.pem\"",
            "test:2:11: otlp.tls.ca_file: found \"ca.pem\", expected an absolute path",
        ),
        (
            "[otlp.tls]\ncert_file = \"/cert.pem\"",
            "otlp.tls.cert_file: found \"/cert.pem\", expected the file of its key in key_file, too",
        ),
        (
            "[otlp.metrics.tls]\nkey_file = \"/key.pem\"",
            "otlp.metrics.tls.key_file: found \"/key.pem\", expected the file of its certificate in",
        ),
        (
            "[otlp.tls]\nserver_name = \"a b\"",
            "otlp.tls.server_name: found \"a b\", expected a host's name or an IP address",
        ),
        (
            "[otlp]\ncompression = \"zstd\"",
            "otlp.compression: found \"zstd\", expected \"none\" or \"gzip\"",
        ),
        (
            "[otlp.logs]\ntimeout = \"2m\"",
            "otlp.logs.timeout: found \"2m\", expected 100ms to 1m",
        ),
        (
            "[otlp.header_files]\nauthorization = \"token\"",
            "otlp.header_files.authorization: expected a header's name and the absolute path of a file",
        ),
        (
            "[otlp.headers]\nx = \"y\"\n[otlp.header_files]\nX = \"/token\"",
            "test:4:5: otlp.header_files.X: the same header is among the headers with a value",
        ),
        (
            "[otlp]\nendpoint = http://collector:4317",
            "test:2:12: otlp.endpoint: this is text without quotes; put it in quotes",
        ),
        (
            "[docker]\nsockets = [\"/a\", \"docker.sock\"]",
            "test:2:18: docker.sockets[1]: found \"docker.sock\", expected an absolute path",
        ),
        (
            "[socket]\npath = \"agent.sock\"",
            "socket.path: found \"agent.sock\", expected an absolute path of at most 106 bytes",
        ),
        (
            "[socket]\nmode = \"0666\"",
            "test:2:8: socket.mode: found \"0666\", expected an octal mode in quotes that lets the owner read and write, perhaps the group, and nobody else, such as \"0600\" or \"0660\"",
        ),
        (
            "[socket]\nmode = 0o660",
            "socket.mode: found the number 432, expected an octal mode in quotes",
        ),
        (
            "[socket]\ngroup = -1",
            "socket.group: found the number -1, expected the name of a group in quotes, or its number",
        ),
        (
            "[socket]\ngroup = \"gpu admins\"",
            "socket.group: found \"gpu admins\", expected the name of a group",
        ),
        (
            "[socket]\ngroup = \"gpu-admins\"",
            "socket.mode: found \"0600\", expected a mode that lets the group write, such as \"0660\", since socket.group is set",
        ),
        (
            "[store]\npath = \"/var/\\u0000\"",
            "store.path: found \"/var/\\0\", expected an absolute path, in UTF-8 and without a zero byte",
        ),
        (
            "[gpu]\ninterval = \"5s 1us\"",
            "gpu.interval: found \"5s 1µs\", expected 100ms to 5s",
        ),
        (
            "[otlp]\nendpoint = \"http://a host\"",
            "otlp.endpoint: found \"http://a host\", expected http://",
        ),
        (
            "[otlp.headers]\nx-token = \"two\\nlines\"",
            "test:2:11: otlp.headers.x-token: expected a header's name and a value",
        ),
        (
            "[otlp]\nnode_name = \"\"",
            "otlp.node_name: found \"\", expected a node's name",
        ),
        (
            "[bundle]\ncontainerd = [\"/run/containerd\", \"state\"]",
            "bundle.containerd[1]: found \"state\", expected an absolute path",
        ),
        (
            "[kubelet_logs]\nhost_root = \"host\"",
            "kubelet_logs.host_root: found \"host\", expected an absolute path",
        ),
        (
            "[publish]\npod_labels = [\"a label\"]",
            "publish.pod_labels[0]: found \"a label\", expected keys of Kubernetes labels",
        ),
        (
            "[pod_resources]\nresources = [\"nvidia.com/gpu\", \"/gpu\"]",
            "pod_resources.resources[1]: found \"/gpu\", expected a resource's name, or a domain",
        ),
        (
            "[otlp]\nendpoint = \"http://me:hun/ter22@collector\"",
            "otlp.endpoint: found \"http://(redacted)@collector\", expected http://",
        ),
        (
            "[gpu\n",
            "test:1:5: this is not TOML: unclosed table, expected `]`",
        ),
    ] {
        let error = Config::parse(text, "test").unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?} gave {error:?}");
        let one = error.starts_with("cannot use the configuration: test:");
        assert!(one, "{text:?} gave {error:?}");
    }
}

#[test]
fn records_go_where_logs_go_unless_they_have_an_endpoint_of_their_own() {
    let otlp = "[otlp]\nendpoint = \"http://all:4318\"\nprotocol = \"http/protobuf\"\n\
        [otlp.headers]\nx-token = \"all\"\n";
    let logs = "[otlp.logs]\nendpoint = \"http://logs:1/whole\"\ntimeout = \"3s\"\n";
    let own = "endpoint = \"http://me:pw99@own:2\"\n";
    for (enabled, logs, own, expected) in [
        (false, logs, own, None),
        (true, "", "", Some("http://all:4318/v1/logs")),
        (true, logs, "", Some("http://logs:1/whole")),
        (true, logs, own, Some("http://own:2/v1/logs")),
    ] {
        let text = format!("{otlp}{logs}[records]\nenabled = {enabled}\n{own}");
        let config = Config::parse(&text, "test").unwrap();
        let receiver = config.records_receiver();
        let url = receiver.as_ref().map(|it| it.signal_url("logs").unwrap());
        assert_eq!(url.as_ref().map(url::Url::as_str), expected, "{text}");
        if let Some(receiver) = receiver.filter(|_| !logs.is_empty()) {
            assert_eq!(
                receiver.timeout,
                std::time::Duration::from_secs(3),
                "{text}"
            );
            assert!(receiver.headers.iter().any(|(_, value)| value == "all"));
        }
        let shown = config.clone().redacted().to_toml().unwrap();
        assert!(!shown.contains("pw99") && !format!("{config:?}").contains("pw99"));
    }
    let config = Config::parse("[records]\nenabled = true\n", "test").unwrap();
    assert_eq!(config.records_receiver(), None, "it waits in the store");
}

#[test]
fn all_mistakes_are_told_at_once_and_in_the_order_of_the_file() {
    let text = "[prometheus]\nlisten = 0.0.0.0:9100\n[gpu]\ninterval = 1\nlists_interval = \"9h\"\n\
                [gpus]\n[docker]\nsockets = [5, \"a\", \"/b\", \"c\"]\n[log]\nlevel = \"warning\"\n";
    let error = Config::parse(text, "/etc/g.toml").unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines[0], "cannot use the configuration, 8 mistakes:");
    let places: Vec<&str> = lines[1..]
        .iter()
        .map(|line| line.split(": ").take(2).last().unwrap())
        .collect();
    let expected = [
        "prometheus.listen",
        "gpu.interval",
        "gpu.lists_interval",
        "gpus",
        "docker.sockets[0]",
        "docker.sockets[1]",
        "docker.sockets[3]",
        "log.level",
    ];
    assert_eq!(places, expected, "{error}");
    assert!(
        lines[8].starts_with("  /etc/g.toml:10:9: log.level: "),
        "{error}"
    );
}

#[test]
fn a_file_of_nothing_but_mistakes_is_read_to_an_end() {
    let text: String = (0..20_000).map(|n| format!("key{n} = {n}\n")).collect();
    let Err(ConfigError::Wrong(mistakes)) = Config::parse(&text, "test") else {
        panic!("it cannot be used");
    };
    assert_eq!(mistakes.len(), 50);
}

#[test]
fn a_duration_is_the_same_text_everywhere() {
    for (text, seconds) in [
        ("35d", 35 * 86_400),
        ("2w", 14 * 86_400),
        ("1d 12h", 36 * 3_600),
        ("840h", 840 * 3_600),
        ("1m 30s", 90),
    ] {
        let config = format!("[store]\nretention = {text:?}\n[publish]\nkeep_for = \"1h\"\n");
        let expected = std::time::Duration::from_secs(seconds);
        match Config::parse(&config, "test") {
            Ok(config) => assert_eq!(config.store.retention.0, expected, "{text}"),
            // It is shorter than the store allows.
            Err(error) => assert!(seconds < 3_600, "{error}"),
        }
        assert_eq!(text.parse::<Span>().unwrap().0, expected, "{text}");
        let ago: crate::report::range::Moment = text.parse().unwrap();
        let expected = expected.try_into().unwrap();
        assert_eq!(ago, crate::report::range::Moment::Ago(expected), "{text}");
    }
}

#[test]
fn every_key_is_shown_with_its_value_or_as_not_set() {
    let shown = Config::default().shown(&Origins::default()).unwrap();
    let json = serde_json::to_value(Config::default()).unwrap();
    let mut keys = 0;
    for (section, of_section) in json.as_object().unwrap() {
        let begin = format!("[{section}]\n");
        let text = shown
            .split_once(&begin)
            .unwrap_or_else(|| panic!("{section}"))
            .1;
        let text = text.split_once("\n\n").map_or(text, |(text, _)| text);
        for (key, value) in of_section.as_object().unwrap() {
            let expected = match value {
                serde_json::Value::Null => format!("# {key} is not set"),
                serde_json::Value::Object(_) => format!("[{section}.{key}]"),
                _ => format!("{key} = "),
            };
            let is_there = text.lines().any(|line| line.starts_with(&expected));
            assert!(
                is_there || shown.contains(&format!("{expected}\n")),
                "{expected}: {shown}"
            );
            keys += 1;
        }
    }
    assert!(keys > 40, "{keys}");
    for unset in ["library", "endpoint", "node_name"] {
        assert!(
            shown.contains(&format!("# {unset} is not set\n")),
            "{shown}"
        );
    }
    assert_eq!(Config::parse(&shown, "shown").unwrap(), Config::default());
}

#[test]
fn a_value_of_a_flag_that_cannot_work_names_the_flag() {
    let mut config = Config::default();
    config.log.level = "warning".to_owned();
    config.socket.path = "agent.sock".into();
    let flags = [("log.level", "--log"), ("socket.path", "--socket")];
    let error = config.check_flags(&flags).unwrap_err().to_string();
    for expected in [
        "\n  --log: found \"warning\", expected off",
        "\n  --socket: found \"agent.sock\", expected an absolute path",
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_mistake_beside_a_secret_does_not_show_the_secret() {
    for (text, expected) in [
        (
            "[otlp.headers]\nauthorization = \"Bearer hunter22",
            "test:2:17: otlp.headers.authorization: the closing quote is missing",
        ),
        (
            "[otlp.headers]\nauthorization = Bearer hunter22\n",
            "test:2:17: otlp.headers.authorization: this is text without quotes",
        ),
        (
            "[otlp]\nheaders = \"Bearer hunter22\"\n",
            "test:2:11: otlp.headers: expected a table",
        ),
        (
            "[otlp.headers]\nx-pin = 2200022\n",
            "test:2:9: otlp.headers.x-pin: expected text in quotes",
        ),
        (
            "[otlp]\nendpoint = [\"http://me:hunter22@c\"]\n",
            "test:2:12: otlp.endpoint: expected text in quotes",
        ),
        (
            "[otlp]\nendpoint = \"ftp://me:hunter22@c\"\n",
            "otlp.endpoint: found \"ftp://(redacted)@c\", expected",
        ),
        (
            "[otlp.metrics]\nendpoint = [\"http://me:hunter22@c\"]\n",
            "test:2:12: otlp.metrics.endpoint: expected text in quotes",
        ),
        (
            "[otlp.logs.headers]\nx-pin = 2200022\n",
            "test:2:9: otlp.logs.headers.x-pin: expected text in quotes",
        ),
        (
            "[otlp]\nendpoint = \"http://me:22/hunter22@c\"\n",
            "otlp.endpoint: found \"http://(redacted)@c\", expected",
        ),
        (
            "[otlp.headers]\n\"x: hunter22\" = \"\"\n",
            "test:1:1: otlp.headers: expected a header's name",
        ),
        (
            "[otlp]\nendpoint = http://me:hunter22@c\n",
            "otlp.endpoint: this is text without quotes",
        ),
        (
            "[otlp.headers]\nx-token = \"hunter22\\n\"\n",
            "otlp.headers.x-token: expected a header's name",
        ),
    ] {
        let error = Config::parse(text, "test").unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains(expected), "{text:?} gave {shown:?}");
        for shown in [shown, format!("{error:?}")] {
            assert!(
                !shown.contains("hunter") && !shown.contains("2200022"),
                "{shown}"
            );
        }
    }
}

#[test]
fn what_is_shown_of_a_configuration_has_no_secrets_and_reads_back() {
    let text = "[otlp]\nendpoint = \"http://me:hunter22@collector:4317\"\n\
                [otlp.headers]\nauthorization = \"Bearer abcdef\"\nx = \"yes\"\n";
    let config = Config::parse(text, "test").unwrap();
    let text = config.clone().redacted().to_toml().unwrap();
    for secret in ["hunter22", "abcdef", "\"yes\""] {
        assert!(!text.contains(secret), "{text}");
    }
    assert!(text.contains("authorization = \"(redacted)\""), "{text}");
    let shown = Config::parse(&text, "shown").unwrap();
    let endpoint = shown.otlp.endpoint.as_deref();
    assert_eq!(endpoint, Some("http://(redacted)@collector:4317"));
    assert_eq!(shown.clone().redacted(), shown);
    let debugged = format!("{config:?}");
    assert!(
        !debugged.contains("hunter22") && !debugged.contains("abcdef"),
        "{debugged}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::read(Path::new("/nonexistent/gpuacct.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the configuration file /nonexistent/gpuacct.toml"
    );
}

#[test]
fn a_mistake_in_a_huge_value_is_told_in_few_words() {
    let huge = "a".repeat(1 << 19);
    let elements = "[],".repeat(100_000);
    for text in [
        format!("[gpu]\ninterval = {huge:?}\n"),
        format!("{huge} = 1\n"),
        format!("[otlp]\nprotocol = {huge:?}\n"),
        format!("[log]\nlevel = {huge:?}\n"),
        format!("[socket]\npath = \"/{huge}\"\n"),
        format!("[kernel]\ndevices = [{huge:?}, \"\"]\n"),
        format!("[log]\nlevel = {huge}\n"),
        format!("[docker]\nsockets = [{elements}\n"),
        "x\n".repeat(1 << 18),
    ] {
        let error = Config::parse(&text, "test").unwrap_err().to_string();
        let longest = error.lines().map(str::len).max().unwrap_or_default();
        assert!(longest < 600, "{longest}");
    }
}
