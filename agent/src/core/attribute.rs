//! Who owns the busy time of a window: NVML's pids, looked up in the process table.
//!
//! Pure: a window, the tables, and out come charges that add up to the window's busy time. A pid
//! that two owners had inside the window is ambiguous, since a row says nothing of when in the
//! window it was busy; two holders of one container are not.

use std::collections::{BTreeSet, HashMap};

use super::amounts::Engines;
use super::input::{Credit, GpuProcess, GpuWindow, MpsRole};
use super::model::{BootTime, Nanos, Pid, ProcessId, UnattributedReason};
use super::placement::{Owner, PlacementTable};
use super::process_table::ProcessTable;

/// Part of a window's busy time, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The process as the driver named it; absent for busy time that no row owns.
    pub pid: Option<Pid>,
    /// The process itself, where one is known.
    pub process: Option<ProcessId>,
    /// Who pays, or why nobody does.
    pub owner: Result<Owner, UnattributedReason>,
    /// How much.
    pub busy: Nanos,
    /// And how much of the other engines.
    pub engines: Engines,
}

/// Splits a window's busy time into charges. They sum to `window.busy` if the window keeps its own
/// invariant.
#[must_use]
pub fn charges(
    window: &GpuWindow,
    mps: Option<&Mps>,
    processes: &ProcessTable,
    placements: &mut PlacementTable,
) -> Vec<Charge> {
    let rest = [
        (UnattributedReason::BelowResolution, window.below_resolution),
        (UnattributedReason::NoRow, window.no_row),
    ];
    let mut engines: HashMap<Pid, Engines> = window
        .engines
        .iter()
        .map(|used| (used.pid, used.engines))
        .collect();
    let mut charges = Vec::with_capacity(window.credits.len() + 2);
    let mut charge = |pid, busy, engines| {
        let (process, owner) = owner_of(pid, window.start, window.end, processes, placements);
        let owner = mps.and_then(|mps| mps.payer(pid)).unwrap_or(owner);
        charges.push(Charge {
            pid: Some(pid),
            process,
            owner,
            busy,
            engines,
        });
    };
    for &Credit { pid, busy } in &window.credits {
        charge(pid, busy, engines.remove(&pid).unwrap_or_default());
    }
    // A sample may name one process for the SMs and another for the memory.
    for used in &window.engines {
        if let Some(engines) = engines.remove(&used.pid) {
            charge(used.pid, Nanos::ZERO, engines);
        }
    }
    charges.extend(rest.map(|(reason, busy)| Charge {
        pid: None,
        process: None,
        owner: Err(reason),
        busy,
        engines: Engines::default(),
    }));
    charges.retain(|charge| !charge.busy.is_zero() || !charge.engines.is_zero());
    charges
}

/// One GPU's MPS server and its clients, as the process lists showed them.
///
/// Where the driver names the server, it means one of its clients. Which one cannot be told, so the
/// server's part is theirs only if all of them belong to one payer, in the latest lists that had
/// clients and in those before them: a window lies between two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mps {
    servers: BTreeSet<Pid>,
    /// The clients' one payer, if there is one; the latest first.
    clients: [Option<Option<Owner>>; 2],
}

impl Mps {
    /// Takes the lists of a GPU, with the owner of each pid at that time. A server stays one for as
    /// long as it is listed, also while it has no clients.
    pub fn observe(
        &mut self,
        lists: &[GpuProcess],
        owner_of: &mut dyn FnMut(Pid) -> Result<Owner, UnattributedReason>,
    ) {
        let mut servers = BTreeSet::new();
        let mut clients = Vec::new();
        for process in lists {
            let is_server = match process.mps {
                MpsRole::Client => {
                    clients.push(owner_of(process.pid).ok());
                    false
                }
                MpsRole::Server => true,
                MpsRole::NamedServer => {
                    matches!(owner_of(process.pid), Ok(Owner::Host(_)))
                }
                MpsRole::None => self.servers.contains(&process.pid),
            };
            if is_server {
                servers.insert(process.pid);
            }
        }
        self.servers = servers;
        if let Some((first, others)) = clients.split_first() {
            let sole = first.clone().filter(|_| others.iter().all(|o| o == first));
            self.clients.rotate_right(1);
            self.clients[0] = Some(sole);
        }
    }

    /// Who pays for what the driver names this pid for, if it is the server.
    #[must_use]
    pub fn payer(&self, pid: Pid) -> Option<Result<Owner, UnattributedReason>> {
        if !self.servers.contains(&pid) {
            return None;
        }
        let [latest, before] = &self.clients;
        let sole = latest.clone().flatten().filter(|sole| {
            let before = before.as_ref();
            before.is_none_or(|before| before.as_ref() == Some(sole))
        });
        Some(sole.ok_or(UnattributedReason::MpsServer))
    }

    /// Whether there is nothing to remember.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }
}

/// Who owned a pid in `(from, to]`.
pub fn owner_of(
    pid: Pid,
    from: BootTime,
    to: BootTime,
    processes: &ProcessTable,
    placements: &mut PlacementTable,
) -> (Option<ProcessId>, Result<Owner, UnattributedReason>) {
    let holders = processes.holders(pid, from, to);
    let Some(newest) = holders.first() else {
        return (None, Err(UnattributedReason::UnknownPid));
    };
    let mut found: Option<Owner> = None;
    for placement in holders
        .iter()
        .flat_map(|holder| holder.placements.iter().flatten())
    {
        let Some((owner, _)) = placements.owner(*placement) else {
            return (Some(newest.process), Err(UnattributedReason::UnknownCgroup));
        };
        match &found {
            None => found = Some(owner.clone()),
            Some(other) if other == owner => {}
            Some(_) => return (None, Err(UnattributedReason::AmbiguousPid)),
        }
    }
    (
        Some(newest.process),
        found.ok_or(UnattributedReason::UnknownCgroup),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::input::{Credit, WindowQuality};
    use crate::core::model::GpuUuid;
    use crate::core::process_table::Sighting;
    use std::sync::Arc;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn s(seconds: u64) -> BootTime {
        BootTime(seconds * 1_000_000_000)
    }

    struct Tables(ProcessTable, PlacementTable);

    impl Tables {
        fn new() -> Self {
            Self(ProcessTable::new(100), PlacementTable::new(100))
        }

        fn live(&mut self, pid: u32, from: u64, to: u64, path: &str) {
            let paths: Arc<[(u32, Arc<str>)]> = Arc::new([(0, path.into())]);
            let place = self.1.of_paths(&paths);
            self.1.hold(place);
            self.0.observe(
                Pid(pid),
                s(from),
                s(from),
                place,
                Sighting::Fork,
                &mut |_| {},
            );
            if to > 0 {
                self.0.exit(Pid(pid), s(from), s(to));
            }
        }
    }

    #[test]
    fn every_way_in_which_a_row_finds_its_owner_or_a_reason() {
        let mut tables = Tables::new();
        let docker = |id: &str| format!("/docker/{id}");
        tables.live(1, 1, 0, &docker(A)); // alive
        tables.live(2, 1, 11, &docker(A)); // died inside the window
        tables.live(3, 1, 11, &docker(A)); // then reused by another container
        tables.live(3, 12, 0, &docker(B));
        tables.live(4, 1, 11, &docker(A)); // then reused by the same container
        tables.live(4, 12, 0, &docker(A));
        tables.live(5, 1, 0, "/system.slice/sshd.service");
        let place = tables.1.of_keys(Default::default()); // never announced
        tables.1.hold(place);
        tables
            .0
            .observe(Pid(6), s(1), s(1), place, Sighting::Fork, &mut |_| {});

        let credits: Vec<_> = (1..=7)
            .map(|pid| Credit {
                pid: Pid(pid),
                busy: Nanos(u64::from(pid) * 10),
            })
            .collect();
        let window = GpuWindow {
            gpu: GpuUuid::from("GPU-0"),
            start: s(10),
            end: s(13),
            busy: Nanos(280 + 3 + 5),
            idle: Nanos(s(3).0 - 288),
            unobserved: vec![],
            credits,
            below_resolution: Nanos(3),
            no_row: Nanos(5),
            engines: vec![],
            energy: None,
            quality: WindowQuality::default(),
        };
        let charges = charges(&window, None, &tables.0, &mut tables.1);
        let a = || Ok(Owner::Container(A.into()));
        let expect = [
            (a(), 10),
            (a(), 20),
            (Err(UnattributedReason::AmbiguousPid), 30),
            (a(), 40),
            (Ok(Owner::Host("sshd.service".into())), 50),
            (Err(UnattributedReason::UnknownCgroup), 60),
            (Err(UnattributedReason::UnknownPid), 70),
            (Err(UnattributedReason::BelowResolution), 3),
            (Err(UnattributedReason::NoRow), 5),
        ];
        let got: Vec<_> = charges
            .iter()
            .map(|charge| (charge.owner.clone(), charge.busy.0))
            .collect();
        assert_eq!(got, expect);
        assert_eq!(
            charges.iter().map(|charge| charge.busy).sum::<Nanos>(),
            window.busy
        );
    }

    #[test]
    fn the_mps_server_s_part_is_its_clients_where_they_are_one_payer_s() {
        let a = || Ok(Owner::Container(A.into()));
        let b = || Ok(Owner::Container(B.into()));
        let host = || Ok(Owner::Host("mps.service".into()));
        let owners = [
            (1, host()),
            (2, b()),
            (11, a()),
            (12, a()),
            (21, b()),
            (31, Err(UnattributedReason::UnknownPid)),
        ];
        let server = MpsRole::Server;
        let nobody = || Some(Err(UnattributedReason::MpsServer));
        /// What is listed, reading after reading: (pid, role). Whose the rows of pids 1 and 2 are.
        type Case<'a> = (
            &'a str,
            &'a [&'a [(u32, MpsRole)]],
            [Option<Result<Owner, UnattributedReason>>; 2],
        );
        let client = MpsRole::Client;
        let named = MpsRole::NamedServer;
        let none = MpsRole::None;
        let cases: &[Case<'_>] = &[
            ("no MPS", &[&[(1, none), (11, none)]], [None, None]),
            (
                "one client",
                &[&[(1, server), (11, client)]],
                [Some(a()), None],
            ),
            (
                "two of one container",
                &[&[(1, server), (11, client), (12, client)]],
                [Some(a()), None],
            ),
            (
                "of two containers",
                &[&[(1, server), (11, client), (21, client)]],
                [nobody(), None],
            ),
            (
                "one of them unknown",
                &[&[(1, server), (11, client), (31, client)]],
                [nobody(), None],
            ),
            (
                "one after the other",
                &[&[(1, server), (11, client)], &[(1, server), (21, client)]],
                [nobody(), None],
            ),
            (
                "and for good",
                &[
                    &[(1, server), (11, client)],
                    &[(1, server), (21, client)],
                    &[(1, server), (21, client)],
                ],
                [Some(b()), None],
            ),
            (
                "the last client is gone, its time is not",
                &[&[(1, server), (11, client)], &[(1, none)]],
                [Some(a()), None],
            ),
            (
                "the server is gone",
                &[&[(1, server), (11, client)], &[(12, none)]],
                [None, None],
            ),
            (
                "by name, on the host",
                &[&[(1, named), (11, client)]],
                [Some(a()), None],
            ),
            // Whoever takes the name in a container goes on paying for himself.
            (
                "by name, in a container",
                &[&[(2, named), (11, client)]],
                [None, None],
            ),
        ];
        for (what, readings, expected) in cases {
            let mut mps = Mps::default();
            for reading in *readings {
                let lists: Vec<GpuProcess> = reading
                    .iter()
                    .map(|&(pid, mps)| GpuProcess {
                        pid: Pid(pid),
                        memory: None,
                        mps,
                    })
                    .collect();
                mps.observe(&lists, &mut |pid| {
                    let found = owners.iter().find(|(known, _)| Pid(*known) == pid);
                    found.expect("a pid of the table").1.clone()
                });
            }
            assert_eq!([1, 2].map(|pid| mps.payer(Pid(pid))), *expected, "{what}");
        }
    }
}
