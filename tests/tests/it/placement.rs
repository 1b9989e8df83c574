//! Short work in cgroups that events alone do not tell of: they lie deep and were there before the
//! agent, or they are in a hierarchy that events do not name.

#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests panic as the tests do, to keep the stack"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gpuacct::core::explanation::CgroupOwner;
use gpuacct::core::model::UnattributedReason;
use gpuacct_tests::agent;
use gpuacct_tests::cgroups::{self, Container};
use gpuacct_tests::kernel::legacy_mount;
use gpuacct_tests::node::{Node, account};
use gpuacct_tests::requirement::require;

/// cgroups one in the other, removed from the lowest up.
pub(crate) struct Chain(Vec<PathBuf>);

impl Chain {
    pub(crate) fn make(mount: &Path, components: impl IntoIterator<Item = String>) -> Self {
        let mut chain = Self(Vec::new());
        let mut path = mount.to_owned();
        for component in components {
            path.push(component);
            fs::create_dir(&path).unwrap();
            chain.0.push(path.clone());
        }
        chain
    }

    pub(crate) fn lowest(&self) -> &Path {
        self.0.last().unwrap()
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            if let Err(error) = fs::remove_dir(path) {
                eprintln!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

#[test]
fn short_work_in_deep_cgroups_of_before_is_its_containers() {
    const JOBS: usize = 16;
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let Some(hierarchy) = require("cgroups", cgroups::hierarchy()) else {
        return;
    };
    for depth in [40, 70, 200] {
        let node = Node::new(1).unwrap();
        let id = cgroups::container_id(depth);
        let name = format!("gpuacct-deep-{depth}-{}", std::process::id());
        let above = [name, "docker".to_owned(), id.clone()];
        let below = (0..depth).map(|_| "d".to_owned());
        let chain = Chain::make(&hierarchy, above.into_iter().chain(below));

        let mut agent = node.agent("agent", node.config()).unwrap();
        for _ in 0..JOBS {
            let mut command = node.host_work(0, "0.8");
            command.args(["--duration-ms", "400"]);
            let mut job = Container::spawn_at(chain.lowest(), &mut command).unwrap();
            assert!(job.wait().unwrap().success());
        }
        // The driver's last sample of it comes within a second.
        let end = sim_nvml::wall_us() * 1_000 + 1_000_000_000;
        let status = agent
            .wait_for_status("the books to pass the work", |status| {
                let book = &status.snapshot.gpus[0];
                book.start.0 + book.elapsed.0 > end && account(status, 0, &id).is_some()
            })
            .unwrap();
        let busy = account(&status, 0, &id).unwrap().amounts.busy.0;
        let book = &status.snapshot.gpus[0];
        let unknown = book
            .unattributed
            .iter()
            .find(|(reason, _)| *reason == UnattributedReason::UnknownCgroup)
            .map_or(0, |(_, amount)| amount.0);
        println!("depth {depth}: {busy} ns the container's, {unknown} ns unknown_cgroup");
        assert!(
            unknown * 10 < busy,
            "depth {depth}: {unknown} ns of unknown_cgroup beside {busy} ns"
        );
        assert!(agent.stop().unwrap().success());
    }
}

#[test]
fn short_work_of_a_job_that_freezer_alone_names_is_the_jobs() {
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let Some((freezer, _)) = require("cgroup-v1", legacy_mount("freezer")) else {
        return;
    };
    let node = Node::new(1).unwrap();
    // As Slurm names it on cgroup v1, with a node's name of this test's own.
    let slurm = format!("slurm_gpuacct{}", std::process::id());
    let unit = format!("/{slurm}/uid_0/job_7");
    let chain = Chain::make(&freezer, [slurm, "uid_0".to_owned(), "job_7".to_owned()]);
    let mut script = Command::new("sh");
    script.args([
        "-c",
        r#"read go; for n in 1 2 3 4 5 6 7 8; do "$@" || exit 1; done"#,
        "sh",
    ]);
    let work = node.host_work(0, "0.8");
    script.arg(work.get_program()).args(work.get_args());
    script.args(["--duration-ms", "400"]);
    let mut script = Container::spawn_at(chain.lowest(), script.stdin(Stdio::piped())).unwrap();

    let mut agent = node.agent("agent", node.config()).unwrap();
    let pid = script.id().to_string();
    agent
        .wait_for("a scan to find the job", |agent| {
            let told = agent.explain(&pid)?;
            let mut owners = told.iter().flat_map(|told| &told.owners);
            Ok(owners.any(
                |owner| matches!(&owner.who, CgroupOwner::Host { unit: found } if found.as_str() == unit),
            ))
        })
        .unwrap();
    // What it forks now, events alone tell of.
    script.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(script.wait().unwrap().success());
    let status = node.settle(&mut agent).unwrap();
    let busy = status.snapshot.gpus[0].busy.0;
    let series = status.snapshot.host_series.iter();
    let of_the_job: u64 = series
        .filter(|series| series.unit.as_str() == unit)
        .map(|series| series.amounts.busy.0)
        .sum();
    assert!(busy > 1_000_000_000, "{busy} ns");
    assert_eq!(of_the_job, busy);
    assert!(agent.stop().unwrap().success());
}
