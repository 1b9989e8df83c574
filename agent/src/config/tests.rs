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
fn every_kind_of_mistake_is_named_with_its_key_and_what_is_allowed() {
    for (text, expect) in [
        (
            "[gpu]\nintervall = \"1s\"",
            "unknown field `intervall`, expected one of `library`",
        ),
        ("[gpus]\n", "unknown field `gpus`"),
        (
            "[gpu]\ninterval = 1",
            "invalid type: integer `1`, expected a string",
        ),
        (
            "[gpu]\ninterval = \"soon\"",
            "found \"soon\", expected a duration such as",
        ),
        (
            "[gpu]\ninterval = \"-1s\"",
            "found \"-1s\", expected a duration such as",
        ),
        (
            "[gpu]\ninterval = \"7s\"",
            "gpu.interval is 7s, allowed is 100ms to 5s",
        ),
        (
            "[kernel]\nring_bytes = 5000",
            "kernel.ring_bytes is 5000, allowed is a power of two",
        ),
        ("[kernel]\nring_bytes = -1", "invalid value: integer `-1`"),
        (
            "[prometheus]\nlisten = \"everywhere\"",
            "invalid socket address",
        ),
        (
            "[cadvisor]\nduty_cycle = \"mine\"",
            "unknown variant `mine`, expected `device` or `container`",
        ),
        (
            "[otlp]\nprotocol = \"udp\"",
            "unknown variant `udp`, expected `grpc` or `http/protobuf`",
        ),
        (
            "[otlp]\ntemporality = \"both\"",
            "unknown variant `both`, expected `cumulative` or `delta`",
        ),
        (
            "[otlp]\nendpoint = \"collector:4317\"",
            "otlp.endpoint is collector:4317, allowed is http://",
        ),
        (
            "[docker]\nsockets = [\"docker.sock\"]",
            "docker.sockets is docker.sock, allowed is an absolute path",
        ),
        (
            "[socket]\npath = \"agent.sock\"",
            "socket.path is agent.sock, allowed is an absolute path",
        ),
        (
            "[gpu]\nlists_interval = \"999ms\"",
            "gpu.lists_interval is 999ms, allowed is 1s to 1m",
        ),
        (
            "[gpu]\ninterval = \"99ms\"",
            "gpu.interval is 99ms, allowed is 100ms to 5s",
        ),
        (
            "[gpu]\ninterval = \"5s 1us\"",
            "gpu.interval is 5s 1µs, allowed is 100ms to 5s",
        ),
        (
            "[otlp]\nendpoint = \"http://a host\"",
            "otlp.endpoint is http://a host, allowed is http://",
        ),
        (
            "[otlp.headers]\nx-token = \"two\\nlines\"",
            "otlp.headers is \"x-token\" with a value, allowed is",
        ),
        (
            "[otlp]\nnode_name = \"\"",
            "otlp.node_name is \"\", allowed is a node's name",
        ),
        (
            "[bundle]\ncontainerd = [\"/run/containerd\", \"state\"]",
            "bundle.containerd is state, allowed is an absolute path",
        ),
        (
            "[kubelet_logs]\nhost_root = \"host\"",
            "kubelet_logs.host_root is host, allowed is an absolute path",
        ),
        (
            "[publish]\npod_labels = [\"a label\"]",
            "publish.pod_labels is \"a label\", allowed is keys of Kubernetes labels",
        ),
        (
            "[attribution]\npayer = \"both\"",
            "unknown variant `both`, expected `outermost` or `innermost`",
        ),
        (
            "[pod_resources]\nresources = [\"nvidia.com/gpu\", \"/gpu\"]",
            "pod_resources.resources is \"/gpu\", allowed is a resource's name, or a domain",
        ),
        (
            "[pod_resources]\ninterval = \"10ms\"",
            "pod_resources.interval is 10ms, allowed is 1s to 10m",
        ),
        (
            "[otlp]\nendpoint = \"http://me:hun/ter22@collector\"",
            "otlp.endpoint is http://(redacted)@collector, allowed is http://",
        ),
        ("[gpu\n", "TOML parse error at line 1, column 5: "),
    ] {
        let error = Config::parse(text, "test").unwrap_err().to_string();
        assert!(error.contains(expect), "{text:?} gave {error:?}");
    }
}

#[test]
fn a_mistake_beside_a_secret_does_not_show_the_secret() {
    for (text, expected) in [
        (
            "[otlp.headers]\nauthorization = \"Bearer hunter22",
            "TOML parse error at line 2, column 33: ",
        ),
        (
            "[otlp.headers]\nauthorization = Bearer hunter22\n",
            "TOML parse error at line 2, column 17: ",
        ),
        (
            "[otlp]\nheaders = \"Bearer hunter22\"\n",
            "TOML parse error at line 2, column 11: invalid value, expected a map in `otlp.headers`",
        ),
        (
            "[otlp.headers]\nx-pin = 2200022\n",
            "invalid value, expected a string in `otlp.headers.x-pin`",
        ),
        (
            "[otlp]\nendpoint = [\"http://me:hunter22@c\"]\n",
            "invalid value, expected a string in `otlp.endpoint`",
        ),
        (
            "[otlp]\nendpoint = \"https://me:hunter22@c\"\n",
            "otlp.endpoint is https://(redacted)@c, allowed is",
        ),
        (
            "[otlp]\nendpoint = \"http://me:22/hunter22@c\"\n",
            "otlp.endpoint is http://(redacted)@c, allowed is",
        ),
        (
            "[otlp.headers]\nx-token = \"hunter22\\n\"\n",
            "otlp.headers is \"x-token\" with a value",
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
    let text = config.redacted().to_toml().unwrap();
    for secret in ["hunter22", "abcdef", "\"yes\""] {
        assert!(!text.contains(secret), "{text}");
    }
    assert!(text.contains("authorization = \"(redacted)\""), "{text}");
    let shown = Config::parse(&text, "shown").unwrap();
    let endpoint = shown.otlp.endpoint.as_deref();
    assert_eq!(endpoint, Some("http://(redacted)@collector:4317"));
    assert_eq!(shown.clone().redacted(), shown);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::read(Path::new("/nonexistent/gpuacct.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the configuration file /nonexistent/gpuacct.toml"
    );
}
