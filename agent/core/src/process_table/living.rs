//! How many processes live in each place.

use crate::placement::PlacementId;

/// The number of living processes by placement. So it costs nothing per process to know which
/// containers have one.
#[derive(Debug, Default)]
pub(super) struct Living {
    /// By [`PlacementId::slot`]. Placements are numbered densely.
    by_slot: Vec<u32>,
    count: u64,
    /// Grows each time a place gets its first living process or loses its last one.
    revision: u64,
}

impl Living {
    /// All living processes.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// A number that differs from an earlier one if [`Living::placements`] changed since.
    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    /// A process lives in this place now.
    pub(super) fn came(&mut self, place: PlacementId) {
        self.count += 1;
        self.add(place);
    }

    /// A process of this place is dead.
    pub(super) fn left(&mut self, place: PlacementId) {
        self.count -= 1;
        self.subtract(place);
    }

    /// A living process is in another place now.
    pub(super) fn moved(&mut self, from: PlacementId, to: PlacementId) {
        self.subtract(from);
        self.add(to);
    }

    /// The places in which processes live.
    pub(super) fn placements(&self) -> impl Iterator<Item = PlacementId> + '_ {
        let numbered = (1..).zip(&self.by_slot);
        numbered
            .filter(|(_, living)| **living > 0)
            .map(|(number, _)| PlacementId::new(number))
    }

    fn add(&mut self, place: PlacementId) {
        if self.by_slot.len() <= place.slot() {
            self.by_slot.resize(place.slot() + 1, 0);
        }
        self.by_slot[place.slot()] += 1;
        self.revision += u64::from(self.by_slot[place.slot()] == 1);
    }

    fn subtract(&mut self, place: PlacementId) {
        self.by_slot[place.slot()] -= 1;
        self.revision += u64::from(self.by_slot[place.slot()] == 0);
    }
}
