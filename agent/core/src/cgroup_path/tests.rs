use proptest::prelude::*;

use super::*;
use crate::cgroup_path::segment::ID_LEN;

const A: &str = "6f1e0b5d9c3a47288f0e1d2c3b4a59687766554433221100ffeeddccbbaa9988";
const B: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const UID: &str = "9f6c1b1e-2d3f-4a5b-8c7d-0123456789ab";
const UID_: &str = "9f6c1b1e_2d3f_4a5b_8c7d_0123456789ab";
/// A static pod's: a hash of its manifest.
const STATIC: &str = "0b1c2d3e4f5061728394a5b6c7d8e9f0";

/// `{A}`, `{B}`, `{UID}`, `{UID_}` and `{STATIC}` stand for the constants.
fn fill(template: &str) -> String {
    template
        .replace("{A}", A)
        .replace("{B}", B)
        .replace("{UID}", UID)
        .replace("{UID_}", UID_)
        .replace("{STATIC}", STATIC)
}

/// A row's words: `docker A`, `cri-o A pod=UID Burstable`, `docker A > containerd B`,
/// `pod UID Burstable`, `host ssh.service`, `root`.
fn say(meaning: &CgroupMeaning) -> String {
    fn container(c: &ContainerCgroup) -> String {
        let id = match c.id.as_str() {
            A => "A",
            B => "B",
            other => other,
        };
        let pod = c
            .pod
            .as_ref()
            .map_or(String::new(), |p| format!(" {}", pod(p)));
        let inner = c
            .inner
            .as_ref()
            .map_or(String::new(), |c| format!(" > {}", container(c)));
        format!("{} {id}{pod}{inner}", c.runtime.as_str())
    }
    fn pod(p: &PodCgroup) -> String {
        let uid = match p.uid.as_str() {
            UID => "UID",
            STATIC => "STATIC",
            other => other,
        };
        format!("pod={uid} {}", p.qos.as_str())
    }
    match meaning {
        CgroupMeaning::Container(c) => container(c),
        CgroupMeaning::Pod(p) => pod(p),
        CgroupMeaning::Host(unit) => format!("host {unit}"),
        CgroupMeaning::Root => "root".to_owned(),
    }
}

#[test]
fn every_shape_that_runtimes_write() {
    let rows = [
        // Docker: cgroupfs on v1, v2 and hybrid hosts; the systemd driver; a parent of one's own.
        ("/docker/{A}", "docker A"),
        ("/docker/{A}/", "docker A"),
        ("/system.slice/docker-{A}.scope", "docker A"),
        ("/system.slice/docker-{A}.scope/init.scope", "docker A"),
        ("/batch/{A}", "(unresolved) A"),
        ("/batch/jobs/{A}/worker", "(unresolved) A"),
        ("/batch.slice/docker-{A}.scope", "docker A"),
        ("/system.slice/docker.service/docker/{A}", "docker A"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope",
            "docker A",
        ),
        ("/docker/{A} (deleted)", "docker A"),
        // Docker under a kubelet.
        (
            "/kubepods/burstable/pod{UID}/{A}",
            "(unresolved) A pod=UID Burstable",
        ),
        (
            "/kubepods/besteffort/pod{UID}/{A}",
            "(unresolved) A pod=UID BestEffort",
        ),
        (
            "/kubepods/pod{UID}/{A}",
            "(unresolved) A pod=UID Guaranteed",
        ),
        (
            "/kubepods/burstable/pod{STATIC}/{A}",
            "(unresolved) A pod=STATIC Burstable",
        ),
        (
            "/kubepods/podetcd-node1/{A}",
            "(unresolved) A pod=etcd-node1 Guaranteed",
        ),
        (
            "/node/kubepods/burstable/pod{UID}/{A}",
            "(unresolved) A pod=UID Burstable",
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/docker-{A}.scope",
            "docker A pod=UID Burstable",
        ),
        // containerd through CRI.
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/cri-containerd-{A}.scope",
            "containerd A pod=UID BestEffort",
        ),
        (
            "/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{A}.scope",
            "containerd A pod=UID Guaranteed",
        ),
        (
            "/kubepods.slice/kubepods-pod{STATIC}.slice/cri-containerd-{A}.scope",
            "containerd A pod=STATIC Guaranteed",
        ),
        (
            "/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}",
            "containerd A pod=UID Burstable",
        ),
        ("/system.slice:docker:{A}", "docker A"),
        ("/k8s.io/{A}", "containerd A"),
        ("/system.slice/nerdctl-{A}.scope", "containerd A"),
        // Plain ctr: only an id that has the shape of one.
        ("/default/{A}", "containerd A"),
        ("/build/{A}", "(unresolved) A"),
        ("/default/train-1", "host /default/train-1"),
        // CRI-O, with and without crun's own cgroup below; its monitor is no container.
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/crio-{A}.scope",
            "cri-o A pod=UID Burstable",
        ),
        (
            "/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope/container",
            "cri-o A pod=UID Guaranteed",
        ),
        (
            "/kubepods/besteffort/pod{UID}/crio-{A}",
            "cri-o A pod=UID BestEffort",
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/crio-conmon-{A}.scope",
            "pod=UID Burstable",
        ),
        (
            "/system.slice/crio-conmon-{A}.scope",
            "host crio-conmon-{A}.scope",
        ),
        // Podman, its pods, its monitor.
        ("/libpod_parent/libpod-{A}", "podman A"),
        ("/libpod_parent/libpod-{A}/container", "podman A"),
        ("/libpod_parent/{B}/libpod-{A}", "podman A"),
        (
            "/libpod_parent/libpod-conmon-{A}",
            "host /libpod_parent/libpod-conmon-{A}",
        ),
        ("/machine.slice/libpod-{A}.scope", "podman A"),
        ("/machine.slice/libpod-{A}.scope/container", "podman A"),
        (
            "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope",
            "podman A",
        ),
        (
            "/machine.slice/libpod-conmon-{A}.scope",
            "host libpod-conmon-{A}.scope",
        ),
        ("/system.slice/web.service/libpod-payload-{A}", "podman A"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope",
            "podman A",
        ),
        (
            "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope/container",
            "podman A",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
            "podman A",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_{B}.slice/libpod-{A}.scope/container",
            "podman A",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-{A}.scope",
            "host user@1000.service/libpod-conmon-{A}.scope",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-{A}.scope",
            "containerd A",
        ),
        // Kata: the sandbox within the pod's bounds, what is kept out of them, and with Docker.
        ("/kubepods/burstable/pod{UID}/kata_{A}", "pod=UID Burstable"),
        ("/kata_overhead/{A}", "kata A"),
        (
            "/kata_overhead/kubepods/burstable/pod{UID}/{A}",
            "pod=UID Burstable",
        ),
        (
            "/kata_overhead/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}",
            "pod=UID Burstable",
        ),
        ("/docker/kata_{A}", "kata A"),
        ("/kata_overhead", "host /kata_overhead"),
        // gVisor: the sandbox in the pod's own cgroup, or in that of the pause container.
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice",
            "pod=UID Burstable",
        ),
        // Containers in containers: the outermost pays.
        ("/docker/{A}/docker/{B}", "docker A > docker B"),
        ("/docker/{A}/init", "docker A"),
        (
            "/docker/{A}/kubelet/kubepods/burstable/pod{UID}/{B}",
            "docker A > (unresolved) B pod=UID Burstable",
        ),
        (
            "/docker/{A}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID_}.slice/cri-containerd-{B}.scope",
            "docker A > containerd B pod=UID Guaranteed",
        ),
        (
            "/kubepods/pod{UID}/{A}/docker/{B}/docker/{A}",
            "(unresolved) A pod=UID Guaranteed > docker B > docker A",
        ),
        // A tenant that makes cgroups below its own, to look like somebody else.
        (
            "/docker/{A}/kubepods/burstable/pod{STATIC}/crio-{B}.scope",
            "docker A > cri-o B pod=STATIC Burstable",
        ),
        // Seen from inside a cgroup namespace.
        (
            "/../../kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope",
            "containerd A pod=UID Burstable",
        ),
        ("/../{A}", "(unresolved) A"),
        ("/..", "root"),
        // Pods' own cgroups, and what is above them.
        ("/kubepods/burstable/pod{UID}", "pod=UID Burstable"),
        (
            "/kubepods.slice/kubepods-pod{UID_}.slice",
            "pod=UID Guaranteed",
        ),
        ("/kubepods", "host /kubepods"),
        ("/kubepods/burstable", "host /kubepods/burstable"),
        (
            "/kubepods.slice/kubepods-besteffort.slice",
            "host /kubepods.slice/kubepods-besteffort.slice",
        ),
        // The host.
        ("/", "root"),
        ("", "root"),
        ("/init.scope", "host init.scope"),
        ("/system.slice/ssh.service", "host ssh.service"),
        (
            "/system.slice/system-getty.slice/getty@tty1.service",
            "host getty@tty1.service",
        ),
        (
            "/user.slice/user-0.slice/session-4.scope",
            "host session-4.scope",
        ),
        // A user's manager: what it calls its units is the user's word.
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-jupyter.service",
            "host user@1000.service/app-jupyter.service",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/sshd.service/a.scope",
            "host user@1000.service/sshd.service",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/init.scope",
            "host user@1000.service/init.scope",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/tmp",
            "host user@1000.service",
        ),
        // A service with cgroups of its own below.
        (
            "/system.slice/batch.service/sshd.service",
            "host batch.service",
        ),
        // Slurm, cgroup v2 and v1; several slurmd on a host; its own daemons.
        (
            "/system.slice/slurmstepd.scope/job_12/step_0/user/task_0",
            "host /system.slice/slurmstepd.scope/job_12",
        ),
        (
            "/system.slice/slurmstepd.scope/job_12/step_extern/slurm",
            "host /system.slice/slurmstepd.scope/job_12",
        ),
        (
            "/batch.slice/node7_slurmstepd.scope/job_12/step_batch/user/task_special",
            "host /batch.slice/node7_slurmstepd.scope/job_12",
        ),
        (
            "/system.slice/slurmstepd.scope/system",
            "host slurmstepd.scope",
        ),
        (
            "/system.slice/slurmstepd.scope/job_x",
            "host /system.slice/slurmstepd.scope/job_x",
        ),
        (
            "/slurm/uid_1000/job_12/step_0/task_1",
            "host /slurm/uid_1000/job_12",
        ),
        (
            "/slurm_node7/uid_1000/job_12",
            "host /slurm_node7/uid_1000/job_12",
        ),
        ("/slurm/uid_1000", "host /slurm/uid_1000"),
        ("/slurm/system", "host /slurm/system"),
        // Whatever is made in a job is the job's.
        (
            "/slurm/uid_1000/job_12/step_0/docker/{A}",
            "host /slurm/uid_1000/job_12",
        ),
        // A slurmd in a pod.
        (
            "/kubepods/pod{UID}/{A}/system.slice/slurmstepd.scope/job_12",
            "(unresolved) A pod=UID Guaranteed",
        ),
        // OpenPBS.
        (
            "/pbs_jobs.service/jobid/12.head/task",
            "host /pbs_jobs.service/jobid/12.head",
        ),
        (
            "/pbs_jobs.service/jobs/12.head",
            "host /pbs_jobs.service/jobs/12.head",
        ),
        ("/pbs_jobs.service", "host pbs_jobs.service"),
        // LXC, LXD and Incus, Proxmox: whole, whatever runs inside.
        (
            "/lxc.payload.web/system.slice/ssh.service",
            "host /lxc.payload.web",
        ),
        ("/lxc.payload.web/docker/{A}", "host /lxc.payload.web"),
        ("/lxc.payload/web/init.scope", "host /lxc.payload/web"),
        ("/lxc/101/ns/init.scope", "host /lxc/101"),
        ("/lxc.monitor.web", "host /lxc.monitor.web"),
        ("/lxc.payload.", "host /lxc.payload."),
        // systemd-nspawn and other machines.
        (
            "/machine.slice/systemd-nspawn@web.service/payload/system.slice/ssh.service",
            "host systemd-nspawn@web.service",
        ),
        (
            "/machine.slice/machine-web.scope/payload/docker/{A}",
            "host machine-web.scope",
        ),
        (
            "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator",
            "host machine-qemu\\x2d1\\x2dvm.scope",
        ),
        // What a user calls a machine or a job is his own, and named behind him.
        (
            "/user.slice/user-1000.slice/user@1000.service/machine.slice/machine-web.scope",
            "host user@1000.service/machine-web.scope",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/machine.slice/systemd-nspawn@web.service",
            "host user@1000.service/systemd-nspawn@web.service",
        ),
        (
            "/system.slice/batch.service/machine.slice/machine-web.scope",
            "host batch.service",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_12",
            "host /user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_12",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/slurm/uid_1000/job_12",
            "host user@1000.service",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/pbs_jobs.service/jobs/12.head",
            "host /user.slice/user-1000.slice/user@1000.service/pbs_jobs.service/jobs/12.head",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/lxc.payload.web/init.scope",
            "host /user.slice/user-1000.slice/user@1000.service/lxc.payload.web",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/lxc/101",
            "host user@1000.service",
        ),
        ("/system.slice", "host /system.slice"),
        ("/docker", "host /docker"),
        ("/docker/buildkit", "host /docker/buildkit"),
        ("/mykubepods/pod{UID}", "host /mykubepods/pod{UID}"),
        (
            "/notkubepods-pod{UID_}.slice",
            "host /notkubepods-pod{UID_}.slice",
        ),
        ("/pod{UID}", "host /pod{UID}"),
        // Almost an id.
        ("/docker/{A}0", "host /docker/{A}0"),
        ("/docker/0123456789ab", "host /docker/0123456789ab"),
        ("/system.slice/docker-abc.scope", "host docker-abc.scope"),
        ("/docker-{A}.service", "host docker-{A}.service"),
        ("/docker-.scope", "host docker-.scope"),
        ("/crio-.slice:docker:", "host /crio-.slice:docker:"),
        ("/kubepods/pod", "host /kubepods/pod"),
        ("/kubepods/pod{UID} x", "host /kubepods/pod{UID} x"),
        ("/a\nb\u{7}", "host /a\\x0ab\\x07"),
    ];
    for (path, expected) in rows {
        assert_eq!(say(&parse(&fill(path))), fill(expected), "{path}");
    }
    let upper = format!("/docker/{}", A.to_uppercase());
    assert_eq!(say(&parse(&upper)), format!("host {upper}"));
}

#[test]
fn whichever_hierarchy_names_a_container_wins() {
    let rows: [(&[(u32, &str)], &str); 10] = [
        (&[], "root"),
        // v1 only: the v2 line is the root.
        (
            &[(9, "/docker/{A}"), (4, "/docker/{A}"), (0, "/")],
            "docker A",
        ),
        // Hybrid, with the container in a named hierarchy alone.
        (
            &[(1, "/docker/{A}"), (0, "/system.slice/docker.service")],
            "docker A",
        ),
        // A path with the pod in it says more than one without.
        (
            &[(0, "/{A}"), (3, "/kubepods/pod{UID}/{A}")],
            "(unresolved) A pod=UID Guaranteed",
        ),
        (
            &[(3, "/kubepods/pod{UID}"), (1, "/system.slice/crio.service")],
            "pod=UID Guaranteed",
        ),
        (
            &[
                (3, "/user"),
                (1, "/user.slice/user-0.slice/session-1.scope"),
                (0, "/"),
            ],
            "host session-1.scope",
        ),
        (&[(3, "/user"), (0, "/")], "host /user"),
        // Slurm on v1: systemd's own hierarchy knows of slurmd alone.
        (
            &[
                (9, "/slurm/uid_1000/job_12/step_0"),
                (1, "/system.slice/slurmd.service"),
                (0, "/system.slice/slurmd.service"),
            ],
            "host /slurm/uid_1000/job_12",
        ),
        // Rootless Podman on a hybrid host: v2 alone has the container.
        (
            &[
                (1, "/user.slice/user-1000.slice/session-1.scope"),
                (
                    0,
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope",
                ),
            ],
            "podman A",
        ),
        // Between equals, v2.
        (&[(5, "/docker/{B}"), (0, "/docker/{A}")], "docker A"),
    ];
    for (lines, expected) in rows {
        let lines: Vec<_> = lines.iter().map(|(h, p)| (*h, fill(p))).collect();
        let meaning = resolve(lines.iter().map(|(h, p)| (*h, p.as_str())));
        assert_eq!(say(&meaning), expected, "{lines:?}");
    }
}

#[test]
fn host_paths_that_differ_behind_the_cut_are_two_units() {
    let path = format!("/{}", "ü".repeat(400));
    let unit_of = |path: &str| match parse(path) {
        CgroupMeaning::Host(unit) => unit,
        other => panic!("{other:?} in {path}"),
    };
    let unit = unit_of(&path);
    assert!((MAX_UNIT - 1..=MAX_UNIT).contains(&unit.as_str().len()));
    let (begin, _mark) = unit.as_str().split_once('~').unwrap();
    assert!(path.starts_with(begin));
    assert_ne!(unit, unit_of(&format!("{path}x")));
    assert_ne!(unit, unit_of(&format!("{path}y")));
    assert_eq!(unit, unit_of(&path), "the same every time");
    // Somebody's cgroup that is called so.
    assert_ne!(unit, unit_of(unit.as_str()));
}

/// Pieces that runtimes write and pieces that nobody writes, in any order.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(A.to_owned()),
        Just(B.to_owned()),
        Just(UID.to_owned()),
        Just(UID_.to_owned()),
        "[0-9a-f]{60,66}",
        "[a-z.:_-]{0,12}",
        "\\PC{0,8}",
        prop::sample::select(vec![
            "docker",
            "docker-",
            "crio-",
            "crio-conmon-",
            "libpod-",
            "libpod_parent",
            "cri-containerd-",
            "kata_",
            "kata_overhead",
            "lxc.payload.",
            "machine.slice/machine-",
            "slurmstepd.scope/job_1",
            "slurm/uid_1/job_1",
            "user@1000.service",
            "kubepods",
            "kubepods-",
            "burstable",
            "besteffort",
            "-pod",
            "pod",
            ".slice",
            ".slice:",
            ":",
            ".scope",
            ".service",
            "..",
            " (deleted)",
            "system",
            "/",
        ])
        .prop_map(str::to_owned),
    ]
}

fn check(container: &ContainerCgroup, path: &str) -> Result<(), TestCaseError> {
    prop_assert!(path.contains(container.id.as_str()));
    prop_assert_eq!(container.id.as_str().len(), ID_LEN);
    prop_assert!(path.starts_with(&*container.place));
    prop_assert!(container.place.contains(container.id.as_str()));
    if let Some(pod) = &container.pod {
        check_pod(pod, path)?;
    }
    container.inner.as_ref().map_or(Ok(()), |c| check(c, path))
}

fn check_pod(pod: &PodCgroup, path: &str) -> Result<(), TestCaseError> {
    prop_assert!((1..=MAX_POD_UID).contains(&pod.uid.as_str().len()));
    prop_assert!(
        pod.place
            .as_ref()
            .is_none_or(|place| path.starts_with(&**place))
    );
    prop_assert!(
        path.replace('_', "-")
            .contains(&pod.uid.as_str().replace('_', "-"))
    );
    Ok(())
}

#[test]
fn a_place_is_the_path_down_to_what_names_it() {
    let rows = [
        ("/docker/{A}/init", "/docker/{A}", None),
        (
            "/kubepods/pod{UID}/{A}/docker/{B}",
            "/kubepods/pod{UID}/{A}",
            Some("/kubepods/pod{UID}"),
        ),
        (
            "/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope/container (deleted)",
            "/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope",
            Some("/kubepods.slice/kubepods-pod{UID_}.slice"),
        ),
        (
            "/x/kubepods-pod{UID_}.slice:cri-containerd:{A}",
            "/x/kubepods-pod{UID_}.slice:cri-containerd:{A}",
            Some("/x/kubepods-pod{UID_}.slice"),
        ),
    ];
    for (path, place, pod) in rows {
        let CgroupMeaning::Container(container) = parse(&fill(path)) else {
            panic!("no container in {path}");
        };
        assert_eq!(*container.place, *fill(place));
        let found = container.pod.and_then(|pod| pod.place);
        assert_eq!(found.as_deref(), pod.map(fill).as_deref(), "{path}");
    }
    let overhead = parse(&fill("/kata_overhead/kubepods/pod{UID}/{A}"));
    assert!(matches!(overhead, CgroupMeaning::Pod(pod) if pod.place.is_none()));
}

#[test]
fn what_is_not_believed_is_the_hosts() {
    let rows = [
        (
            "/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{A}",
            "user@1000.service",
            true,
        ),
        ("/evil/docker/{A}", "/evil/docker/{A}", false),
        ("/system.slice/docker-{A}.scope", "docker-{A}.scope", false),
        ("/lxc.payload.web/docker/{A}", "/lxc.payload.web", false),
        ("/user@x.service/{A}", "user@x.service", false),
        ("/", "/", false),
    ];
    for (path, unit, users) in rows {
        let path = fill(path);
        assert_eq!(as_host(&path).as_str(), fill(unit), "{path}");
        assert_eq!(is_users_own(&path), users, "{path}");
    }
}

proptest! {
    #[test]
    fn nothing_is_invented_and_everything_is_bounded(
        pieces in prop::collection::vec((piece(), any::<bool>()), 0..40),
    ) {
        let path: String = pieces
            .iter()
            .map(|(piece, slash)| format!("{}{piece}", if *slash { "/" } else { "" }))
            .collect();
        let host = as_host(&path);
        prop_assert!(!host.as_str().is_empty() && host.as_str().len() <= MAX_UNIT);
        match parse(&path) {
            CgroupMeaning::Container(container) => check(&container, &path)?,
            CgroupMeaning::Pod(pod) => check_pod(&pod, &path)?,
            CgroupMeaning::Host(unit) => {
                prop_assert!(!unit.as_str().is_empty() && unit.as_str().len() <= MAX_UNIT);
            }
            CgroupMeaning::Root => {
                prop_assert!(path.split('/').all(|c| matches!(
                    c.strip_suffix(" (deleted)").unwrap_or(c), "" | "." | ".."
                )));
            }
        }
    }
}
