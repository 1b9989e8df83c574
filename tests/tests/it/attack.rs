//! A tenant with all the rights in its container tries to have its GPU time billed to another's.
//! The kernel's path of its cgroup begins with its own container, so it pays. Another has no more
//! than a victim's labels.

use std::fs;

use gpuacct::core::explanation::{AnswerOutcome, CgroupOwner};
use gpuacct::core::snapshot::Attribution;
use gpuacct_tests::agent;
use gpuacct_tests::docker::{self, ContainerSpec, Dockerd};
use gpuacct_tests::node::{Node, account, pod_uid};
use gpuacct_tests::requirement::require;

const VICTIM: &str = "k8s_trainer_victim-0";
const THIEF: &str = "k8s_main_thief-0";
const BUSY: &str = "gpuacct_container_gpu_busy_seconds_total";
const SECOND: u64 = 1_000_000_000;

/// Makes the victim's cgroup below its own in every hierarchy, moves there, and becomes what its
/// further arguments say.
const SCRIPT: &str = r#"
    below="kubepods/burstable/pod$1/$2"
    shift 2
    # A container of a hybrid host is not shown v2, where the kernel's word is taken from first.
    own=$(sed -n s/^0:://p /proc/self/cgroup)
    mkdir /tmp/v2 && mount -t cgroup2 none /tmp/v2
    for root in /sys/fs/cgroup /sys/fs/cgroup/* "/tmp/v2$own"; do
        [ -e "$root/cgroup.procs" ] || continue
        # They are read-only where not everything is allowed from the start.
        mount -o remount,rw,bind "$root"
        mkdir -p "$root/$below" || continue
        # On v1 a new cgroup has no CPUs and takes no process until it is given some.
        at="$root"
        for level in $(echo "$below" | tr / ' '); do
            for file in cpuset.cpus cpuset.mems; do
                [ -e "$at/$file" ] && cat "$at/$file" > "$at/$level/$file"
            done
            at="$at/$level"
        done
        echo $$ > "$at/cgroup.procs"
    done
    exec "$@"
"#;

#[test]
fn who_starts_with_a_victims_labels_is_billed_itself() {
    if require("agent", agent::binary()).is_none()
        || require("docker", docker::available()).is_none()
    {
        return;
    }
    let node = Node::new(1).unwrap();
    let mut daemon = Dockerd::start(docker::Options::at(node.dir().join("d"))).unwrap();
    let mut thief = ContainerSpec::named(THIEF).in_pod("bank", "victim-0", pod_uid(), "trainer");
    // Where Docker puts whoever asks for nothing.
    thief.cgroup_parent = None;
    let thief = daemon.run(&node.at_work(thief, 0, "0.6")).unwrap();

    let mut by_socket = node.config();
    by_socket.docker.sockets = vec![daemon.socket()];
    let mut by_file = node.config();
    by_file.bundle.docker = vec![node.dir().join("d/data")];
    for (source, config) in [("docker", by_socket), ("bundle", by_file)] {
        let mut agent = node.agent(source, config).unwrap();
        let names = format!(
            "namespace=\"(none)\",pod=\"(none)\",container=\"{THIEF}\",pod_uid=\"(none)\",container_id=\"{}\"",
            thief.id
        );
        agent
            .wait_for("its amount under its own name", |agent| {
                let lines = agent.metric_lines(BUSY)?;
                Ok(lines
                    .iter()
                    .any(|line| line.contains(&names) && !line.ends_with("} 0")))
            })
            .unwrap();
        for family in [BUSY, "gpuacct_namespace_gpu_busy_seconds_total"] {
            let lines = agent.metric_lines(family).unwrap();
            let of_the_victim = |line: &String| line.contains("bank") || line.contains(pod_uid());
            assert!(!lines.iter().any(of_the_victim), "{source}: {lines:#?}");
        }
        let status = agent.status().unwrap();
        assert!(status.snapshot.agent.identities_refused > 0, "{source}");
        let told = agent.explain(&thief.id).unwrap().unwrap();
        let mut answers = told.owners[0].answers.iter();
        let winner = answers.find(|answer| answer.wins).unwrap();
        assert_eq!(winner.source.as_str(), source);
        let refused = AnswerOutcome::PodRefused {
            name: THIEF.into(),
            claimed: pod_uid().into(),
        };
        assert_eq!(winner.outcome, Some(refused), "{told:?}");
        assert!(agent.stop().unwrap().success());
    }
    daemon.remove(&thief).unwrap();
}

#[test]
fn who_makes_a_victims_cgroup_below_its_own_is_billed_itself() {
    if require("agent", agent::binary()).is_none()
        || require("docker", docker::available()).is_none()
    {
        return;
    }
    let node = Node::new(2).unwrap();
    let mut daemon = Dockerd::start(docker::Options::at(node.dir().join("d"))).unwrap();
    let mut config = node.config();
    config.docker.sockets = vec![daemon.socket()];
    let mut agent = node.agent("agent", config).unwrap();

    let victim = ContainerSpec::named(VICTIM).in_pod("bank", "victim-0", pod_uid(), "trainer");
    let victim = daemon.run(&node.at_work(victim, 0, "0.4")).unwrap();
    let work = node.work(1, "0.6", THIEF);
    let script = ["sh", "-c", SCRIPT, "sh", pod_uid(), &victim.id].map(str::to_owned);
    let thief = ContainerSpec::named(THIEF).privileged();
    let thief = node
        .mounts()
        .into_iter()
        .fold(thief, |spec, (outside, inside)| spec.mount(outside, inside))
        .command(script.into_iter().chain(work));
    let thief = daemon.run(&thief).unwrap();

    agent
        .wait_for_status("both to be billed", |status| {
            let busy =
                |gpu, id| account(status, gpu, id).map_or(0, |account| account.amounts.busy.0);
            busy(0, &victim.id) > SECOND && busy(1, &thief.id) > SECOND
        })
        .unwrap();
    // It is where it wanted to be, or there was nothing to withstand.
    let forged = format!(
        "{}/kubepods/burstable/pod{}/{}",
        thief.id,
        pod_uid(),
        victim.id
    );
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", thief.pid)).unwrap();
    assert!(
        cgroups.lines().any(|line| line.ends_with(&forged)),
        "{forged} is not in {cgroups}"
    );
    let told = agent.explain(&thief.pid.to_string()).unwrap().unwrap();
    let CgroupOwner::Container {
        id,
        pod_uid: pod,
        inner,
        ..
    } = &told.owners[0].who
    else {
        panic!("{told:?}");
    };
    assert_eq!((id.as_str(), pod), (thief.id.as_str(), &None));
    let inner: Vec<&str> = inner.iter().map(|id| id.as_str()).collect();
    assert_eq!(inner, [&*victim.id], "{told:?}");

    for container in [&victim, &thief] {
        daemon.remove(container).unwrap();
    }
    let report = node.settle(&mut agent).unwrap();
    assert_eq!(report.snapshot.accounts.len(), 2, "{report:?}");
    for (gpu, container, name) in [(0, &victim, VICTIM), (1, &thief, THIEF)] {
        let account = account(&report, gpu, &container.id).unwrap();
        assert!(
            matches!(account.attribution, Attribution::Named { .. }),
            "{account:?}"
        );
        // NVML has the samples' times in microseconds.
        let credited = node.credited_ns(name).unwrap();
        let difference = account.amounts.busy.0.abs_diff(credited);
        assert!(
            difference < SECOND / 1_000,
            "{name}: the driver credited {credited} ns: {account:?}"
        );
    }
    let lines = agent.metric_lines(BUSY).unwrap();
    let of_the_pod: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains(pod_uid()))
        .collect();
    assert_eq!(of_the_pod.len(), 1, "{lines:#?}");
    assert!(
        of_the_pod[0].contains("namespace=\"bank\",pod=\"victim-0\",container=\"trainer\""),
        "{lines:#?}"
    );
    let of_the_thief = format!(
        "namespace=\"(none)\",pod=\"(none)\",container=\"{THIEF}\",pod_uid=\"(none)\",container_id=\"{}\"",
        thief.id
    );
    assert!(
        lines.iter().any(|line| line.contains(&of_the_thief)),
        "{lines:#?}"
    );
    assert!(agent.stop().unwrap().success());
}
