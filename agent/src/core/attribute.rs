//! Who owns the busy time of a window: NVML's pids, looked up in the process table.
//!
//! Pure: a window, the tables, and out come charges that add up to the window's busy time. A pid
//! that two owners had inside the window is ambiguous, since a row says nothing of when in the
//! window it was busy; two holders of one container are not.

use std::collections::{BTreeSet, VecDeque};

use super::amounts::Engines;
use super::input::{Credit, GpuProcess, GpuWindow, MpsRole};
use super::model::{BootTime, Nanos, Pid, ProcessId, UnattributedReason};
use super::placement::{Owner, PlacementTable};
use super::process_table::ProcessTable;
use super::tables::HashMap;

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
    sharing: &Sharing,
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
        let of_server = sharing.payer_of_server(pid, window.start, window.end);
        let owner = of_server.unwrap_or(owner);
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

/// Readings of the process lists that are remembered: a window lies between two, and is booked some
/// seconds late.
const READINGS: usize = 8;
/// A reading says nothing of a time that is later than it by more than this.
const READING_HOLDS: Nanos = Nanos::from_secs(60);

/// What a GPU's process lists said, reading after reading, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Readings<T>(VecDeque<(BootTime, BTreeSet<T>)>);

impl<T> Default for Readings<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

/// Of whom there is none, or more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotOne {
    Nobody,
    Several,
}

impl<T> Readings<T> {
    fn observe(&mut self, at: BootTime, listed: BTreeSet<T>) {
        self.0.push_front((at, listed));
        self.0.truncate(READINGS);
    }

    fn newest(&self) -> Option<&BTreeSet<T>> {
        self.0.front().map(|(_, listed)| listed)
    }

    /// The reading before `from` and all later ones up to the first that is not before `to`.
    fn around(
        &self,
        from: BootTime,
        to: BootTime,
    ) -> impl Iterator<Item = &(BootTime, BTreeSet<T>)> {
        let before = self.0.iter().position(|(at, _)| *at <= from);
        let until_before = self.0.iter().take(before.map_or(READINGS, |last| last + 1));
        let relevant = until_before.enumerate().filter(move |(index, _)| {
            let next = self.0.get(index + 1);
            next.is_none_or(|(earlier, _)| *earlier < to)
        });
        relevant.map(|(_, reading)| reading)
    }
}

impl Readings<Option<Owner>> {
    /// The one owner of all who were listed around a time. A process whose owner is not known is
    /// somebody else's.
    fn only(&self, from: BootTime, to: BootTime) -> Result<Owner, NotOne> {
        let recent = |(at, _): &&(BootTime, _)| from.since(*at) <= READING_HOLDS;
        let recent = self.around(from, to).filter(recent);
        let found: BTreeSet<_> = recent.flat_map(|(_, listed)| listed).collect();
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (None, _) => Err(NotOne::Nobody),
            (Some(Some(owner)), None) => Ok(owner.clone()),
            _ => Err(NotOne::Several),
        }
    }
}

/// What one GPU's process lists say of busy time that comes without a process of its own: an MPS
/// server's, which is its clients', and a MIG instance's, of which the driver gives the sum alone.
///
/// Whose it is cannot be told where several payers were there. So it is somebody's only if all who
/// were listed around the window are one payer's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    servers: Readings<Pid>,
    clients: Readings<Option<Owner>>,
    everyone: Readings<Option<Owner>>,
    /// The process that was alone in the latest lists.
    alone: Option<Pid>,
}

impl Sharing {
    /// Takes the lists of a GPU, with the owner of each pid at that time. An MPS server stays one
    /// for as long as it is listed, also while it has no clients.
    pub fn observe(
        &mut self,
        at: BootTime,
        lists: &[GpuProcess],
        owner_of: &mut dyn FnMut(Pid) -> Option<Owner>,
    ) {
        let mut servers = BTreeSet::new();
        let mut clients = BTreeSet::new();
        let mut everyone = BTreeSet::new();
        for process in lists {
            let owner = owner_of(process.pid);
            let is_server = match process.mps {
                MpsRole::Client => {
                    clients.insert(owner.clone());
                    false
                }
                MpsRole::Server => true,
                MpsRole::NamedServer => matches!(owner, Some(Owner::Host(_))),
                MpsRole::None => self
                    .servers
                    .newest()
                    .is_some_and(|servers| servers.contains(&process.pid)),
            };
            if is_server {
                servers.insert(process.pid);
            } else {
                everyone.insert(owner);
            }
        }
        self.alone = match lists {
            [process] => Some(process.pid),
            _ => None,
        };
        self.servers.observe(at, servers);
        self.clients.observe(at, clients);
        self.everyone.observe(at, everyone);
    }

    /// Whom one of the latest lists has as an MPS server.
    pub fn servers(&self) -> impl Iterator<Item = Pid> + '_ {
        let readings = self.servers.0.iter();
        readings.flat_map(|(_, servers)| servers.iter().copied())
    }

    /// Who pays for what the driver names this pid for in `(from, to]`, if it is an MPS server.
    #[must_use]
    pub fn payer_of_server(
        &self,
        pid: Pid,
        from: BootTime,
        to: BootTime,
    ) -> Option<Result<Owner, UnattributedReason>> {
        let only = || self.clients.only(from, to);
        // Also one that has ended since: its last window is booked later than that.
        let mut readings = self.servers.around(from, to);
        let is_server = readings.any(|(_, servers)| servers.contains(&pid));
        is_server.then(|| only().map_err(|_| UnattributedReason::MpsServer))
    }

    /// Who pays for all of a MIG instance's busy time in `(from, to]`; and the process, if there was
    /// one only.
    fn payer_of_instance(
        &self,
        from: BootTime,
        to: BootTime,
    ) -> (Option<Pid>, Result<Owner, UnattributedReason>) {
        match self.everyone.only(from, to) {
            Ok(owner) => (self.alone, Ok(owner)),
            Err(NotOne::Nobody) => (None, Err(UnattributedReason::NoRow)),
            Err(NotOne::Several) => (None, Err(UnattributedReason::SharedInstance)),
        }
    }
}

/// A MIG instance's window: the driver gives no rows, and all of it is one payer's or nobody's.
#[must_use]
pub fn charges_of_instance(
    window: &GpuWindow,
    sharing: &Sharing,
    processes: &ProcessTable,
) -> Vec<Charge> {
    let (pid, owner) = sharing.payer_of_instance(window.start, window.end);
    let holders = pid.map(|pid| processes.holders(pid, window.start, window.end));
    let charge = Charge {
        pid,
        process: holders.and_then(|holders| Some(holders.first()?.process)),
        owner,
        busy: window.busy,
        engines: Engines::default(),
    };
    Some(charge)
        .filter(|charge| !charge.busy.is_zero())
        .into_iter()
        .collect()
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
            clocks: None,
        };
        let charges = charges(&window, &Sharing::default(), &tables.0, &mut tables.1);
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

    /// Readings at 10 s, 15 s, 20 s, … of (pid, role); pids 1.. are of the host, 11.. of A, 21.. of
    /// B, 31.. of nobody known.
    fn observed(readings: &[&[(u32, MpsRole)]]) -> Sharing {
        let mut sharing = Sharing::default();
        for (at, reading) in (10..).step_by(5).zip(readings) {
            let lists: Vec<GpuProcess> = reading
                .iter()
                .map(|&(pid, mps)| GpuProcess {
                    pid: Pid(pid),
                    memory: None,
                    mps,
                })
                .collect();
            sharing.observe(s(at), &lists, &mut |pid| match pid.0 {
                1..11 => Some(Owner::Host("mps.service".into())),
                11..21 => Some(Owner::Container(A.into())),
                21..31 => Some(Owner::Container(B.into())),
                _ => None,
            });
        }
        sharing
    }

    #[test]
    fn the_mps_server_s_part_is_its_clients_where_they_are_one_payer_s() {
        let a = || Ok(Owner::Container(A.into()));
        let b = || Ok(Owner::Container(B.into()));
        let nobody = || Some(Err(UnattributedReason::MpsServer));
        let (none, client) = (MpsRole::None, MpsRole::Client);
        let (server, named) = (MpsRole::Server, MpsRole::NamedServer);
        /// The readings, a window in seconds, and whose the rows of pids 1 and 22 are.
        type Case<'a> = (
            &'a str,
            &'a [&'a [(u32, MpsRole)]],
            (u64, u64),
            [Option<Result<Owner, UnattributedReason>>; 2],
        );
        let one: &[(u32, MpsRole)] = &[(1, server), (11, client)];
        let other: &[(u32, MpsRole)] = &[(1, server), (21, client)];
        let idle: &[(u32, MpsRole)] = &[(1, none)];
        let cases: &[Case<'_>] = &[
            (
                "no MPS",
                &[&[(1, none), (11, none)]],
                (11, 12),
                [None, None],
            ),
            ("one client", &[one], (11, 12), [Some(a()), None]),
            (
                "two of one container",
                &[&[(1, server), (11, client), (12, client)]],
                (11, 12),
                [Some(a()), None],
            ),
            (
                "of two containers",
                &[&[(1, server), (11, client), (21, client)]],
                (11, 12),
                [nobody(), None],
            ),
            (
                "one of them unknown",
                &[&[(1, server), (11, client), (31, client)]],
                (11, 12),
                [nobody(), None],
            ),
            (
                "between one and another",
                &[one, other],
                (11, 12),
                [nobody(), None],
            ),
            ("after that", &[one, other], (16, 17), [Some(b()), None]),
            (
                "long before",
                &[one, one, other],
                (11, 12),
                [Some(a()), None],
            ),
            (
                "as the last client went",
                &[one, idle],
                (14, 16),
                [Some(a()), None],
            ),
            ("after it", &[one, idle], (16, 17), [nobody(), None]),
            (
                "after nobody, before somebody",
                &[one, idle, other],
                (16, 17),
                [Some(b()), None],
            ),
            (
                "when the lists have long been unread",
                &[one],
                (80, 81),
                [nobody(), None],
            ),
            (
                "before the server went",
                &[one, &[(12, none)]],
                (11, 12),
                [Some(a()), None],
            ),
            (
                "when the server is gone",
                &[one, &[(12, none)]],
                (16, 17),
                [None, None],
            ),
            (
                "by name, on the host",
                &[&[(1, named), (11, client)]],
                (11, 12),
                [Some(a()), None],
            ),
            // Whoever takes the name in a container goes on paying for himself.
            (
                "by name, in a container",
                &[&[(22, named), (11, client)]],
                (11, 12),
                [None, None],
            ),
        ];
        for (what, readings, (from, to), expected) in cases {
            let sharing = observed(readings);
            let payer = |pid| sharing.payer_of_server(Pid(pid), s(*from), s(*to));
            assert_eq!([1, 22].map(payer), *expected, "{what}");
        }
    }

    #[test]
    fn an_instance_s_time_is_its_one_container_s() {
        let none = MpsRole::None;
        let (a, b) = (
            Ok(Owner::Container(A.into())),
            UnattributedReason::SharedInstance,
        );
        /// The readings; the process and the payer.
        type Case<'a> = (
            &'a str,
            &'a [&'a [(u32, MpsRole)]],
            (Option<Pid>, Result<Owner, UnattributedReason>),
        );
        let cases: [Case<'_>; 5] = [
            ("one process", &[&[(11, none)]], (Some(Pid(11)), a.clone())),
            (
                "two of one container",
                &[&[(11, none), (12, none)]],
                (None, a),
            ),
            (
                "two containers",
                &[&[(11, none), (21, none)]],
                (None, Err(b)),
            ),
            ("nobody", &[&[]], (None, Err(UnattributedReason::NoRow))),
            ("nothing read", &[], (None, Err(UnattributedReason::NoRow))),
        ];
        for (what, readings, expected) in cases {
            let window = GpuWindow {
                gpu: GpuUuid::from("MIG-0"),
                start: s(11),
                end: s(12),
                busy: Nanos(600_000_000),
                idle: Nanos(400_000_000),
                unobserved: vec![],
                credits: vec![],
                below_resolution: Nanos::ZERO,
                no_row: Nanos(600_000_000),
                engines: vec![],
                energy: None,
                quality: WindowQuality::default(),
                clocks: None,
            };
            let charges = charges_of_instance(&window, &observed(readings), &Tables::new().0);
            assert_eq!(charges.len(), 1, "{what}");
            let (pid, owner) = (charges[0].pid, charges[0].owner.clone());
            assert_eq!((pid, owner), expected, "{what}");
            assert_eq!(charges[0].busy, window.busy, "{what}");
        }
    }
}
