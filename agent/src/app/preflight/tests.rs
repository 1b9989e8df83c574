//! Tests of `preflight`.

use std::sync::Arc;

use super::*;
use crate::core::model::Clock;
use crate::outputs::socket::SocketState;
use crate::socket_access::SocketAccess;

#[test]
fn capabilities_are_enough_or_name_what_is_lacking() {
    type Held = &'static [(&'static str, bool)];
    let rows: [(Held, Verdict, &str); 4] = [
        (&[], Verdict::Warn, "does not say"),
        (
            &[
                ("CAP_BPF", true),
                ("CAP_PERFMON", true),
                ("CAP_SYS_ADMIN", false),
            ],
            Verdict::Ok,
            "CAP_BPF, CAP_PERFMON in effect",
        ),
        (
            &[
                ("CAP_BPF", false),
                ("CAP_PERFMON", false),
                ("CAP_SYS_ADMIN", true),
            ],
            Verdict::Ok,
            "CAP_SYS_ADMIN in effect",
        ),
        (
            &[
                ("CAP_BPF", true),
                ("CAP_PERFMON", false),
                ("CAP_SYS_ADMIN", false),
            ],
            Verdict::Fail,
            "CAP_PERFMON, CAP_SYS_ADMIN not in effect",
        ),
    ];
    for (held, verdict, words) in rows {
        let found = capabilities(held);
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert!(found.found.contains(words), "{found:?}");
    }
}

#[test]
fn only_the_hosts_pid_namespace_will_do() {
    assert_eq!(
        judge_pid_namespace(INITIAL_PID_NAMESPACE).verdict,
        Verdict::Ok
    );
    let other = judge_pid_namespace("pid:[4026532190]");
    assert_eq!(other.verdict, Verdict::Fail);
    assert!(other.remedy.is_some_and(|words| words.contains("hostPID")));
}

#[test]
fn cgroups_are_told_by_what_is_mounted() {
    let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    let v1 = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    let other = "22 1 0:20 / /proc rw - proc cgroup rw\n";
    for (mounts, verdict, words) in [
        (v2.to_owned(), Verdict::Ok, "v2"),
        (format!("{v1}{v2}"), Verdict::Ok, "hybrid"),
        (v1.to_owned(), Verdict::Ok, "v1"),
        (other.to_owned(), Verdict::Warn, "none mounted"),
        ("junk".to_owned(), Verdict::Warn, "none mounted"),
    ] {
        let found = judge_cgroups(&mounts);
        assert_eq!(found.verdict, verdict, "{mounts}");
        assert!(found.found.starts_with(words), "{found:?}");
    }
}

#[test]
fn what_a_gpu_lacks_is_said() {
    let whole = Surveyed {
        uuid: "GPU-1".into(),
        model: "NVIDIA H200".into(),
        mig: None,
        samples: Offer::Yes,
        processes: Offer::Yes,
        lists: Offer::Yes,
    };
    let failed = Offer::Failed("no permission".to_owned());
    let rows = [
        (whole.clone(), Verdict::Ok, "process lists"),
        (
            Surveyed {
                processes: Offer::No,
                ..whole.clone()
            },
            Verdict::Warn,
            "no process utilisation",
        ),
        (
            Surveyed {
                mig: Some(vec![("3g.40gb".into(), true), ("1c.2g.20gb".into(), false)]),
                ..whole.clone()
            },
            Verdict::Warn,
            "divided by MIG into 3g.40gb, 1c.2g.20gb without a measure",
        ),
        (
            Surveyed {
                samples: Offer::No,
                mig: Some(vec![("3g.40gb".into(), true)]),
                ..whole.clone()
            },
            Verdict::Ok,
            "MIG into 3g.40gb",
        ),
        (
            Surveyed {
                samples: failed,
                ..whole
            },
            Verdict::Fail,
            "samples failed: no permission",
        ),
    ];
    for (gpu, verdict, words) in rows {
        let found = judge_gpu("gpu 0".to_owned(), &gpu);
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert!(found.found.contains(words), "{found:?}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_in_order_only_if_an_agent_runs() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(port("metrics", address, false).await.verdict, Verdict::Fail);
    assert_eq!(port("metrics", address, true).await.verdict, Verdict::Ok);
    drop(listener);
    assert_eq!(port("metrics", address, false).await.found, "free");
    // The default, also on a kernel without IPv6, where the agent takes all of IPv4.
    let all = SocketAddr::from(([0_u16; 8], 0));
    let found = port("metrics", all, false).await;
    assert_eq!(found.verdict, Verdict::Ok, "{found:?}");
}

#[tokio::test]
async fn what_others_listen_on_is_no_reason_not_to_start() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    fs::create_dir(place("docker.sock")).unwrap();
    fs::write(place("cri.sock"), "").unwrap();
    let mut config = Config::default();
    config.docker.sockets = vec![place("docker.sock")];
    config.cri.sockets = vec![place("cri.sock"), place("absent.sock")];
    config.bundle.enabled = false;
    config.kubelet_logs.enabled = false;
    let findings = names(&config).await;
    let verdict = |item: &str| {
        let found = findings.iter().find(|found| found.item.ends_with(item));
        found.map(|found| (found.verdict, found.found.as_str()))
    };
    let other = "exists and is not a socket";
    assert_eq!(verdict("docker.sock"), Some((Verdict::Warn, other)));
    assert_eq!(verdict("/cri.sock"), Some((Verdict::Warn, other)));
    let (absent, words) = verdict("absent.sock").unwrap();
    assert!(
        absent == Verdict::Ok && words.starts_with("not here"),
        "{words}"
    );
    assert_eq!(verdict("names").unwrap().0, Verdict::Warn);
    let kubelet = allocations(&place("cri.sock"), LIMIT).await;
    assert_eq!(kubelet.verdict, Verdict::Warn, "{kubelet:?}");
}

#[tokio::test]
async fn the_folders_of_the_host_are_looked_for_where_the_host_is_mounted() {
    let host = tempfile::tempdir().unwrap();
    for folder in ["var/log/pods", "run/containerd", "data"] {
        fs::create_dir_all(host.path().join(folder)).unwrap();
    }
    // Links are the host's.
    std::os::unix::fs::symlink("/data", host.path().join("var/log/containers")).unwrap();
    fs::write(host.path().join("file"), "").unwrap();
    let mut config = Config::default();
    config.docker.enabled = false;
    config.cri.enabled = false;
    config.bundle.host_root = host.path().to_owned();
    config.kubelet_logs.host_root = host.path().to_owned();
    config.bundle.storage = vec!["/file/below".into()];
    let findings = names(&config).await;
    let at = |source: &str, path: &str| {
        let item = format!("{source} {}{path}", host.path().display());
        let found = findings.iter().find(|found| found.item == item);
        found.unwrap_or_else(|| panic!("no {item} in {findings:#?}"))
    };
    assert_eq!(at("kubelet", "/var/log/pods").found, "names of pods");
    assert_eq!(
        at("kubelet", "/var/log/containers").found,
        "names of containers"
    );
    assert!(
        at("bundle", "/run/containerd")
            .found
            .starts_with("files of the runtime")
    );
    for absent in ["/run/k3s/containerd", "/file/below", "/var/lib/docker"] {
        let found = at("bundle", absent);
        assert!(found.found.starts_with("not here"), "{found:?}");
    }
    assert!(
        findings.iter().all(|found| found.item != "names"),
        "{findings:?}"
    );
    // Switched off, they are no source.
    config.bundle.enabled = false;
    config.kubelet_logs.enabled = false;
    let findings = names(&config).await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].item, "names");
}

#[test]
fn the_store_is_tried_and_nothing_is_left_there() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(store(directory.path()).found, "can be written");
    let deeper = directory.path().join("a/b");
    assert!(store(&deeper).found.starts_with("will be made in"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(store(&file.join("below")).verdict, Verdict::Fail);
}

/// The finding about the agent's socket, and whether an agent answers there.
async fn socket_at(path: &Path, text: &str) -> (Finding, bool) {
    let text = format!("[socket]\npath = {path:?}\n{text}");
    let config = Config::parse(&text, "test").unwrap();
    socket::look(&config.socket).await
}

#[tokio::test]
async fn a_socket_is_free_left_behind_or_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let found = async |words: &str, verdict| {
        let (finding, is_agent) = socket_at(&path, "").await;
        assert!(finding.found.contains(words), "{finding:?}");
        assert_eq!((finding.verdict, is_agent), (verdict, false), "{finding:?}");
    };
    found("can be written", Verdict::Ok).await;
    drop(tokio::net::UnixListener::bind(&path).unwrap());
    found("left behind", Verdict::Ok).await;
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    found("not a socket", Verdict::Fail).await;
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_group_that_does_not_exist_fails_before_the_agent_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let text = "mode = \"0660\"\ngroup = \"no-such-group\"\n";
    let (finding, _) = socket_at(&path, text).await;
    assert_eq!(finding.verdict, Verdict::Fail, "{finding:?}");
    assert!(
        finding.found.contains("no group \"no-such-group\""),
        "{finding:?}"
    );
    let nowhere = directory.path().join("none/a.sock");
    let (finding, _) = socket_at(&nowhere, text).await;
    assert_eq!(finding.verdict, Verdict::Fail, "{finding:?}");
    let own = rustix::process::getgid().as_raw();
    let (finding, _) = socket_at(&path, &format!("mode = \"0660\"\ngroup = {own}\n")).await;
    assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn any_program_on_the_socket_was_called_an_agent() {
    use tokio::io::AsyncWriteExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.sock");
    let other = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = other.accept().await {
            // Whoever asked reads it or has gone.
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
        }
    });
    let (finding, is_agent) = socket_at(&path, "").await;
    assert_eq!((finding.verdict, is_agent), (Verdict::Fail, false));
    assert!(
        finding.found.contains("220 mail.example ESMTP"),
        "{finding:?}"
    );

    let path = directory.path().join("agent.sock");
    let bound = crate::outputs::socket::bind(&path, &SocketAccess::default()).unwrap();
    let (_, published) = tokio::sync::watch::channel(Arc::default());
    let state = SocketState {
        published,
        queries: tokio::sync::mpsc::channel(1).0,
        releases: tokio::sync::mpsc::channel(1).0,
        counters: Arc::default(),
        log: Arc::default(),
        config: tokio::sync::watch::channel(Arc::default()).1,
        clock: Arc::new(Clock::default),
    };
    tokio::spawn(crate::outputs::socket::serve(
        bound,
        state,
        std::future::pending(),
    ));
    let (finding, is_agent) = socket_at(&path, "").await;
    assert_eq!(finding.found, "an agent answers");
    assert_eq!((finding.verdict, is_agent), (Verdict::Ok, true));
}
