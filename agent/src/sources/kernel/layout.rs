//! What the object must know of the running kernel: offsets of members, and the v1 controller
//! whose cgroups are reported.

use std::{fs, io};

use aya::Btf;
use gpuacct_common::event::UNIFIED_HIERARCHY;
use tracing::debug;

use super::btf::{BtfError, KernelTypes};
use super::error::{KERNEL_BTF, KernelError};

/// Where the kernel lists its v1 controllers.
const PROC_CGROUPS: &str = "/proc/cgroups";

/// The v1 controllers in whose hierarchy a container or a batch job is looked for, the best first:
/// the one that every runtime and most schedulers use, then those that keep jobs off each other's
/// devices, and those that runtimes use beside them. Schedulers do not use pids: a job's processes
/// are in the daemon's cgroup there.
const LEGACY_CONTROLLERS: [&str; 7] = [
    "memory", "devices", "freezer", "cpuset", "cpuacct", "cpu", "pids",
];

/// A member of one of the kernel's structs, whose offset the object needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct KernelField {
    pub(super) global: &'static str,
    pub(super) structure: &'static str,
    pub(super) names: &'static [&'static str],
}

macro_rules! fields {
    ($($global:ident = $structure:literal, [$($name:literal),+];)+) => {
        &[$(KernelField {
            global: stringify!($global),
            structure: $structure,
            names: &[$($name),+],
        }),+]
    };
}

/// The members whose offsets the agent cannot do without.
pub(super) const KERNEL_FIELDS: &[KernelField] = gpuacct_common::for_each_kernel_field!(fields);

/// The members whose offsets the hooks for opens of devices need.
pub(super) const OPEN_FIELDS: &[KernelField] = gpuacct_common::for_each_open_field!(fields);

/// What the object must know of the running kernel.
pub(super) struct Kernel {
    pub(super) offsets: Vec<(&'static str, u32)>,
    /// What only the programs need that report opens of devices.
    pub(super) open_offsets: Result<Vec<(&'static str, u32)>, BtfError>,
    pub(super) legacy: Option<LegacyController>,
}

/// A v1 controller that is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) name: &'static str,
    pub(super) hierarchy: u32,
}

/// The v1 controller whose cgroups are reported.
pub(super) struct LegacyController {
    pub(super) mounted: Mounted,
    /// Its place in `css_set.subsys`.
    pub(super) index: u32,
}

/// The kernel's types as aya reads them: tens of megabytes, to be dropped soon.
pub(super) fn kernel_types() -> Result<Btf, KernelError> {
    Btf::from_sys_fs().map_err(|error| KernelError::NoBtf(io::Error::other(error)))
}

impl Kernel {
    /// Reads the kernel's description of its types, and `/proc/cgroups`.
    pub(super) fn inspect() -> Result<Self, KernelError> {
        let bytes = fs::read(KERNEL_BTF).map_err(KernelError::NoBtf)?;
        let types = KernelTypes::parse(&bytes).map_err(KernelError::Btf)?;
        for name in TRACEPOINTS {
            if !types.has_typedef(&format!("btf_trace_{name}")) {
                return Err(KernelError::NoTracepoint {
                    name,
                    option: if name.starts_with("cgroup") {
                        "CONFIG_CGROUPS and CONFIG_TRACEPOINTS"
                    } else {
                        "CONFIG_TRACEPOINTS"
                    },
                });
            }
        }
        let offsets = |fields: &[KernelField]| {
            let offset = |field: &KernelField| {
                let offset = types.member_offset(field.structure, field.names)?;
                Ok((field.global, offset))
            };
            fields.iter().map(offset).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            offsets: offsets(KERNEL_FIELDS).map_err(KernelError::Btf)?,
            open_offsets: offsets(OPEN_FIELDS),
            legacy: find_legacy_controller(&types)?,
        })
    }
}

/// The v1 controller whose cgroups are reported, where one is mounted.
fn find_legacy_controller(
    types: &KernelTypes<'_>,
) -> Result<Option<LegacyController>, KernelError> {
    let mounted = match fs::read_to_string(PROC_CGROUPS) {
        Ok(table) => choose_legacy_controller(&table),
        Err(error) => {
            // Linux can be built without v1's files; then there is no v1 either.
            debug!(%error, "cannot read {PROC_CGROUPS}; only cgroup v2 is reported");
            None
        }
    };
    mounted
        .map(|mounted| {
            let index = types
                .enumerator("cgroup_subsys_id", &format!("{}_cgrp_id", mounted.name))
                .map_err(KernelError::Btf)?;
            Ok(LegacyController { mounted, index })
        })
        .transpose()
}

/// The first of [`LEGACY_CONTROLLERS`] that `/proc/cgroups` has enabled, and in a hierarchy of v1.
fn choose_legacy_controller(proc_cgroups: &str) -> Option<Mounted> {
    LEGACY_CONTROLLERS.into_iter().find_map(|name| {
        proc_cgroups.lines().find_map(|line| {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            let [found, hierarchy, _cgroups, "1"] = columns[..] else {
                return None;
            };
            let hierarchy = hierarchy.parse().ok()?;
            (found == name && hierarchy != UNIFIED_HIERARCHY).then_some(Mounted { name, hierarchy })
        })
    })
}

/// The object's functions, which are called after what they are attached to.
pub(super) const TRACEPOINTS: [&str; 5] = [
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "cgroup_mkdir",
    "cgroup_attach_task",
];

/// Those that the agent does without where the kernel refuses them. Without `cgroup_rmdir` its table
/// of cgroups keeps removed ones until it is full.
pub(super) const OPTIONAL_TRACEPOINTS: [&str; 1] = ["cgroup_rmdir"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_legacy_controller_is_the_best_that_is_mounted() {
        let head = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n";
        let rows = [
            ("", None),
            ("memory\t4\t11\t1\npids\t8\t1\t1\n", Some(("memory", 4))),
            ("pids\t8\t1\t1\nmemory\t4\t11\t1\n", Some(("memory", 4))),
            // Not mounted as v1, or switched off on the command line.
            ("memory\t0\t11\t1\npids\t8\t1\t1\n", Some(("pids", 8))),
            ("memory\t4\t1\t0\ncpu\t2\t1\t1\n", Some(("cpu", 2))),
            (
                "memory\t0\t11\t1\npids\t0\t1\t1\ncpu\t0\t1\t1\ndevices\t0\t1\t1\n",
                None,
            ),
            // Schedulers leave jobs in the daemon's cgroup of pids.
            (
                "memory\t4\t1\t0\npids\t8\t1\t1\nfreezer\t6\t1\t1\n",
                Some(("freezer", 6)),
            ),
            ("pids\t8\t1\t1\ncpuset\t3\t1\t1\n", Some(("cpuset", 3))),
            // A name that merely begins so.
            ("memory2\t2\t1\t1\ndevices\t5\t1\t1\n", Some(("devices", 5))),
            ("cpuacct\t2\t1\t1\ndevices\t5\t1\t1\n", Some(("devices", 5))),
            ("memory\n", None),
            ("memory\tfour\t1\t1\n", None),
        ];
        for (table, expected) in rows {
            let found = choose_legacy_controller(&format!("{head}{table}"));
            let found = found.map(|mounted| (mounted.name, mounted.hierarchy));
            assert_eq!(found, expected, "{table}");
        }
    }
}
