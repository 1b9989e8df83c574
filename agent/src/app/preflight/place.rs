//! Paths that the agent uses: what is there, and whether it can be made.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::finding::{Finding, fail, ok, warn};

/// What is at the path of a socket.
pub(super) enum PathKind {
    Absent,
    Socket,
    Other,
    Unreadable(std::io::Error),
}

impl PathKind {
    /// The finding for a socket on which another program should listen.
    pub(super) fn finding(self, item: String, normal: &str) -> Finding {
        match self {
            Self::Absent => ok(item, format!("not here, which is normal {normal}")),
            // The agent runs without it, and says that this source is down.
            Self::Other | Self::Socket => warn(
                item,
                "exists and is not a socket",
                "remove it: a bind mount whose source was missing leaves a directory",
            ),
            Self::Unreadable(error) => warn(
                item,
                error.to_string(),
                "give gpuacct access to its directory",
            ),
        }
    }
}

pub(super) fn look_at_socket(path: &Path) -> PathKind {
    match fs::metadata(path) {
        Ok(file) if file.file_type().is_socket() => PathKind::Socket,
        Ok(_) => PathKind::Other,
        Err(error) if is_absence(&error) => PathKind::Absent,
        Err(error) => PathKind::Unreadable(error),
    }
}

fn is_absence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether a file can be made in the directory, or the directory be made.
pub(super) fn store(directory: &Path) -> Finding {
    let item = format!("store {}", directory.display());
    let existing = directory.ancestors().find(|place| place.exists());
    let Some(existing) = existing else {
        return fail(item, "does not exist", "make the directory");
    };
    let trial = existing.join(format!(".gpuacct-check-{}", std::process::id()));
    let written = fs::File::options()
        .write(true)
        .create_new(true)
        .open(&trial)
        .and_then(|_| fs::remove_file(&trial));
    match written {
        Ok(()) if existing == directory => ok(item, "can be written"),
        Ok(()) => ok(item, format!("will be made in {}", existing.display())),
        Err(error) => fail(
            item,
            format!("cannot write in {}: {error}", existing.display()),
            "mount a directory of the host that gpuacct may write in",
        ),
    }
}
