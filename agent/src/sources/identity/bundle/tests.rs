//! containerd's and Docker's files are real ones of containerd 1.6 and Docker Engine 20.10, made
//! shorter; CRI-O's and Podman's are made from what their sources write.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, mknodat};
use tempfile::TempDir;

use super::*;

const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";
const DOCKER_ID: &str = "56dc8a4efd6ef2e36782d2569e3a4f34c7421d26195eb68a4a9ec23ac4bb9aa4";
const TASK: &str = "run/containerd/io.containerd.runtime.v2.task";
const DOCKER_TASK: &str = "run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby";
const STORAGE: &str = "run/containers/storage/overlay-containers";
const DOCKER: &str = "var/lib/docker/containers";

/// A host's root in a folder.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn config(&self) -> config::Bundle {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        config::Bundle {
            host_root: self.0.path().to_owned(),
            containerd: paths(&["/run/containerd", "/run/docker/containerd/daemon"]),
            storage: paths(&["/run/containers/storage", "/var/lib/containers/storage"]),
            docker: paths(&["/var/lib/docker"]),
            ..config::Bundle::default()
        }
    }

    fn find(&self, id: &str) -> (Answer, Counters) {
        let counters = Counters::default();
        let (_, mut answers) = self.config().find(&[ContainerId::from(id)], &counters);
        (answers.pop().unwrap(), counters)
    }
}

fn hex(pair: &str) -> String {
    pair.repeat(32)
}

/// Where a file lies, whose it is, what it says, and what is made of it.
type Row<'a> = (
    &'a str,
    &'a str,
    &'a str,
    (&'a str, &'a str, &'a str, usize),
);

/// What an answer says: name, image, names in Kubernetes, number of labels.
fn said(answer: Answer) -> (String, String, String, usize) {
    let found = answer.unwrap();
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or("-").to_owned();
    let names = found.kubernetes.as_ref().map_or("-".to_owned(), |names| {
        let KubernetesNames {
            namespace,
            pod,
            pod_uid,
            container,
        } = names;
        format!("{namespace}/{pod}/{container} {pod_uid}")
    });
    assert_eq!(found.source, IdentitySource::Bundle);
    (
        text(&found.name),
        text(&found.image),
        names,
        found.labels.len(),
    )
}

#[test]
fn every_runtimes_file_names_its_container() {
    let id = hex("a1");
    let trainer = format!("ml/train-0/trainer {UID}");
    let pod = format!("ml/train-0/(pod) {UID}");
    let crio = |who: &str| format!("k8s_{who}_train-0_ml_{UID}_0");
    let k8s = format!("{TASK}/k8s.io/{id}/config.json");
    let storage = format!("{STORAGE}/{id}/userdata/config.json");
    let graph = storage
        .replace("run/", "var/lib/")
        .replace("overlay", "vfs");
    let nerdctl = r#"{"annotations": {"nerdctl/name": "web", "nerdctl/namespace": "default"}}"#;
    let rows: [Row<'_>; 7] = [
        (
            &k8s,
            &id,
            include_str!("containerd-container.json"),
            ("-", "docker.io/lab/busybox:1", &trainer, 0),
        ),
        (
            &k8s,
            &id,
            include_str!("containerd-sandbox.json"),
            ("-", "-", &pod, 0),
        ),
        (
            &format!("{TASK}/default/{id}/config.json"),
            &id,
            nerdctl,
            ("web", "-", "-", 0),
        ),
        (
            &storage,
            &id,
            include_str!("crio-container.json"),
            (
                &crio("trainer"),
                "registry.example/team/trainer:1.2",
                &trainer,
                4,
            ),
        ),
        (
            &graph,
            &id,
            include_str!("crio-container.json"),
            (
                &crio("trainer"),
                "registry.example/team/trainer:1.2",
                &trainer,
                4,
            ),
        ),
        (
            &storage,
            &id,
            include_str!("crio-sandbox.json"),
            (&crio("POD"), "-", &pod, 5),
        ),
        (
            &format!("{DOCKER}/{DOCKER_ID}/config.v2.json"),
            DOCKER_ID,
            include_str!("docker.json"),
            ("k8s_trainer_train-0", "gpuacct/busybox:1", &trainer, 5),
        ),
    ];
    for (path, id, text, (name, image, kubernetes, labels)) in rows {
        let host = Host::new();
        host.put(path, text);
        let expected = (name.into(), image.into(), kubernetes.into(), labels);
        assert_eq!(said(host.find(id).0), expected, "{path}");
        // It is that container's and nobody else's.
        let other = host.find(&hex("b2")).0.unwrap_err();
        assert_eq!(other.class(), "not_found", "{path}");
    }
}

#[test]
fn podmans_name_is_in_the_list_of_its_storage() {
    let (id, other) = (hex("a1"), hex("b2"));
    let host = Host::new();
    let spec = r#"{"annotations": {"io.container.manager": "libpod", "io.podman.annotations.autoremove": "FALSE"}}"#;
    host.put(&format!("{STORAGE}/{id}/userdata/config.json"), spec);
    assert_eq!(host.find(&id).0.unwrap_err().class(), "nameless");
    let list = serde_json::json!([
        {"id": other, "names": ["web"], "metadata": "{}"},
        {"id": id, "names": ["notebook"], "layer": "4f",
         "metadata": r#"{"image-name":"quay.io/team/notebook:3","name":"notebook"}"#},
    ]);
    host.put(&format!("{STORAGE}/containers.json"), list.to_string());
    let expected = ("notebook", "quay.io/team/notebook:3", "-", 0);
    let (name, image, names, labels) = said(host.find(&id).0);
    assert_eq!((&*name, &*image, &*names, labels), expected);
    host.put(&format!("{STORAGE}/containers.json"), "[{");
    assert_eq!(host.find(&id).0.unwrap_err().class(), "invalid_reply");
}

#[test]
fn dockers_own_file_comes_before_the_bundle_of_its_containerd() {
    let host = Host::new();
    host.put(
        &format!("{DOCKER_TASK}/{DOCKER_ID}/config.json"),
        include_str!("docker-containerd.json"),
    );
    assert_eq!(host.find(DOCKER_ID).0.unwrap_err().class(), "nameless");
    host.put(
        &format!("{DOCKER}/{DOCKER_ID}/config.v2.json"),
        include_str!("docker.json"),
    );
    assert_eq!(said(host.find(DOCKER_ID).0).0, "k8s_trainer_train-0");
}

#[test]
fn crio_believes_the_kubelets_labels_and_not_the_pods_annotations() {
    // Whoever writes a pod writes its annotations, also those that look like the kubelet's labels.
    let id = hex("a1");
    let host = Host::new();
    let text = include_str!("crio-container.json").replace(
        r#""io.kubernetes.pod.namespace": "ml""#,
        r#""io.kubernetes.pod.namespace": "bank""#,
    );
    assert!(text.contains("bank"));
    host.put(&format!("{STORAGE}/{id}/userdata/config.json"), text);
    assert_eq!(
        said(host.find(&id).0).2,
        format!("ml/train-0/trainer {UID}")
    );
}

#[test]
fn names_that_cannot_be_kubernetes_are_refused_and_counted() {
    let id = hex("a1");
    for (found, forged) in [
        (r#""ml""#, r#""(none)""#),
        (r#""train-0""#, r#""a/b""#),
        (UID, ""),
        (r#""trainer""#, r#""a\nb""#),
    ] {
        let host = Host::new();
        let text = include_str!("containerd-container.json").replace(found, forged);
        host.put(&format!("{TASK}/k8s.io/{id}/config.json"), text);
        let (answer, counters) = host.find(&id);
        assert_eq!(answer.unwrap_err().class(), "nameless", "{forged}");
        assert_eq!(counters.kubernetes_refused.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn garbage_is_a_class_of_its_own_and_its_text_is_not_repeated() {
    let id = hex("a1");
    let deep = "[".repeat(200_000);
    let rows: [&[u8]; 9] = [
        b"",
        b"\0",
        b"\xff\xfe{}",
        b"{\"annotations\": {\"a\": \"hunter2\"",
        b"{\"annotations\": \"hunter2\"}",
        b"{\"annotations\": {\"hunter2\": 1}}",
        b"[\"hunter2\"]",
        b"hunter2",
        deep.as_bytes(),
    ];
    for text in rows {
        let host = Host::new();
        host.put(&format!("{TASK}/k8s.io/{id}/config.json"), text);
        host.put(&format!("{DOCKER}/{id}/config.v2.json"), text);
        let fault = host.find(&id).0.unwrap_err();
        assert_eq!(fault.class(), "invalid_reply", "{fault}");
        assert!(!fault.to_string().contains("hunter2"), "{fault}");
    }
    // Another container's file under this one's id.
    let host = Host::new();
    let path = format!("{DOCKER}/{id}/config.v2.json");
    host.put(&path, include_str!("docker.json"));
    assert_eq!(host.find(&id).0.unwrap_err().class(), "invalid_reply");
}

#[test]
fn a_file_is_read_to_a_mebibyte_and_no_further() {
    let id = hex("a1");
    let path = format!("{TASK}/k8s.io/{id}/config.json");
    let mut text = include_str!("containerd-container.json").to_owned();
    text.push_str(&" ".repeat((1 << 20) - text.len()));
    let host = Host::new();
    host.put(&path, &text);
    assert_eq!(said(host.find(&id).0).1, "docker.io/lab/busybox:1");
    text.push(' ');
    host.put(&path, &text);
    assert_eq!(host.find(&id).0.unwrap_err().class(), "too_large");
}

#[test]
fn what_is_no_file_or_leads_elsewhere_is_refused() {
    let id = hex("a1");
    let outside = tempfile::tempdir().unwrap();
    let genuine = outside.path().join("config.json");
    fs::write(&genuine, include_str!("containerd-container.json")).unwrap();
    let folder = format!("{TASK}/k8s.io/{id}");
    type Make<'a> = &'a dyn Fn(&Host, &Path);
    let rows: [(&str, Make<'_>); 7] = [
        // It would block whoever opens it for reading.
        ("not_a_file", &|_, at| {
            mknodat(CWD, at, FileType::Fifo, 0o600.into(), 0).unwrap();
        }),
        ("not_a_file", &|_, at| fs::create_dir(at).unwrap()),
        ("escapes", &|_, at| symlink(&genuine, at).unwrap()),
        ("escapes", &|_, at| {
            symlink("../../../../../../etc/passwd", at).unwrap();
        }),
        ("escapes", &|_, at| symlink("config.json", at).unwrap()),
        ("escapes", &|_, at| {
            symlink("/proc/self/fd/0", at).unwrap();
        }),
        // The whole folder is somewhere else.
        ("escapes", &|_, at| {
            let folder = at.parent().unwrap();
            fs::remove_dir(folder).unwrap();
            symlink(outside.path(), folder).unwrap();
        }),
    ];
    for (row, (class, make)) in rows.iter().enumerate() {
        let host = Host::new();
        fs::create_dir_all(host.at(&folder)).unwrap();
        make(&host, &host.at(&folder).join("config.json"));
        let fault = host.find(&id).0.unwrap_err();
        assert_eq!(fault.class(), *class, "row {row}: {fault}");
    }
    // A link that stays below the root is as good as the file.
    let host = Host::new();
    host.put(
        &format!("{TASK}/k8s.io/elsewhere/config.json"),
        include_str!("containerd-container.json"),
    );
    symlink("elsewhere", host.at(&folder)).unwrap();
    assert_eq!(said(host.find(&id).0).1, "docker.io/lab/busybox:1");
}

#[test]
fn a_root_is_found_as_the_host_would_find_it() {
    let id = hex("a1");
    let host = Host::new();
    host.put(
        &format!("{TASK}/k8s.io/{id}/config.json"),
        include_str!("containerd-container.json"),
    );
    fs::create_dir_all(host.at("var")).unwrap();
    // In the agent's own root this leads somewhere else.
    symlink("/run", host.at("var/run")).unwrap();
    symlink("../../../../../run", host.at("var/climbs")).unwrap();
    for containerd in ["/var/run/containerd", "/var/climbs/containerd"] {
        let mut config = host.config();
        config.containerd = vec![containerd.into()];
        let ids = [ContainerId::from(&*id)];
        let (presence, mut answers) = config.find(&ids, &Counters::default());
        assert_eq!(presence.place.as_deref(), Some(Path::new(containerd)));
        assert_eq!(said(answers.pop().unwrap()).1, "docker.io/lab/busybox:1");
    }
}

#[test]
fn a_root_that_is_a_file_is_as_good_as_none_and_a_loop_is_an_obstacle() {
    let host = Host::new();
    host.put("run/containerd", "");
    let (presence, _) = host.config().find(&[], &Counters::default());
    assert!(presence.place.is_none() && presence.obstacle.is_none());
    fs::remove_file(host.at("run/containerd")).unwrap();
    symlink("containerd", host.at("run/containerd")).unwrap();
    let (presence, _) = host.config().find(&[], &Counters::default());
    let (path, fault) = presence.obstacle.unwrap();
    assert_eq!(
        (path.to_str().unwrap(), fault.class()),
        ("/run/containerd", "escapes")
    );
}

proptest! {
    #[test]
    fn nothing_that_a_file_says_makes_a_name_that_is_none(
        text in proptest::collection::vec(any::<u8>(), 0..200),
        keys in proptest::collection::btree_map("io\\.kubernetes\\.(cri|pod|cri-o)\\.[a-zA-Z-]{1,18}|io.kubernetes.cri.(container-type|sandbox-(name|namespace|uid)|container-name)", ".{0,40}", 0..8),
    ) {
        let id = ContainerId::from(&*hex("a1"));
        let counters = Counters::default();
        let annotated = serde_json::json!({ "annotations": keys }).to_string();
        for text in [&text[..], annotated.as_bytes()] {
            if let Ok(found) = from_spec(&id, Path::new("x"), text, &counters) {
                prop_assert!(found.name.is_some() || found.kubernetes.is_some());
                if let Some(names) = found.kubernetes {
                    for name in [&names.namespace, &names.pod, &names.pod_uid.0] {
                        prop_assert!(super::super::is_kubernetes_name(name));
                    }
                }
            }
        }
    }
}
