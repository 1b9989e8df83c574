//! Where batch schedulers and machines put their cgroups: one row for each layout.
//!
//! A scheduler's directory is a parent. Each of its children is one owner, together with all that
//! is below it. The directories that the scheduler keeps for its own daemons are left out here, so
//! they stay what they are without a scheduler: the daemon's unit.
//!
//! A layout is known by the names of its directories alone. A prefix that a site has configured
//! itself is not known, and a scheduler that makes no cgroups leaves nothing to be told apart.
//! Each row names the document or the source file that it was taken from.

/// How many directories above a workload's own a layout may ask for.
pub(super) const MAX_ABOVE: usize = 3;

/// The name of one directory, as a layout describes it.
enum Name {
    /// Any name.
    Any,
    /// This name.
    Is(&'static str),
    /// One of these names.
    OneOf(&'static [&'static str]),
    /// Any name but these.
    Not(&'static [&'static str]),
    /// This, and at least one more character.
    Starts(&'static str),
    /// At least one character, and this.
    Ends(&'static str),
    /// This, and at least one more character, and that.
    Between(&'static str, &'static str),
    /// This, and decimal digits.
    Numbered(&'static str),
    /// A job's number, and what the scheduler puts behind it.
    JobNumber,
    /// An allocation's UUID alone, or a dot or a dash and the name of a task behind it.
    Allocation,
    /// An id of 32 hexadecimal digits, or the name of the directory above, then a dash and decimal
    /// digits.
    TaskContainer,
    /// Any name but that of a container of a runtime.
    NoContainer,
}

impl Name {
    /// `parent` is the directory above.
    fn fits(&self, name: &str, parent: &str) -> bool {
        let is_longer = |rest: Option<&str>| rest.is_some_and(|rest| !rest.is_empty());
        match *self {
            Self::Any => true,
            Self::Is(expected) => name == expected,
            Self::OneOf(names) => names.contains(&name),
            Self::Not(names) => !names.contains(&name),
            Self::Starts(prefix) => is_longer(name.strip_prefix(prefix)),
            Self::Ends(suffix) => is_longer(name.strip_suffix(suffix)),
            Self::Between(prefix, suffix) => is_longer(
                name.strip_prefix(prefix)
                    .and_then(|rest| rest.strip_suffix(suffix)),
            ),
            Self::Numbered(prefix) => is_numbered(name, prefix),
            Self::JobNumber => name.starts_with(|first: char| first.is_ascii_digit()),
            Self::Allocation => is_allocation(name),
            Self::TaskContainer => is_task_container(name, parent),
            Self::NoContainer => container_id(name).is_none() && prefixed(name).is_none(),
        }
    }
}

/// Whether systemd or the scheduler may have been told to put the layout below another directory.
#[derive(PartialEq, Eq)]
enum LayoutAnchor {
    /// The first directory of the layout is at the root of the hierarchy.
    Root,
    /// It may be anywhere.
    Anywhere,
}

/// What a workload is called.
#[derive(Clone, Copy)]
enum Called {
    /// By its whole path.
    Path,
    /// By the name of its own directory. Only for layouts at the root, where nobody but root makes
    /// directories.
    OwnName,
}

/// One layout.
struct Layout {
    place: LayoutAnchor,
    /// The directories above, the nearest last.
    above: &'static [Name],
    /// The workload's own directory.
    own: Name,
    called: Called,
}

/// A layout whose workloads are called by their paths.
const fn layout(place: LayoutAnchor, above: &'static [Name], own: Name) -> Layout {
    Layout {
        place,
        above,
        own,
        called: Called::Path,
    }
}

use LayoutAnchor::{Anywhere, Root};
use Name::{
    Allocation, Any, Between, Ends, Is, JobNumber, NoContainer, Not, Numbered, OneOf, Starts,
    TaskContainer,
};

use crate::cgroup_path::segment::{container_id, is_numbered, prefixed};

/// The prefix of PBS's directories is `cgroup_prefix` of its hook's configuration. These are the
/// defaults of its releases.
const PBS_SERVICES: Name = OneOf(&["pbs_jobs.service", "pbspro.service", "pbs.service"]);

const LAYOUTS: &[Layout] = &[
    // Slurm on cgroup v2: `slurmstepd.scope/job_<id>`, and from 26.05 on `slurmstepd.scope/<SLUID>`
    // unless `CgroupJobIdPaths=yes` is set. The scope is below the slice that `CgroupSlice` names.
    // The node's name stands before it where several slurmd share a host. `system` is for
    // slurmstepd before it has a job (Slurm: "Control Group v2 plugin", `cgroup.conf`,
    // `cgroup_v2.c`).
    layout(Anywhere, &[Is("slurmstepd.scope")], Not(&["system"])),
    layout(Anywhere, &[Ends("_slurmstepd.scope")], Not(&["system"])),
    // Slurm on cgroup v1: `/slurm/uid_<uid>/job_<id>`, and `slurm_<node>` where several slurmd
    // share a host. slurmd itself is in `/slurm/system` (Slurm: `cgroup_v1.c`, `xcgroup.c`).
    layout(Root, &[Is("slurm"), Numbered("uid_")], Any),
    layout(Root, &[Starts("slurm_"), Numbered("uid_")], Any),
    // OpenPBS and PBS Professional: `jobid` on v1, `jobs` on v2. Older hooks use a slice of
    // systemd's or no directory between (OpenPBS: `pbs_cgroups.PY`, `pbs_cgroups_hook.py`).
    layout(Anywhere, &[PBS_SERVICES, OneOf(&["jobid", "jobs"])], Any),
    layout(
        Root,
        &[Is("pbs_jobs.slice")],
        Between("pbs_jobs-", ".slice"),
    ),
    layout(Root, &[Is("pbspro.slice")], Between("pbspro-", ".slice")),
    layout(Root, &[Is("pbs.slice")], Between("pbs-", ".slice")),
    layout(Root, &[OneOf(&["pbs_jobs", "pbspro", "pbs"])], JobNumber),
    // Torque: `/torque/<id>.<server>`, with the port between where several pbs_mom share a host
    // (Torque: `trq_cgroups.c`).
    layout(Root, &[Is("torque")], JobNumber),
    layout(Root, &[Is("torque"), Starts(".")], JobNumber),
    // HTCondor: `BASE_CGROUP` is `htcondor`, at the root on v1 and in `system.slice` on v2. A job's
    // directory is called after its execute directory and slot, `condor_<directory>_slot<n>`. A
    // starter that has no more than what systemd delegates to it makes its directories in the
    // service (HTCondor: "Cgroup-Based Process Tracking", `vanilla_proc.cpp`).
    layout(Anywhere, &[Is("htcondor")], Starts("condor_")),
    layout(Anywhere, &[Is("condor.service")], Not(&["htcondor"])),
    // Univa and Altair Grid Engine: `/UGE/<job>.<task>` (Univa Grid Engine: `sge_conf(5)`,
    // `cgroup_path`).
    layout(Root, &[Is("UGE")], JobNumber),
    // Son of Grid Engine: `/sge/<job>.<task>`, in cpuset alone (`sge_cgroup.c`).
    layout(Root, &[Is("sge")], JobNumber),
    // IBM Spectrum LSF: `/lsf/<cluster>/job.<id>.<…>`; a cluster's directory has jobs alone (LSF:
    // `LSF_PROCESS_TRACKING`, `LSF_LINUX_CGROUP_ACCT`).
    layout(Root, &[Is("lsf"), Any], Any),
    // Nomad: `<allocation>.<task>.scope` on v2, `<allocation>.<task>` on v1. Where a task is
    // differs between cpuset and the other controllers, so it is called by its own name (Nomad:
    // `client/lib/cgroupslib/editor.go`; `client/lib/cgutil` before 1.7).
    nomad(&[Is("nomad.slice")]),
    nomad(&[
        Is("nomad.slice"),
        OneOf(&["share.slice", "reserve.slice", "share", "reserve"]),
    ]),
    nomad(&[Is("nomad")]),
    nomad(&[
        Is("nomad"),
        OneOf(&["share", "reserve", "shared", "reserved"]),
    ]),
    // Amazon ECS without the Docker Engine: `/ecs/<task>/<id>-<n>`, with the cluster between in
    // newer agents, and `ecstasks-<task>.slice` on v2. The Docker Engine's containers are known as
    // such (amazon-ecs-agent: `agent/api/task/task_linux.go`, `cgroupv2_controller_linux.go`).
    layout(Root, &[Is("ecs"), Any], TaskContainer),
    layout(Root, &[Is("ecs"), Any, Any], TaskContainer),
    layout(
        Root,
        &[Is("ecstasks.slice"), Between("ecstasks-", ".slice")],
        NoContainer,
    ),
    // LXC since 4.0, LXD and Incus; LXC 3.1; LXC before and Proxmox (LXC: `cgfsng.c`).
    layout(Anywhere, &[], Starts("lxc.payload.")),
    layout(Anywhere, &[Is("lxc.payload")], Any),
    layout(Root, &[Is("lxc")], Any),
    // systemd-nspawn by itself or as a service, and what else is registered as a machine, libvirt's
    // among them (systemd: `machined`). The slice is one of systemd's own, at the root; deeper it is
    // somebody else's.
    machine(Between("machine-", ".scope")),
    machine(Between("systemd-nspawn@", ".service")),
];

const fn nomad(above: &'static [Name]) -> Layout {
    Layout {
        called: Called::OwnName,
        ..layout(Root, above, Allocation)
    }
}

const fn machine(own: Name) -> Layout {
    Layout {
        called: Called::OwnName,
        ..layout(Root, &[Is("machine.slice")], own)
    }
}

/// What the workload is called whose own directory is the last of a path; none if that directory is
/// no workload's own.
///
/// `above` has the names of the directories above, the nearest last, empty where there are fewer.
/// `depth` is the number of directories down to the workload's own.
pub(super) fn workload<'p>(
    above: [&str; MAX_ABOVE],
    depth: usize,
    own: &'p str,
    path: &'p str,
) -> Option<&'p str> {
    let found = LAYOUTS.iter().find(|layout| {
        let asked = layout.above.len();
        let is_placed = match layout.place {
            LayoutAnchor::Root => depth == asked + 1,
            LayoutAnchor::Anywhere => depth > asked,
        };
        let nearest = &above[MAX_ABOVE - asked..];
        is_placed
            && layout.own.fits(own, above[MAX_ABOVE - 1])
            && layout
                .above
                .iter()
                .zip(nearest)
                .all(|(asked, name)| asked.fits(name, ""))
    })?;
    Some(match found.called {
        Called::Path => path,
        Called::OwnName => own,
    })
}

/// Characters of a UUID.
const UUID_LEN: usize = 36;

fn is_allocation(name: &str) -> bool {
    let Some((uuid, rest)) = name.split_at_checked(UUID_LEN) else {
        return false;
    };
    let is_uuid = uuid.bytes().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    is_uuid && (rest.is_empty() || rest.starts_with(['.', '-']))
}

fn is_task_container(name: &str, parent: &str) -> bool {
    const TASK_ID_LEN: usize = 32;
    let Some((task, number)) = name.rsplit_once('-') else {
        return false;
    };
    let is_task = (task == parent && !parent.is_empty())
        || (task.len() == TASK_ID_LEN && task.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_task && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

const _: () = {
    let mut row = 0;
    while row < LAYOUTS.len() {
        assert!(LAYOUTS[row].above.len() <= MAX_ABOVE);
        row += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::super::{CgroupMeaning, parse, resolve};

    const ID: &str = "6f1e0b5d9c3a47288f0e1d2c3b4a59687766554433221100ffeeddccbbaa9988";
    const TASK: &str = "cd189a933e5849daa93386466019ab50";
    const ALLOCATION: &str = "416baca9-bc05-d4c4-29f0-d0feec4e355c";

    fn fill(template: &str) -> String {
        template
            .replace("{ID}", ID)
            .replace("{TASK}", TASK)
            .replace("{ALLOC}", ALLOCATION)
    }

    /// The host unit, or what else it is.
    fn say(meaning: &CgroupMeaning) -> String {
        match meaning {
            CgroupMeaning::Host(unit) => unit.to_string(),
            CgroupMeaning::Container(container) => format!("container {}", container.id),
            CgroupMeaning::Pod(pod) => format!("pod {}", pod.uid),
            CgroupMeaning::Root => "root".to_owned(),
        }
    }

    #[test]
    fn a_schedulers_unit_does_not_swallow_its_jobs() {
        let rows = [
            // Slurm 26.05: the job's id in the place of its number.
            (
                "/system.slice/slurmstepd.scope/sEKNKTV3WPV500/step_0/user/task_0",
                "/system.slice/slurmstepd.scope/sEKNKTV3WPV500",
            ),
            (
                "/system.slice/node7_slurmstepd.scope/s5K1KKYAYG5D00/step_batch/slurm",
                "/system.slice/node7_slurmstepd.scope/s5K1KKYAYG5D00",
            ),
            (
                "/batch.slice/batch-gpu.slice/slurmstepd.scope/job_7/step_extern",
                "/batch.slice/batch-gpu.slice/slurmstepd.scope/job_7",
            ),
            ("/system.slice/slurmstepd.scope", "slurmstepd.scope"),
            ("/system.slice/slurmstepd.scope/system", "slurmstepd.scope"),
            ("/system.slice/slurmd.service", "slurmd.service"),
            ("/slurm/uid_1000/job_12/step_0", "/slurm/uid_1000/job_12"),
            ("/slurm/system", "/slurm/system"),
            // PBS.
            (
                "/pbspro.service/jobid/174849168.gadi-pbs",
                "/pbspro.service/jobid/174849168.gadi-pbs",
            ),
            ("/pbs.service/jobid/12.head/x", "/pbs.service/jobid/12.head"),
            ("/pbspro.service/jobs/698875", "/pbspro.service/jobs/698875"),
            (
                "/pbs_jobs.service/jobs/12[3].head",
                "/pbs_jobs.service/jobs/12[3].head",
            ),
            (
                "/pbspro.slice/pbspro-12.head.slice/x.scope",
                "/pbspro.slice/pbspro-12.head.slice",
            ),
            ("/pbspro/12.head/x", "/pbspro/12.head"),
            ("/system.slice/pbs.service", "pbs.service"),
            ("/pbs_jobs.service/orphan", "pbs_jobs.service"),
            // Torque.
            ("/torque/356.master23/R0.t0", "/torque/356.master23"),
            (
                "/torque/.15003/356.master23/R0.t0",
                "/torque/.15003/356.master23",
            ),
            ("/torque", "/torque"),
            // HTCondor.
            (
                "/htcondor/condor_var_lib_condor_execute_slot1_2@node/x",
                "/htcondor/condor_var_lib_condor_execute_slot1_2@node",
            ),
            (
                "/system.slice/htcondor/condor_var_lib_condor_execute_slot1_2@node",
                "/system.slice/htcondor/condor_var_lib_condor_execute_slot1_2@node",
            ),
            (
                "/system.slice/condor.service/htcondor/condor_execute_slot1/x.scope",
                "/system.slice/condor.service/htcondor/condor_execute_slot1",
            ),
            (
                "/system.slice/condor.service/condor_execute_slot1/x",
                "/system.slice/condor.service/condor_execute_slot1",
            ),
            ("/system.slice/condor.service", "condor.service"),
            ("/system.slice/condor.service/htcondor", "condor.service"),
            // Grid Engine.
            ("/UGE/1234.1", "/UGE/1234.1"),
            ("/UGE", "/UGE"),
            ("/sge/1234.1/5678", "/sge/1234.1"),
            ("/sge/1234.1/0", "/sge/1234.1"),
            // LSF.
            (
                "/lsf/euler/job.77.4711.1600000000/x",
                "/lsf/euler/job.77.4711.1600000000",
            ),
            ("/lsf/euler/77/x", "/lsf/euler/77"),
            ("/lsf/euler", "/lsf/euler"),
            // Nomad, on v2 and v1, and before 1.7.
            (
                "/nomad.slice/share.slice/{ALLOC}.train.scope/x.service",
                "{ALLOC}.train.scope",
            ),
            (
                "/nomad.slice/reserve.slice/{ALLOC}.train.scope",
                "{ALLOC}.train.scope",
            ),
            ("/nomad.slice/{ALLOC}.train.scope/x", "{ALLOC}.train.scope"),
            ("/nomad/{ALLOC}.train/x", "{ALLOC}.train"),
            ("/nomad/share/{ALLOC}.train", "{ALLOC}.train"),
            ("/nomad/reserved/{ALLOC}-train", "{ALLOC}-train"),
            ("/nomad/shared", "/nomad/shared"),
            ("/nomad.slice/docker-{ID}.scope", "container {ID}"),
            ("/system.slice/nomad.service", "nomad.service"),
            // Amazon ECS.
            (
                "/ecs/{TASK}/{TASK}-2495160603/x",
                "/ecs/{TASK}/{TASK}-2495160603",
            ),
            (
                "/ecs/cluster/{TASK}/{TASK}-2495160603",
                "/ecs/cluster/{TASK}/{TASK}-2495160603",
            ),
            (
                "/ecs/{ALLOC}/{ALLOC}-2495160603",
                "/ecs/{ALLOC}/{ALLOC}-2495160603",
            ),
            ("/ecs/{TASK}/{ID}", "container {ID}"),
            ("/ecs/cluster/{TASK}/{ID}", "container {ID}"),
            ("/ecs/{TASK}", "/ecs/{TASK}"),
            (
                "/ecstasks.slice/ecstasks-{TASK}.slice/docker-{ID}.scope",
                "container {ID}",
            ),
            (
                "/ecstasks.slice/ecstasks-{TASK}.slice/{TASK}-2495160603/x",
                "/ecstasks.slice/ecstasks-{TASK}.slice/{TASK}-2495160603",
            ),
        ];
        for (path, expected) in rows {
            assert_eq!(say(&parse(&fill(path))), fill(expected), "{path}");
        }
    }

    #[test]
    fn what_a_job_makes_below_its_own_directory_is_the_jobs() {
        let jobs = [
            "/system.slice/slurmstepd.scope/sEKNKTV3WPV500",
            "/pbspro.service/jobid/12.head",
            "/torque/12.head",
            "/htcondor/condor_execute_slot1",
            "/UGE/12.1",
            "/sge/12.1",
            "/lsf/euler/job.12.1.1",
            "/ecs/{TASK}/{TASK}-12",
            "/ecstasks.slice/ecstasks-{TASK}.slice/{TASK}-12",
        ];
        for job in jobs {
            let job = fill(job);
            for below in [
                "/docker/{ID}",
                "/kubepods/pod11111111-2222-3333-4444-555555555555/{ID}",
                "/system.slice/docker-{ID}.scope",
                "/sshd.service",
                "/slurmstepd.scope/job_1",
            ] {
                let path = format!("{job}{}", fill(below));
                assert_eq!(say(&parse(&path)), job, "{path}");
            }
        }
    }

    #[test]
    fn a_hierarchy_that_names_a_job_wins_over_a_daemons_unit() {
        let rows: [(&[(u32, &str)], &str); 6] = [
            // NCI's Gadi: pids and blkio stay in the daemon's cgroup.
            (
                &[
                    (12, "/system.slice/pbs.service"),
                    (9, "/pbspro.service/jobid/12.gadi-pbs"),
                    (6, "/"),
                    (5, "/system.slice/pbs.service"),
                    (4, "/pbspro.service/jobid/12.gadi-pbs"),
                    (0, "/system.slice/pbs.service"),
                ],
                "/pbspro.service/jobid/12.gadi-pbs",
            ),
            (
                &[
                    (9, "/htcondor/condor_execute_slot1"),
                    (1, "/system.slice/condor.service"),
                ],
                "/htcondor/condor_execute_slot1",
            ),
            // In cpuset alone.
            (
                &[
                    (9, "/system.slice/sgeexecd.service"),
                    (7, "/sge/12.1/4711"),
                    (0, "/system.slice/sgeexecd.service"),
                ],
                "/sge/12.1",
            ),
            // A container of the Docker Engine's says more.
            (
                &[(9, "/UGE/12.1"), (4, "/docker/{ID}"), (0, "/")],
                "container {ID}",
            ),
            // The same name in cpuset and elsewhere.
            (
                &[
                    (3, "/nomad/share/{ALLOC}.train"),
                    (9, "/nomad/{ALLOC}.train"),
                ],
                "{ALLOC}.train",
            ),
            // A user's manager lets him make such a directory.
            (
                &[
                    (9, "/slurm/uid_1000/job_12/step_0"),
                    (
                        0,
                        "/user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_99",
                    ),
                ],
                "/slurm/uid_1000/job_12",
            ),
        ];
        for (lines, expected) in rows {
            let lines: Vec<_> = lines.iter().map(|(h, p)| (*h, fill(p))).collect();
            let meaning = resolve(lines.iter().map(|(h, p)| (*h, p.as_str())));
            assert_eq!(say(&meaning), fill(expected), "{lines:?}");
        }
    }
}
