//! What packages and images have in common: where they are laid, for which processor, what time is
//! written into them.
//!
//! The same source and the same compiler give the same bytes, so whoever doubts a release can make it
//! again. Hence nothing here takes the time or a name from the machine.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::ValueEnum;
use flate2::{Compression, GzBuilder};
use ring::digest;

use crate::command::Cmd;
use crate::workspace;

/// The version of everything in the workspace.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The time that is written into what is built, see <https://reproducible-builds.org/specs/source-date-epoch/>.
const EPOCH_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// A processor, by Debian's and Docker's name of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64
    Amd64,
    /// 64-bit Arm, such as NVIDIA's Grace
    Arm64,
}

impl Arch {
    /// This machine's, if anything is built for it.
    pub(crate) fn of_this_machine() -> Option<Self> {
        match env::consts::ARCH {
            "x86_64" => Some(Self::Amd64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }

    /// Debian's, Docker's and Go's name of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The processor's part of a compiler's target, and RPM's name of it.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// rustc's name of Linux with glibc on it.
    pub(crate) fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.machine())
    }
}

/// Where packages, images and what belongs to them are laid.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = workspace::target().join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// The time that is written into what is built: `SOURCE_DATE_EPOCH`, otherwise that of the last commit.
pub(crate) fn epoch() -> Result<u64> {
    let text = match env::var(EPOCH_VARIABLE) {
        Ok(text) => text,
        Err(_) => Cmd::new("git")
            .args(["log", "-1", "--format=%ct"])
            .read()
            .with_context(|| format!("no Git to ask for the time; set {EPOCH_VARIABLE}"))?,
    };
    let text = text.trim();
    text.parse()
        .with_context(|| format!("{EPOCH_VARIABLE} is {text:?}, expected whole seconds since 1970"))
}

/// That time as a timestamp.
pub(crate) fn timestamp(epoch: u64) -> Result<jiff::Timestamp> {
    let seconds = i64::try_from(epoch).context("the time is out of range")?;
    jiff::Timestamp::from_second(seconds).context("the time is out of range")
}

/// An empty folder of that name.
pub(crate) fn emptied(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Writes a file, with the folders above it.
pub(crate) fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    let above = file.parent().context("a file is in a folder")?;
    fs::create_dir_all(above).with_context(|| format!("cannot make {}", above.display()))?;
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// Reads a file whole.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The paths in a folder, in order.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listing = || format!("cannot list {}", folder.display());
    let entries = fs::read_dir(folder).with_context(listing)?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(listing)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Sets the time of everything below a folder.
pub(crate) fn set_times(folder: &Path, epoch: u64) -> Result<()> {
    let time = UNIX_EPOCH + Duration::from_secs(epoch);
    for path in entries(folder)? {
        if path.is_dir() {
            set_times(&path, epoch)?;
        }
        File::open(&path)
            .and_then(|file| file.set_modified(time))
            .with_context(|| format!("cannot set the time of {}", path.display()))?;
    }
    Ok(())
}

/// Compresses as `gzip -9n` does: without a name and a time.
pub(crate) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(crate) fn sha256_of(file: &Path) -> Result<String> {
    let mut open = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = open
            .read(&mut buffer)
            .with_context(|| format!("cannot read {}", file.display()))?;
        if count == 0 {
            return Ok(hex(context.finish().as_ref()));
        }
        context.update(&buffer[..count]);
    }
}

/// The SHA-256 of bytes, in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_has_neither_a_name_nor_a_time() {
        let compressed = gzip(b"page").unwrap();
        // RFC 1952: no flags, no time; 2: the best compression.
        assert_eq!(compressed[3..9], [0, 0, 0, 0, 0, 2]);
        assert_eq!(compressed, gzip(b"page").unwrap());
    }

    #[test]
    fn hashes_are_those_of_sha256sum() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), known);
        assert_eq!(sha256_of(file.path()).unwrap(), known);
    }
}
