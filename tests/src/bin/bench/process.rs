//! What a process costs, as the kernel counts it: processor time by thread, memory by kind, bytes
//! written.
//!
//! Units: nanoseconds of processor time, KiB of memory, bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Processor time that a process has used so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpu {
    /// By thread, from the scheduler's own clock: `utime` and `stime` count in ticks of 10 ms.
    threads: BTreeMap<u32, Thread>,
    /// `utime + stime`, in ticks.
    ticks: u64,
}

#[derive(Clone, Debug)]
struct Thread {
    name: String,
    nanos: u64,
}

impl Cpu {
    pub(crate) fn read(pid: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
            let task = task?;
            let Ok(id) = task.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            // A thread that ends meanwhile has nothing to tell.
            if let Ok(thread) = Thread::read(&task.path()) {
                threads.insert(id, thread);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("stat has a name")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let tick = |at: usize| -> Result<u64> {
            let field = fields.get(at).context("stat is too short")?;
            Ok(field.parse()?)
        };
        Ok(Self {
            threads,
            // Fields 14 and 15, counted from 1; the third is the first behind the name.
            ticks: tick(11)? + tick(12)?,
        })
    }

    /// Processor time used since `before`, by the threads' names. Threads of one name are together,
    /// and so are numbered ones: see [`group_of`]. Threads that have ended since are missing; see
    /// [`Cpu::ticks_since`].
    pub(crate) fn by_name_since(&self, before: &Self) -> BTreeMap<String, Group> {
        let mut by_name: BTreeMap<String, Group> = BTreeMap::new();
        for (id, thread) in &self.threads {
            let earlier = before.threads.get(id).map_or(0, |thread| thread.nanos);
            let group = by_name
                .entry(group_of(&thread.name).to_owned())
                .or_default();
            group.nanos += thread.nanos.saturating_sub(earlier);
            group.threads += 1;
        }
        by_name
    }

    /// Ticks of `utime + stime` since `before`, of all threads that there ever were.
    pub(crate) fn ticks_since(&self, before: &Self) -> u64 {
        self.ticks.saturating_sub(before.ticks)
    }
}

/// What threads of one name used, in nanoseconds, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) nanos: u64,
    pub(crate) threads: usize,
}

/// The name under which a thread is counted: `nvml` for `nvml-3`, which is the thread of one GPU.
fn group_of(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((group, number)) if number.parse::<u32>().is_ok() => group,
        _ => name,
    }
}

impl Thread {
    fn read(task: &Path) -> Result<Self> {
        let schedstat = fs::read_to_string(task.join("schedstat"))?;
        let nanos = schedstat.split_ascii_whitespace().next();
        Ok(Self {
            name: fs::read_to_string(task.join("comm"))?.trim_end().to_owned(),
            nanos: nanos.context("schedstat is empty")?.parse()?,
        })
    }
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) rss: u64,
    /// Of it, private memory without a file: heap and stacks.
    pub(crate) anonymous: u64,
    /// Of it, pages of files: the binary and its libraries.
    pub(crate) file: u64,
    /// Of it, shared: the kernel's ring, among others.
    pub(crate) shared: u64,
    /// Resident at the most, so far.
    pub(crate) peak: u64,
    /// Resident, with pages that others have too counted in part.
    pub(crate) pss: u64,
}

impl Memory {
    pub(crate) fn read(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        Ok(Self {
            rss: kib(&status, "VmRSS:")?,
            anonymous: kib(&status, "RssAnon:")?,
            file: kib(&status, "RssFile:")?,
            shared: kib(&status, "RssShmem:")?,
            peak: kib(&status, "VmHWM:")?,
            pss: kib(&rollup, "Pss:")?,
        })
    }
}

/// What one thread has written so far, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Handed to the kernel.
    pub(crate) to_files: u64,
    /// Of it, to be brought to a disk, in whole pages: none where the files are in memory.
    pub(crate) to_disk: u64,
}

impl Written {
    /// Of the thread of that name.
    pub(crate) fn read(pid: u32, name: &str) -> Result<Self> {
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
            let task = task?.path();
            // A thread that ends meanwhile is another one.
            let found = fs::read_to_string(task.join("comm"));
            if found.is_ok_and(|found| found.trim_end() == name) {
                let io = fs::read_to_string(task.join("io"))?;
                let figure = |field: &str| -> Result<u64> {
                    let figure = io.lines().find_map(|line| line.strip_prefix(field));
                    let figure = figure.with_context(|| format!("no {field}"))?;
                    Ok(figure.trim().parse()?)
                };
                return Ok(Self {
                    to_files: figure("wchar:")?,
                    to_disk: figure("write_bytes:")?,
                });
            }
        }
        bail!("process {pid} has no thread {name}")
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            to_files: self.to_files.saturating_sub(before.to_files),
            to_disk: self.to_disk.saturating_sub(before.to_disk),
        }
    }
}

/// The figure of a line such as `VmRSS:  123 kB`.
pub(crate) fn kib(text: &str, field: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field));
    let value = value.with_context(|| format!("no {field}"))?;
    let value = value.trim().trim_end_matches(" kB");
    value
        .parse()
        .with_context(|| format!("{field} is {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_all_gpus_are_one_figure_with_their_number() {
        let at = |threads: &[(u32, &str, u64)]| Cpu {
            threads: threads
                .iter()
                .map(|&(id, name, nanos)| {
                    let name = name.to_owned();
                    (id, Thread { name, nanos })
                })
                .collect(),
            ticks: 0,
        };
        let before = at(&[(1, "gpuacct", 5), (2, "nvml", 10), (3, "nvml-0", 20)]);
        let after = at(&[
            (1, "gpuacct", 6),
            (2, "nvml", 12),
            (3, "nvml-0", 23),
            (4, "nvml-17", 4),
            (5, "kernel-events", 7),
        ]);
        let spent = after.by_name_since(&before);
        let expected = [("gpuacct", 1, 1), ("kernel-events", 7, 1), ("nvml", 9, 3)];
        let expected = expected.map(|(name, nanos, threads)| {
            let group = Group { nanos, threads };
            (name.to_owned(), group)
        });
        assert_eq!(spent, BTreeMap::from(expected));
    }

    #[test]
    fn this_process_can_be_read() {
        let me = std::process::id();
        let before = Cpu::read(me).unwrap();
        let mut sum = 0_u64;
        while Cpu::read(me).unwrap().ticks_since(&before) == 0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let spent = Cpu::read(me).unwrap().by_name_since(&before);
        let nanos: u64 = spent.values().map(|group| group.nanos).sum();
        assert!(nanos > 0, "{spent:?}");
        let memory = Memory::read(me).unwrap();
        assert!(memory.peak >= memory.anonymous, "{memory:?}");
        assert!(memory.rss >= memory.anonymous, "{memory:?}");
    }
}
