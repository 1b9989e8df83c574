//! The pages of the program and its libraries that only the start needed, let go once the agent has
//! settled.
//!
//! The start runs much code that the agent does not need again: it links the program, reads the
//! configuration and the kernel's types, loads the eBPF object, and opens the store. With each page
//! that is touched the kernel maps those around it, 64 KiB by default, and they stay mapped while
//! memory is not short. The regular work touches about half of them.
//!
//! Pages are unmapped and not discarded: the file's pages stay in the kernel's cache, and one that is
//! needed is mapped again without a read. Only files are looked at that were mapped before any source
//! began. Another thread may load a library later, and change its pages at any time.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{debug, error};

use crate::published::Published;

/// How many times something is published until the agent has settled. The core commits each two
/// seconds. Sources have connected by then, or wait for their next attempt.
const SETTLED_AFTER: u32 = 10;

/// Paths of files that are mapped.
pub(super) struct MappedFiles(BTreeSet<String>);

impl MappedFiles {
    /// The program and its libraries, before a source has loaded another one. None if the kernel does
    /// not say; then nothing is let go.
    pub(super) fn now() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let files = maps.lines().filter_map(header).map(|header| header.path);
        let files = files.filter(|path| path.starts_with('/'));
        Self(files.map(str::to_owned).collect())
    }

    /// Waits until the agent has settled, and lets go of the pages that it does not use any more.
    pub(super) async fn let_go_once_settled(self, mut published: watch::Receiver<Arc<Published>>) {
        for _ in 0..SETTLED_AFTER {
            // A core that is gone publishes nothing more, and the agent ends.
            if published.changed().await.is_err() {
                return;
            }
        }
        match spawn_blocking(move || self.let_go()).await {
            Ok(Ok(bytes)) => debug!(bytes, "unmapped the pages of code that the start needed"),
            // It costs memory and nothing else.
            Ok(Err(error)) => debug!(%error, "cannot unmap the pages of code"),
            Err(error) => error!(%error, "unmapping the pages of code panicked (a bug)"),
        }
    }

    /// Unmaps the pages, and returns how many bytes of them were resident.
    fn let_go(&self) -> io::Result<usize> {
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        let mut bytes = 0;
        for mapping in unchanged(&smaps, &self.0) {
            #[expect(
                unsafe_code,
                reason = "the kernel can be asked for this in no other way"
            )]
            // SAFETY: the range is a private mapping of a file of the program. No thread can write to
            // it, and it has no page that differs from the file, in memory or in the swap. What is read there next is what was
            // there before.
            let asked = unsafe {
                let start = std::ptr::with_exposed_provenance_mut(mapping.range.start);
                libc::madvise(start, mapping.range.len(), libc::MADV_DONTNEED)
            };
            if asked != 0 {
                return Err(io::Error::last_os_error());
            }
            bytes += mapping.resident;
        }
        Ok(bytes)
    }
}

/// A mapping, with how many bytes of it are resident.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<usize>,
    resident: usize,
}

/// The mappings of `files` that nobody can write to and that equal the file.
///
/// The part of a program that the dynamic linker has changed is read-only later on. Its changed pages
/// are anonymous, or in the swap, where they are not counted as anonymous. A mapping for which the
/// kernel does not say both is left alone.
fn unchanged(smaps: &str, files: &BTreeSet<String>) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut current: Option<Candidate> = None;
    for line in smaps.lines() {
        if let Some(header) = header(line) {
            found.extend(current.take().and_then(Candidate::unchanged));
            if files.contains(header.path) && header.is_private && !header.is_writable {
                current = Some(Candidate::new(header.range));
            }
        } else if let Some(candidate) = &mut current {
            candidate.take(line);
        }
    }
    found.extend(current.and_then(Candidate::unchanged));
    found
}

/// A mapping of which the figures are being read.
#[derive(Debug)]
struct Candidate {
    range: Range<usize>,
    resident: usize,
    anonymous: Option<usize>,
    swapped: Option<usize>,
}

impl Candidate {
    const fn new(range: Range<usize>) -> Self {
        Self {
            range,
            resident: 0,
            anonymous: None,
            swapped: None,
        }
    }

    fn take(&mut self, line: &str) {
        if let Some(bytes) = figure(line, "Rss:") {
            self.resident = bytes;
        }
        self.anonymous = self.anonymous.or(figure(line, "Anonymous:"));
        self.swapped = self.swapped.or(figure(line, "Swap:"));
    }

    fn unchanged(self) -> Option<Mapping> {
        let is_unchanged = self.anonymous == Some(0) && self.swapped == Some(0);
        is_unchanged.then_some(Mapping {
            range: self.range,
            resident: self.resident,
        })
    }
}

/// The first line about a mapping.
struct Header<'a> {
    range: Range<usize>,
    is_writable: bool,
    is_private: bool,
    path: &'a str,
}

/// Reads `55d0-55e0 r-xp 00001000 fe:00 123    /usr/bin/gpuacct`.
fn header(line: &str) -> Option<Header<'_>> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let permissions = fields.next()?;
    Some(Header {
        range: address(start)?..address(end)?,
        is_writable: permissions.contains('w'),
        is_private: permissions.ends_with('p'),
        path: fields.nth(3)?.trim_start(),
    })
}

/// The bytes of a line such as `Rss:    123 kB`.
fn figure(line: &str, name: &str) -> Option<usize> {
    let kib = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
    kib.parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-5000 r--p 00000000 fe:00 12                         /opt/a b/gpuacct
Size:                 16 kB
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
5000-9000 r-xp 00004000 fe:00 12                         /opt/a b/gpuacct
Rss:                  12 kB
Anonymous:             0 kB
Swap:                  0 kB
9000-a000 r--p 00008000 fe:00 12                         /opt/a b/gpuacct
Rss:                   4 kB
Anonymous:             4 kB
Swap:                  0 kB
a000-b000 rw-p 00009000 fe:00 12                         /opt/a b/gpuacct
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
b000-c000 r--s 00009000 fe:00 12                         /opt/a b/gpuacct
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
c000-d000 rw-p 00000000 00:00 0                          [heap]
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
d000-e000 r-xp 00000000 fe:00 13                         /lib/libc.so.6
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
e000-f000 r--p 00000000 00:00 0 
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
f000-11000 r--p 00008000 fe:00 12                         /opt/a b/gpuacct
Rss:                   0 kB
Anonymous:             0 kB
Swap:                  8 kB
11000-12000 r--p 00008000 fe:00 12                         /opt/a b/gpuacct
Rss:                   4 kB
Anonymous:             0 kB
";

    #[test]
    fn only_what_equals_a_file_of_the_program_is_let_go() {
        let files = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
        let mapping = |range, resident| Mapping { range, resident };
        assert_eq!(
            unchanged(SMAPS, &files(&["/opt/a b/gpuacct", "/lib/libm.so.6"])),
            [
                mapping(0x1000..0x5000, 8192),
                mapping(0x5000..0x9000, 12288)
            ]
        );
        for not_smaps in [
            "",
            "Rss: 4 kB\nAnonymous: 0 kB\nSwap: 0 kB",
            "x-y r-xp 0 0 0 /a",
            "1-2",
        ] {
            assert_eq!(unchanged(not_smaps, &files(&["/a"])), [], "{not_smaps}");
        }
    }

    #[test]
    fn a_program_runs_on_after_its_pages_were_let_go() {
        static CHANGED_BY_THE_LINKER: &[&str] = &["relocated", "as well"];
        let files = MappedFiles::now();
        let libc = |path: &String| path.contains("libc.so");
        assert!(files.0.iter().any(libc), "{:?}", files.0);
        assert!(files.let_go().unwrap() > 0);
        assert_eq!(CHANGED_BY_THE_LINKER.concat(), "relocatedas well");
        // Everything that is needed to do it again has been mapped again.
        assert!(files.let_go().unwrap() > 0);
    }
}
