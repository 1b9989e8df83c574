//! The names are as kubelets 1.20 to 1.30 make them; the 255 bytes are ext4's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::core::model::Clock;
use crate::sources::Io;

const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";

struct Host {
    folder: TempDir,
    links: Links,
    counters: Counters,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for below in ["containers", "pods"] {
            fs::create_dir_all(folder.path().join("var/log").join(below)).unwrap();
        }
        let config = config::KubeletLogs {
            host_root: folder.path().to_owned(),
            containers: "/var/log/containers".into(),
            pods: "/var/log/pods".into(),
            ..config::KubeletLogs::default()
        };
        Self {
            links: Links {
                config,
                listing: None,
            },
            folder,
            counters: Counters::default(),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join("var/log").join(path)
    }

    fn link(&self, name: &str, target: &str) {
        symlink(target, self.at("containers").join(name)).unwrap();
    }

    fn find(&mut self, id: &str) -> Answer {
        let (_, mut answers) = self.links.find(&[ContainerId::from(id)], &self.counters);
        answers.pop().unwrap()
    }
}

fn hex(pair: &str) -> String {
    pair.repeat(32)
}

fn said(answer: Answer) -> Result<String, &'static str> {
    let found = answer.map_err(|fault| fault.class())?;
    assert_eq!(found.source, IdentitySource::KubeletLogs);
    assert_eq!((&found.name, &found.image), (&None, &None));
    let names = found.kubernetes.unwrap();
    Ok(format!(
        "{}/{}/{} {}",
        names.namespace, names.pod, names.container, names.pod_uid
    ))
}

#[test]
fn a_link_and_its_target_name_a_container_together() {
    let id = hex("a1");
    let trainer = format!("ml/train-0.worker/trainer-x {UID}");
    let link = "train-0.worker_ml_trainer-x";
    let target = format!("/var/log/pods/ml_train-0.worker_{UID}/trainer-x/0.log");
    let stat = "3f9d1c0e5b7a4862";
    let rows: [(&str, &str, Result<&str, &str>); 13] = [
        (link, &target, Ok(&trainer)),
        // A kubelet that keeps its logs elsewhere.
        (
            link,
            &target.replace("/var/log", "../../data"),
            Ok(&trainer),
        ),
        // Before 1.14.
        (
            link,
            &format!("/var/log/pods/{UID}/trainer-x/0.log"),
            Ok(&trainer),
        ),
        // A static pod's uid.
        (
            link,
            &target.replace(UID, stat),
            Ok(&format!("ml/train-0.worker/trainer-x {stat}")),
        ),
        (link, &target.replace("ml_", "bank_"), Err("invalid_reply")),
        (
            link,
            &target.replace("train-0", "train-1"),
            Err("invalid_reply"),
        ),
        (
            link,
            &target.replace("trainer-x/", "other/"),
            Err("invalid_reply"),
        ),
        (link, "/etc/passwd", Err("invalid_reply")),
        (link, "x", Err("invalid_reply")),
        ("train-0.worker_ml", &target, Err("invalid_reply")),
        ("a_b_c_d", &target, Err("invalid_reply")),
        (
            "(none)_ml_trainer-x",
            &target.replace("train-0.worker", "(none)"),
            Err("invalid_reply"),
        ),
        ("__", "/var/log/pods/__/ /0.log", Err("invalid_reply")),
    ];
    for (link, target, expected) in rows {
        let mut host = Host::new();
        host.link(&format!("{link}-{id}.log"), target);
        let expected = expected.map(str::to_owned);
        assert_eq!(said(host.find(&id)), expected, "{link} -> {target}");
        assert_eq!(said(host.find(&hex("b2"))), Err("not_found"));
    }
}

#[test]
fn a_target_is_text_and_not_followed() {
    // It leads nowhere, and names the container all the same.
    let id = hex("a1");
    let mut host = Host::new();
    host.link(
        &format!("p_n_c-{id}.log"),
        &format!("/nonexistent/n_p_{UID}/c/0.log"),
    );
    assert_eq!(said(host.find(&id)), Ok(format!("n/p/c {UID}")));
    // A file in a link's place says nothing of the pod's uid.
    let other = hex("b2");
    fs::write(host.at("containers").join(format!("p_n_c-{other}.log")), "").unwrap();
    assert_eq!(said(host.find(&other)), Err("invalid_reply"));
}

#[test]
fn a_name_that_the_kubelet_had_to_cut_is_known_by_what_is_left_of_the_id() {
    let pod = "p".repeat(160);
    let target = |container: &str| format!("/var/log/pods/team_{pod}_{UID}/{container}/0.log");
    let cut = |container: &str, id: &str| {
        let whole = format!("{pod}_team_{container}-{id}");
        format!("{}.log", &whole[..251])
    };
    let (id, container) = (hex("a1"), "c".repeat(40));
    let mut host = Host::new();
    host.link(&cut(&container, &id), &target(&container));
    assert_eq!(
        said(host.find(&id)),
        Ok(format!("team/{pod}/{container} {UID}"))
    );
    assert_eq!(said(host.find(&hex("b2"))), Err("not_found"));
    // A second one that could be meant: neither is.
    host.link(&cut(&"d".repeat(40), &id), &target(&"d".repeat(40)));
    host.links.listing = None;
    assert_eq!(said(host.find(&id)), Err("not_found"));
    // Too little is left to tell one container from another.
    let mut host = Host::new();
    let container = "c".repeat(70);
    host.link(&cut(&container, &id), &target(&container));
    assert_eq!(said(host.find(&id)), Err("not_found"));
    // A container's own name that ends like an id: its target tells.
    let mut host = Host::new();
    let poser = format!("x-{}", &id[..63]);
    host.link(&cut(&poser, &hex("b2")), &target(&poser));
    assert_ne!(said(host.find(&id)), Ok(format!("team/{pod}/x {UID}")));
}

#[test]
fn a_docker_nodes_logs_name_the_container_without_the_links() {
    let id = hex("a1");
    let mut host = Host::new();
    fs::remove_dir(host.at("containers")).unwrap();
    let logs = host.at(&format!("pods/ml_train-0_{UID}/trainer"));
    fs::create_dir_all(&logs).unwrap();
    let target = format!("/var/lib/docker/containers/{id}/{id}-json.log");
    symlink(target, logs.join("0.log")).unwrap();
    // Others' logs are files, and nothing else is in the way.
    fs::write(logs.join("1.log"), "").unwrap();
    fs::write(host.at("pods/notes"), "").unwrap();
    symlink("/etc", host.at(&format!("pods/ml_train-1_{UID}"))).unwrap();
    assert_eq!(
        said(host.find(&id)),
        Ok(format!("ml/train-0/trainer {UID}"))
    );
    assert_eq!(said(host.find(&hex("b2"))), Err("not_found"));
}

#[test]
fn the_folder_is_read_anew_when_it_has_changed_and_only_then() {
    let (first, second) = (hex("a1"), hex("b2"));
    let target = format!("/var/log/pods/n_p_{UID}/c/0.log");
    let mut host = Host::new();
    host.link(&format!("p_n_c-{first}.log"), &target);
    let age = |host: &Host| {
        let folder = fs::File::open(host.at("containers")).unwrap();
        folder
            .set_modified(SystemTime::now() - Duration::from_secs(60))
            .unwrap();
    };
    age(&host);
    assert!(host.find(&first).is_ok());
    let listing = host.links.listing.clone().unwrap();
    assert!(listing.is_settled);
    // What it holds is what it answers from: a forgotten entry stays forgotten.
    host.links.listing.as_mut().unwrap().by_id.clear();
    assert_eq!(said(host.find(&first)), Err("not_found"));
    host.link(&format!("p_n_c-{second}.log"), &target);
    assert!(host.find(&second).is_ok());
    assert!(host.find(&first).is_ok());
    // Changed just now: another change may hide behind the same time.
    let just_now = (0..1_000).find_map(|_| {
        let began = Instant::now();
        let folder = fs::File::open(host.at("containers")).unwrap();
        folder.set_modified(SystemTime::now()).unwrap();
        assert!(host.find(&first).is_ok());
        // On a busy machine "just now" can be over before it is read.
        let is_just_now = began.elapsed() < SETTLED;
        is_just_now.then(|| host.links.listing.as_ref().unwrap().is_settled)
    });
    assert_eq!(just_now, Some(false));
    // A link that went away while the list was kept.
    age(&host);
    assert!(host.find(&first).is_ok());
    fs::remove_file(host.at("containers").join(format!("p_n_c-{first}.log"))).unwrap();
    age(&host);
    assert_eq!(said(host.find(&first)), Err("not_found"));
}

#[test]
fn what_is_no_link_of_the_kubelets_is_passed_over_in_silence() {
    let id = hex("a1");
    let mut host = Host::new();
    for name in [
        "x",
        ".log",
        "-.log",
        "a-b.log",
        "a_b_c-XYZ.log",
        "a_b_c-a1.log",
    ] {
        host.link(name, "y");
    }
    fs::create_dir(host.at("containers").join("folder")).unwrap();
    assert_eq!(said(host.find(&id)), Err("not_found"));
    assert_eq!(host.counters.invalid_replies.load(Ordering::Relaxed), 0);
}

proptest! {
    #[test]
    fn nothing_in_a_name_or_target_panics(name in "[a-z_0-9.-]{0,300}|.{0,80}", target in ".{0,120}") {
        let _ = id_of(&name);
        let _ = names_of_link(&name);
        let _ = names_of_log(Path::new(&target));
        if let Some(id) = id_of(&name) {
            prop_assert!(name.contains(id) && id.len() >= MIN_ID_DIGITS);
        }
    }
}

#[test]
fn a_pod_without_a_containers_log_is_named_by_its_folder() {
    let host = Host::new();
    let stat = "3f9d1c0e5b7a48623f9d1c0e5b7a4862";
    let bare = UID.replace('-', "");
    let (twice, old, odd) = ("2222", "4444", "5555");
    for folder in [
        format!("ml_train-0.worker_{UID}"),
        format!("kube-system_etcd-node1_{stat}"),
        format!("ml_a_{twice}"),
        format!("ml_b_{twice}"),
        old.to_owned(),
        format!("ml_(none)_{odd}"),
        format!("a_b_c_{odd}"),
    ] {
        fs::create_dir(host.at("pods").join(folder)).unwrap();
    }
    let rows = [
        (UID, Ok("ml/train-0.worker/(pod)")),
        (&bare, Ok("ml/train-0.worker/(pod)")),
        (stat, Ok("kube-system/etcd-node1/(pod)")),
        ("9999", Err("not_found")),
        (twice, Err("invalid_reply")),
        (old, Err("not_found")),
        (odd, Err("invalid_reply")),
        ("../containers", Err("not_found")),
    ];
    let uids = rows.iter().map(|(uid, _)| PodUid::from(*uid)).collect();
    let answers = find_pods(&host.links.config, uids, &host.counters);
    assert_eq!(answers.len(), rows.len());
    for (answer, (uid, expected)) in answers.into_iter().zip(rows) {
        let said = match answer {
            IdentityUpdate::FoundPod { source, names } => {
                assert_eq!(source, IdentitySource::KubeletLogs);
                Ok(format!(
                    "{}/{}/{}",
                    names.namespace, names.pod, names.container
                ))
            }
            IdentityUpdate::PodNotFound {
                uid: of, reason, ..
            } => {
                assert_eq!(of.as_str(), uid);
                Err(reason)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(said.as_deref().map_err(|reason| *reason), expected, "{uid}");
    }
    // A missing folder does not mean that the container is unknown.
    fs::remove_dir_all(host.at("pods")).unwrap();
    let answers = find_pods(&host.links.config, vec![UID.into()], &host.counters);
    assert_eq!(answers, []);
}

#[tokio::test]
async fn pods_are_answered_for_beside_containers() {
    let host = Host::new();
    fs::create_dir(host.at("pods").join(format!("ml_train-0_{UID}"))).unwrap();
    let (ask, pods) = mpsc::channel(1);
    let (_lookups, none) = mpsc::channel(1);
    let (out, mut inputs) = mpsc::channel(16);
    let (stop, stopped) = watch::channel(false);
    let counters = Arc::new(Counters::default());
    let config = host.links.config.clone();
    let io = IdentityIo {
        counters: Arc::clone(&counters),
        questions: none,
        io: Io {
            out,
            clock: Clock::default,
            shutdown: stopped,
        },
    };
    let task = tokio::spawn(run(config, Timing::default(), pods, io));
    ask.send(UID.into()).await.unwrap();
    let found = loop {
        if let Input::Identity(update) = inputs.recv().await.unwrap() {
            break update;
        }
    };
    assert!(
        matches!(&found, IdentityUpdate::FoundPod { names, .. } if &*names.pod == "train-0"),
        "{found:?}"
    );
    assert_eq!(counters.lookups_found.load(Ordering::Relaxed), 1);
    stop.send(true).unwrap();
    task.await.unwrap();
}
