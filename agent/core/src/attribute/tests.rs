use std::sync::Arc;

use super::*;
use crate::event_stream::EventStream;
use crate::input::{Credit, WindowQuality};
use crate::model::{BootTime, GpuUuid, Owner};
use crate::opens::Opens;
use crate::owners::Lookup;
use crate::placement::PlacementTable;
use crate::process_table::{ProcessTable, Sighting};

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
