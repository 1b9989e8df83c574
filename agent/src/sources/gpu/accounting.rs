//! The driver's own accounting, where an administrator has switched it on: a second opinion.
//!
//! It knows each process's start, end and peak of memory exactly, also after its death. Its busy time
//! is poorer than ours: once a second it credits samples to those who are alive then, so the last
//! part of a second of each life is missing, and all of a life that is shorter. Drivers since R610
//! tell the sum; older ones whole percents of a lifetime, which are no use as a check. So the dead are
//! returned once each, with what was credited to them here and, where it can be had, what the driver
//! sums up; the core keeps both sums and bills neither.
//!
//! Refused: switching the mode on. It is a setting of the GPU.
//!
//! Bounds: the driver keeps 128 of the dead and 3872 of the living; so many pids are followed.

use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;

use super::calls::Watchdog;
use super::raw::{self, ProcessAccounting};
use crate::core::input::{Accounted, Credit};
use crate::core::model::{GpuUuid, Nanos, Pid};
use crate::sources::clock;

/// Pids that the driver's accounting can hold, alive and dead.
const MOST_PIDS: usize = 4_000;

/// One GPU's accounting, as far as it was followed.
#[derive(Debug, Default)]
pub(super) struct Accounting {
    /// Whether the mode was on when it was last asked for.
    on: bool,
    /// Since when it has been followed: only lives that began later are compared.
    since_us: u64,
    /// Busy time that the agent credited, by pid, since the pid was last reported.
    credited: BTreeMap<Pid, Nanos>,
    /// Ended processes that were reported, or had ended before the first look: pid and start.
    returned: BTreeMap<u32, u64>,
}

impl Accounting {
    /// Takes what a window credits.
    pub(super) fn credit(&mut self, credits: &[Credit]) {
        if !self.on {
            return;
        }
        for credit in credits {
            if self.credited.len() < MOST_PIDS || self.credited.contains_key(&credit.pid) {
                *self.credited.entry(credit.pid).or_default() += credit.busy;
            }
        }
    }

    /// Asks the driver about ended processes. Each is returned once, one reading after it was first
    /// seen ended, so that its windows are closed by then.
    pub(super) fn read(
        &mut self,
        device: &Device<'_>,
        uuid: &GpuUuid,
        period: Nanos,
        through_us: u64,
        watchdog: &Watchdog,
    ) -> Result<Vec<Accounted>, NvmlError> {
        let mode = watchdog.call("nvmlDeviceGetAccountingMode", Some(uuid), || {
            device.is_accounting_enabled()
        });
        let was_on = std::mem::replace(&mut self.on, mode.unwrap_or(false));
        if !self.on {
            self.credited.clear();
            return Ok(Vec::new());
        }
        if !was_on {
            self.since_us = clock::now().wall.0 / 1000;
        }
        let pids = watchdog.call("nvmlDeviceGetAccountingPids", Some(uuid), || {
            device.accounting_pids()
        })?;
        // The wrapper gives zeros where the list shrank while it was asked for.
        let pids: BTreeSet<u32> = pids.into_iter().filter(|pid| *pid != 0).collect();
        let mut lives = Vec::new();
        for &pid in pids.iter().take(MOST_PIDS) {
            let life = watchdog.call("nvmlDeviceGetAccountingStats", Some(uuid), || {
                raw::accounting(device.nvml(), device, pid)
            });
            match life {
                Ok(life) => lives.push(life),
                // Dropped in between.
                Err(NvmlError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.report_dead(uuid, &lives, period, through_us))
    }

    /// Returns processes that ended and whose windows are closed up to `through_us`.
    fn report_dead(
        &mut self,
        uuid: &GpuUuid,
        lives: &[ProcessAccounting],
        period: Nanos,
        through_us: u64,
    ) -> Vec<Accounted> {
        let mut news = Vec::new();
        for life in lives.iter().filter(|life| !life.is_running) {
            let end_us = life.start_us.saturating_add(life.lifetime.0 / 1000);
            let is_known = self.returned.get(&life.pid) == Some(&life.start_us);
            if is_known || end_us >= through_us {
                continue;
            }
            self.returned.insert(life.pid, life.start_us);
            let credited = self.credited.remove(&Pid(life.pid)).unwrap_or_default();
            if life.start_us < self.since_us {
                continue;
            }
            let driver = life.credited.map(|sum| {
                let busy = u128::from(sum) * u128::from(period.0) / 10_000;
                Nanos(u64::try_from(busy).unwrap_or(u64::MAX))
            });
            news.push(Accounted {
                gpu: uuid.clone(),
                pid: Pid(life.pid),
                start_us: life.start_us,
                lifetime: life.lifetime,
                memory_peak: life.memory_peak,
                busy: driver.map(|driver| (driver, credited)),
            });
        }
        let listed = |pid: u32| lives.iter().any(|life| life.pid == pid);
        self.returned.retain(|pid, _| listed(*pid));
        self.credited.retain(|pid, _| listed(pid.0));
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn life(pid: u32, start_s: u64, lifetime_ms: u64) -> ProcessAccounting {
        ProcessAccounting {
            pid,
            is_running: lifetime_ms == 0,
            start_us: start_s * S,
            lifetime: Nanos::from_millis(lifetime_ms),
            memory_peak: Some(64),
            credited: Some(30_000),
        }
    }

    #[test]
    fn the_dead_are_told_of_once_and_when_their_windows_are_closed() {
        let gpu = GpuUuid::from("GPU-0");
        let mut accounting = Accounting {
            on: true,
            since_us: 100 * S,
            ..Accounting::default()
        };
        let credit = |pid, millis| Credit {
            pid: Pid(pid),
            busy: Nanos::from_millis(millis),
        };
        accounting.credit(&[credit(7, 300), credit(8, 100), credit(9, 50)]);
        accounting.credit(&[credit(7, 200)]);
        let mut found = |lives: &[ProcessAccounting], through_s: u64| -> Vec<_> {
            accounting
                .report_dead(&gpu, lives, Nanos::from_millis(200), through_s * S)
                .into_iter()
                .map(|found| {
                    let millis =
                        |(driver, ours): (Nanos, Nanos)| (driver.0 / 1_000_000, ours.0 / 1_000_000);
                    (found.pid.0, found.busy.map(millis))
                })
                .collect()
        };
        let (seven, eight, nine) = (life(7, 101, 2_000), life(8, 102, 0), life(9, 50, 60_000));
        // Seven's last window is not closed; nine began before anybody looked.
        assert_eq!(found(&[seven, eight, nine], 103), []);
        assert_eq!(found(&[seven, eight, nine], 112), [(7, Some((600, 500)))]);
        assert_eq!(found(&[seven, eight, nine], 113), []);
        // Another process by the same pid, and one of which the driver has no sums.
        let again = life(7, 120, 1_000);
        let eight = ProcessAccounting {
            credited: None,
            ..life(8, 102, 10_000)
        };
        let expected = [(7, Some((600, 0))), (8, None)];
        assert_eq!(found(&[again, eight], 130), expected);
    }
}
