//! What the agent's own process takes: processor time, memory, file descriptors.

use std::fs;
use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::core::model::{Clock, Nanos, WallTime};
use crate::published::ProcessBook;

/// What the process takes now. `None` if `/proc` does not say so.
pub(crate) fn book(now: Clock) -> Option<ProcessBook> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let Stat {
        start_ticks,
        virtual_bytes,
        resident_pages,
    } = stat_of(&stat)?;
    Some(ProcessBook {
        cpu: cpu(),
        resident_bytes: resident_pages.checked_mul(rustix::param::page_size() as u64)?,
        virtual_bytes,
        started: started(now, start_ticks)?,
        // The entries, less the one of the reading itself.
        open_fds: (fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1),
        max_fds: getrlimit(Resource::Nofile).current,
    })
}

/// Processor time of all threads.
pub(crate) fn cpu() -> Nanos {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(spent.tv_sec).unwrap_or_default();
    let rest = u64::try_from(spent.tv_nsec).unwrap_or_default();
    Nanos(seconds.saturating_mul(Nanos::SECOND.0).saturating_add(rest))
}

/// Physical memory in bytes. `None` if `/proc` does not say so.
pub(crate) fn resident_bytes() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let pages = stat_of(&stat)?.resident_pages;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// When the process was started. It is worked out once: a wall clock that is set would move it.
fn started(now: Clock, ticks: u64) -> Option<WallTime> {
    static STARTED: OnceLock<WallTime> = OnceLock::new();
    let each = Nanos::SECOND
        .0
        .checked_div(rustix::param::clock_ticks_per_second())?;
    let since_boot = ticks.checked_mul(each)?;
    let age = now.boot.0.saturating_sub(since_boot);
    Some(*STARTED.get_or_init(|| WallTime(now.wall.0.saturating_sub(age))))
}

/// Fields of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

fn stat_of(text: &str) -> Option<Stat> {
    // The name in brackets may have spaces and brackets of its own. The state, field 3, follows it.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(22 - 3);
    let mut next = || fields.next()?.parse().ok();
    Some(Stat {
        start_ticks: next()?,
        virtual_bytes: next()?,
        resident_pages: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::BootTime;

    #[test]
    fn fields_are_counted_from_the_name_on() {
        let text = "7 (a) b 9) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 4242 1048576 250 18446744073709551615 1\n";
        let expected = Stat {
            start_ticks: 4_242,
            virtual_bytes: 1_048_576,
            resident_pages: 250,
        };
        assert_eq!(stat_of(text), Some(expected));
        assert_eq!(stat_of("7 (a) S 1 2"), None);
        assert_eq!(stat_of(""), None);
    }

    #[test]
    fn this_process_takes_something() {
        let now = Clock {
            boot: BootTime(u64::MAX / 2),
            wall: WallTime(u64::MAX / 2),
        };
        let book = book(now).expect("/proc is there");
        assert!(book.cpu > Nanos(0));
        assert!(book.resident_bytes > 1 << 20 && book.resident_bytes < book.virtual_bytes);
        assert!(book.open_fds >= 3 && book.max_fds.is_none_or(|most| book.open_fds <= most));
        assert!(book.started < now.wall);
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
