//! How often the kernel did not run one of the object's programs although its event happened.
//!
//! The kernel does not run a program on a CPU on which it is running already. It can happen where a
//! tracepoint's programs can be interrupted or preempted, which newer kernels allow more and more. The
//! event then reaches neither the ring nor the object's own counters. The kernel alone counts it, for
//! each program: `recursion_misses` of `bpf_prog_info`, since Linux 5.12. Older kernels do not skip.
//!
//! The same figure is in `/proc/self/fdinfo/<fd>`. That is read here and not `bpf_prog_info` itself,
//! since aya does not show the field and a system call of our own would be `unsafe`. The files stay
//! open, so that reading all of them takes some ten microseconds.
//!
//! Only programs that make processes known are watched. A missed open of a device changes no bill.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;

use aya::Ebpf;
use tracing::{debug, warn};

use super::layout::TRACEPOINTS;

/// The field, as the kernel's `bpf_prog_show_fdinfo` writes it.
const FIELD: &[u8] = b"recursion_misses:";
/// The file has some 200 bytes.
const MAX_FILE: usize = 1024;

#[derive(Debug)]
struct Program {
    name: &'static str,
    info: File,
    skipped: u64,
}

/// The object's programs and how often each was skipped.
#[derive(Debug, Default)]
pub(super) struct Skipped(Vec<Program>);

impl Skipped {
    /// Watches the programs of an object, as far as this kernel counts that.
    pub(super) fn of(object: &mut Ebpf) -> Self {
        let programs = TRACEPOINTS.into_iter().filter_map(|name| {
            let program = object.program(name)?;
            let fd = program.fd().ok()?;
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let info = match File::open(&path) {
                Ok(info) => info,
                Err(error) => {
                    debug!(%error, path, name, "cannot read how often the kernel skipped this program");
                    return None;
                }
            };
            let Some(skipped) = read(&info) else {
                debug!(path, name, "this kernel does not count skipped runs");
                return None;
            };
            Some(Program {
                name,
                info,
                skipped,
            })
        });
        Self(programs.collect())
    }

    /// The programs that are watched.
    pub(super) fn watched(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().map(|program| program.name)
    }

    /// Reads how often all of them were skipped, together. A program that cannot be read now counts as
    /// it did the last time.
    pub(super) fn total(&mut self) -> u64 {
        for program in &mut self.0 {
            let Some(skipped) = read(&program.info) else {
                continue;
            };
            if skipped > program.skipped {
                warn!(
                    program = program.name,
                    skipped = skipped - program.skipped,
                    "the kernel skipped a program that was running on the same CPU"
                );
                program.skipped = skipped;
            }
        }
        self.0.iter().map(|program| program.skipped).sum()
    }
}

fn read(info: &File) -> Option<u64> {
    let mut text = [0; MAX_FILE];
    // The kernel writes the file anew for whoever reads it from its beginning.
    let len = info.read_at(&mut text, 0).ok()?;
    skipped(text.get(..len)?)
}

/// The figure in the text of an `fdinfo`.
fn skipped(text: &[u8]) -> Option<u64> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(FIELD))?;
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_count_is_found_in_the_text() {
        // As Linux 6.18 writes it.
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1060\nprog_type:\t26\nprog_jited:\t1\n\
                    prog_tag:\t0de86b9c9d1b1d3a\nmemlock:\t4096\nprog_id:\t33\nrun_time_ns:\t0\n\
                    run_cnt:\t0\nrecursion_misses:\t17\nverified_insns:\t220\n";
        assert_eq!(skipped(text.as_bytes()), Some(17));
        let rows = [
            ("", None),
            ("run_cnt:\t5\n", None),
            ("recursion_misses:\t\n", None),
            ("recursion_misses:\t-1\n", None),
            ("recursion_misses:\t18446744073709551616\n", None),
            ("no_recursion_misses:\t5\n", None),
            ("recursion_misses:\t0", Some(0)),
        ];
        for (text, expected) in rows {
            assert_eq!(skipped(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(skipped(b"recursion_misses:\t\xff\n"), None);
    }

    #[test]
    fn a_file_that_grows_is_read_anew_and_its_count_does_not_fall() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("info");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("recursion_misses:\t1\n");
        let info = File::open(&path).unwrap();
        let skipped = read(&info).unwrap();
        let mut of = Skipped(vec![Program {
            name: "sched_process_fork",
            info,
            skipped,
        }]);
        assert_eq!(of.total(), 1);
        write("recursion_misses:\t12\n");
        assert_eq!(of.total(), 12);
        for text in ["", "recursion_misses:\t3\n"] {
            write(text);
            assert_eq!(of.total(), 12, "{text:?}");
        }
    }
}
