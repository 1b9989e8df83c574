//! Who owns the busy time of a window: NVML's pids, looked up in the process table.
//!
//! Pure: a window, the tables, and out come charges that add up to the window's busy time. A pid
//! that two owners had inside the window is ambiguous, since a row says nothing of when in the
//! window it was busy; two holders of one container are not.

use super::amounts::Engines;
use super::event_stream::EventStream;
use super::input::{Credit, GpuWindow};
use super::model::{BootTime, Nanos, Pid, ProcessId, UnattributedReason};
use super::opens::Opens;
use super::placement::{Owner, PlacementTable};
use super::process_table::{Holder, ProcessTable};
use super::sharing::Sharing;
use super::tables::HashMap;

/// What is needed to find the owner of a pid.
#[derive(Debug)]
pub(super) struct Lookup<'a> {
    /// Processes by pid and time.
    pub(super) processes: &'a ProcessTable,
    /// The owners of the cgroups in which processes live.
    pub(super) placements: &'a mut PlacementTable,
    /// Who opened a GPU, and when.
    pub(super) opens: &'a Opens,
    /// Up to when the kernel's events are known, and where some are missing.
    pub(super) events: &'a EventStream,
}

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
pub(super) fn charges(
    window: &GpuWindow,
    sharing: &Sharing,
    lookup: &mut Lookup<'_>,
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
        let (process, owner) = owner_of(pid, window.start, window.end, lookup);
        let of_server = sharing.payer_of_server(pid, window.start, window.end, lookup);
        let owner = of_server.unwrap_or(owner);
        let (process, owner) = confirmed(pid, window.end, (process, owner), lookup);
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

/// Who owned a pid in `(from, to]`.
pub(super) fn owner_of(
    pid: Pid,
    from: BootTime,
    to: BootTime,
    lookup: &mut Lookup<'_>,
) -> (Option<ProcessId>, Result<Owner, UnattributedReason>) {
    let complete = lookup.events.completeness();
    let holders = lookup.processes.holders(pid, from, to, complete);
    let Some(newest) = holders.first() else {
        return (None, Err(UnattributedReason::UnknownPid));
    };
    let found = match owner_among(&holders, lookup.placements) {
        Err(UnattributedReason::AmbiguousPid) => (None, Err(UnattributedReason::AmbiguousPid)),
        owner => (Some(newest.process), owner),
    };
    confirmed(pid, to, found, lookup)
}

/// The owner that was found for a pid up to `to`, unless an event may be missing that gave the pid
/// to another process by then.
pub(super) fn confirmed(
    pid: Pid,
    to: BootTime,
    found: (Option<ProcessId>, Result<Owner, UnattributedReason>),
    lookup: &Lookup<'_>,
) -> (Option<ProcessId>, Result<Owner, UnattributedReason>) {
    if found.1.is_ok() && !lookup.events.vouches_for(pid, to) {
        (None, Err(UnattributedReason::UnconfirmedPid))
    } else {
        found
    }
}

/// The one owner of everywhere that these were.
pub(super) fn owner_among(
    holders: &[Holder],
    placements: &mut PlacementTable,
) -> Result<Owner, UnattributedReason> {
    let mut found: Option<Owner> = None;
    for placement in holders
        .iter()
        .flat_map(|holder| holder.placements.iter().flatten())
    {
        let Some((owner, _)) = placements.owner(*placement) else {
            return Err(UnattributedReason::UnknownCgroup);
        };
        match &found {
            None => found = Some(owner.clone()),
            Some(other) if other == owner => {}
            Some(_) => return Err(UnattributedReason::AmbiguousPid),
        }
    }
    found.ok_or(UnattributedReason::UnknownCgroup)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::input::{Credit, WindowQuality};
    use crate::model::GpuUuid;
    use crate::process_table::Sighting;
    use std::sync::Arc;

    pub(crate) const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    pub(crate) const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    pub(crate) fn s(seconds: u64) -> BootTime {
        BootTime(seconds * 1_000_000_000)
    }

    pub(crate) struct Tables(pub ProcessTable, pub PlacementTable, pub Opens, EventStream);

    impl Tables {
        pub(crate) fn new() -> Self {
            Self(
                ProcessTable::new(100),
                PlacementTable::new(100),
                Opens::new(100),
                EventStream::default(),
            )
        }

        pub(crate) fn lookup(&mut self) -> Lookup<'_> {
            Lookup {
                processes: &self.0,
                placements: &mut self.1,
                opens: &self.2,
                events: &self.3,
            }
        }

        /// A process that lives from one second to another, or for ever if that is 0.
        pub(crate) fn live(&mut self, pid: u32, from: u64, to: u64, path: &str) {
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
        let charges = charges(&window, &Sharing::default(), &mut tables.lookup());
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
}
