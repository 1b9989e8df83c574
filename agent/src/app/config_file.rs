//! Notices that the file of the configuration has changed.
//!
//! A change is an event in the file's folder: the file is written, or another one takes its place.
//! Kubernetes changes a mounted ConfigMap by renaming the link `..data` in that folder, so the file
//! itself is never written. Where a folder cannot be watched (some network file systems report
//! nothing), the file is read once a minute.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};
use tracing::debug;

/// How often the file is looked at though no event came.
const ANYWAY: Duration = Duration::from_secs(60);
/// How long events are awaited that belong together: a file is removed, written and renamed in turn.
const TOGETHER: Duration = Duration::from_millis(100);
/// Room for some events with names. What does not fit is read next.
const EVENTS: usize = 4_096;

/// The folder of the file, watched.
pub(super) struct WatchedFile {
    path: PathBuf,
    /// Absent if the folder cannot be watched.
    events: Option<AsyncFd<OwnedFd>>,
}

impl WatchedFile {
    /// Begins to watch. What has changed before is not noticed.
    pub(super) fn new(path: &Path) -> Self {
        let events = watch(path).inspect_err(|error| {
            debug!(path = %path.display(), %error, "cannot watch the configuration's folder");
        });
        Self {
            path: path.to_owned(),
            events: events.ok(),
        }
    }

    /// Returns when the file may have changed.
    pub(super) async fn may_have_changed(&mut self) {
        let Some(events) = &self.events else {
            sleep(ANYWAY).await;
            self.events = watch(&self.path).ok();
            return;
        };
        match timeout(ANYWAY, next_events(events)).await {
            Ok(Ok(())) => sleep(TOGETHER).await,
            Ok(Err(error)) => {
                debug!(%error, "cannot read the events of the configuration's folder");
                self.events = None;
            }
            Err(_) => {}
        }
        // The folder itself may have been replaced, and its watch with it.
        self.events = watch(&self.path).ok();
    }
}

fn watch(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let changes = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    inotify::add_watch(&inotify, folder.unwrap_or(Path::new(".")), changes)?;
    #[expect(
        unsafe_code,
        reason = "tokio offers no other way to wait for a descriptor"
    )]
    // SAFETY: it is a valid descriptor, which nobody replaces or closes while `AsyncFd` owns it.
    let events = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE)? };
    Ok(events)
}

/// Waits for events and takes them. What they say is not needed.
async fn next_events(events: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = events.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        match rustix::io::read(events.get_ref(), &mut buffer) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Far more than an event takes and less than [`ANYWAY`].
    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_file_that_is_written_replaced_or_mounted_anew_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpuacct.toml");
        fs::write(&path, "a").unwrap();
        let mut file = WatchedFile::new(&path);
        let mut noticed = async |what: &str| {
            let noticed = timeout(SOON, file.may_have_changed()).await;
            assert!(noticed.is_ok(), "{what}");
        };
        fs::write(&path, "b").unwrap();
        noticed("written").await;

        let beside = folder.path().join("new");
        fs::write(&beside, "c").unwrap();
        noticed("another file of the folder: the reader compares").await;
        fs::rename(&beside, &path).unwrap();
        noticed("replaced").await;

        // As the kubelet does it.
        fs::remove_file(&path).unwrap();
        for (version, content) in [("..1", "d"), ("..2", "e")] {
            fs::create_dir(folder.path().join(version)).unwrap();
            fs::write(folder.path().join(version).join("gpuacct.toml"), content).unwrap();
        }
        symlink("..1", folder.path().join("..data")).unwrap();
        symlink("..data/gpuacct.toml", &path).unwrap();
        noticed("what has been prepared").await;
        symlink("..2", folder.path().join("..data_tmp")).unwrap();
        noticed("the new link").await;
        fs::rename(
            folder.path().join("..data_tmp"),
            folder.path().join("..data"),
        )
        .unwrap();
        noticed("the ConfigMap is another one").await;
        assert_eq!(fs::read_to_string(&path).unwrap(), "e");
    }
}
