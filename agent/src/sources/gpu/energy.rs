//! The device's counter of energy: what it counted between the ends of two windows.

use crate::core::amounts::Millijoules;

/// The device's counter of energy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    /// What it showed at the end of the last window.
    baseline: Option<Millijoules>,
    /// What it showed last.
    reading: Option<Millijoules>,
}

impl Meter {
    /// Takes a reading of the counter; none if it could not be read.
    pub(super) const fn read(&mut self, reading: Option<Millijoules>) {
        self.reading = reading;
    }

    /// Makes the last reading the beginning of the next window.
    pub(super) const fn set_baseline(&mut self) {
        self.baseline = self.reading.take();
    }

    /// Begins anew if the counter could not be read: the energy since the last window is nobody's.
    pub(super) const fn forget_unread(&mut self) {
        if self.reading.is_none() {
            self.baseline = None;
        }
    }

    /// What it counted since the last window's end.
    pub(super) fn take(&mut self) -> Option<Millijoules> {
        let reading = self.reading.take()?;
        let before = self.baseline.replace(reading)?;
        reading.0.checked_sub(before.0).map(Millijoules)
    }
}
