//! The source of the kernel's log: Xid errors, with their time and their process.
//!
//! NVIDIA's driver writes each Xid error to the kernel's log, also those that NVML reports to nobody,
//! and names the process where it knows it. `/dev/kmsg` gives one record at each reading. Records
//! from before the agent are skipped, since a counter that begins at zero must not have them.
//!
//! Refused: keeping or showing any text of the log. Only numbers leave this file.

mod record;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, SeekFrom};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;

use self::record::xid_of;
use super::Io;
use super::clock;
use super::health::{Closed, HealthReporter};
use super::retry::Backoff;
use crate::config;
use crate::core::input::{Input, XidGpu, XidReport, XidReporter};
use crate::core::model::{SourceId, SourceState};

/// Waits between attempts to open the log.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Room for one record. The kernel writes none of more than 2 KiB, and its escapes make each byte four
/// at most.
const ROOM: usize = 16 << 10;

/// Why the log is not read.
#[derive(Debug, thiserror::Error)]
enum LogError {
    /// It could not be opened.
    #[error("cannot open {path}")]
    Open {
        path: String,
        #[source]
        source: io::Error,
    },
    /// It could not be read.
    #[error("cannot read {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    /// It ended, which the kernel's log never does.
    #[error("{path} ended; it is no log of a kernel")]
    Ended { path: String },
}

impl LogError {
    /// Returns the value as used in labels.
    fn class(&self) -> &'static str {
        match self {
            Self::Open { source, .. } | Self::Read { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => "permission",
                _ => "io",
            },
            Self::Ended { .. } => "closed",
        }
    }

    fn is_absent(&self) -> bool {
        let Self::Open { source, .. } = self else {
            return false;
        };
        source.kind() == io::ErrorKind::NotFound
    }
}

/// Reports Xid errors until `io` is at its end or nobody reads its inputs any more.
pub async fn run(config: config::KernelLog, io: Io) {
    let Io {
        out,
        clock,
        shutdown,
    } = io;
    let mut health = HealthReporter::new(SourceId::KernelLog, out.clone(), clock);
    let life = async {
        let place = config.path.to_string_lossy();
        let mut waits = Backoff::new(RETRY);
        loop {
            let error = match open(&config.path) {
                Err(source) => LogError::Open {
                    path: place.to_string(),
                    source,
                },
                Ok(log) => {
                    waits.reset();
                    match follow(&log, &place, &mut health, &out).await {
                        Err(Closed) => return,
                        Ok(error) => error,
                    }
                }
            };
            let wait = waits.wait();
            let state = match error.is_absent() {
                true => SourceState::Absent,
                false => SourceState::Down {
                    class: error.class().into(),
                    reason: crate::errors::chain(&error).into(),
                    next_retry: Some(clock().boot.plus(wait.into())),
                },
            };
            if health.report(state, &place).await.is_err() {
                return;
            }
            sleep(wait).await;
        }
    };
    Io::until_stopped(shutdown, life).await;
}

/// Opens the log behind its last record.
fn open(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let log = rustix::fs::open(path, flags, Mode::empty())?;
    match rustix::fs::seek(&log, SeekFrom::End(0)) {
        Ok(_) | Err(rustix::io::Errno::SPIPE) => {}
        Err(error) => return Err(error.into()),
    }
    #[expect(
        unsafe_code,
        reason = "tokio asks for this promise, which an owned descriptor keeps"
    )]
    // SAFETY: the descriptor is owned, so it stays open and the same for as long as this lives.
    let log = unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) }?;
    Ok(log)
}

/// Reads records for as long as there are any.
async fn follow(
    log: &AsyncFd<OwnedFd>,
    place: &str,
    health: &mut HealthReporter,
    out: &mpsc::Sender<Input>,
) -> Result<LogError, Closed> {
    let failed = |source| LogError::Read {
        path: place.to_owned(),
        source,
    };
    let mut room = vec![0; ROOM];
    health.report(SourceState::Up, place).await?;
    loop {
        let mut ready = match log.readable().await {
            Ok(ready) => ready,
            Err(source) => return Ok(failed(source)),
        };
        let read = ready.try_io(|log| Ok(rustix::io::read(log, &mut room[..])?));
        let length = match read {
            // It would block: there is no record now.
            Err(_) => continue,
            Ok(Ok(0)) => {
                let path = place.to_owned();
                return Ok(LogError::Ended { path });
            }
            Ok(Ok(length)) => length,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The kernel overwrote records before they were read. It goes on with the oldest.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                let overrun = SourceState::Down {
                    class: "overrun".into(),
                    reason: "the kernel overwrote records of its log before they were read".into(),
                    next_retry: Some(clock::now().boot),
                };
                health.report(overrun, place).await?;
                health.report(SourceState::Up, place).await?;
                continue;
            }
            Ok(Err(source)) => return Ok(failed(source)),
        };
        if let Some(found) = xid_of(&room[..length]) {
            let report = XidReport {
                at: clock::boot_of_log(found.at_us),
                reporter: XidReporter::KernelLog,
                gpu: XidGpu::Pci(found.pci),
                xid: found.xid,
                pid: found.pid,
            };
            out.send(Input::Xid(report)).await.map_err(|_| Closed)?;
        }
    }
}

/// Looks at any bytes as a record of the log.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(record: &[u8]) {
    record::fuzz(record);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::sync::watch;

    use super::*;
    use crate::core::model::Pid;

    struct Rig {
        inputs: mpsc::Receiver<Input>,
        _stop: watch::Sender<bool>,
    }

    impl Rig {
        fn start(path: &Path) -> Self {
            let (out, inputs) = mpsc::channel(8);
            let (stop, shutdown) = watch::channel(false);
            let io = Io {
                out,
                clock: clock::now,
                shutdown,
            };
            let config = config::KernelLog {
                enabled: true,
                path: path.to_owned(),
            };
            tokio::spawn(run(config, io));
            Self {
                inputs,
                _stop: stop,
            }
        }

        async fn state(&mut self) -> SourceState {
            match self.inputs.recv().await {
                Some(Input::Health(health)) => health.state,
                other => panic!("{other:?}"),
            }
        }
    }

    /// A pipe with a name, which gives each write to whoever reads, as the device does. It is open for
    /// reading here as well, so that it has no end.
    fn pipe(directory: &Path) -> (std::path::PathBuf, std::fs::File) {
        let path = directory.join("kmsg");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a pipe");
        let options = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path);
        (path, options.expect("it opens"))
    }

    #[tokio::test]
    async fn errors_of_the_log_are_reported_with_their_time_and_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, mut log) = pipe(directory.path());
        let mut rig = Rig::start(&path);
        assert_eq!(rig.state().await, SourceState::Up);
        let now = clock::now().boot;
        log.write_all(b"6,1,1000,-;usb 1-1: new device\n")
            .expect("it is written");
        // One write is one record only if it is read before the next.
        tokio::task::yield_now().await;
        while rustix::io::ioctl_fionread(&log).expect("it can be asked") > 0 {
            tokio::task::yield_now().await;
        }
        log.write_all(b"3,2,1000,-;NVRM: Xid (PCI:0000:17:00): 31, pid=7, name=x\n")
            .expect("it is written");
        let Some(Input::Xid(report)) = rig.inputs.recv().await else {
            panic!("an error");
        };
        // The stamp is of a millisecond after boot: its clock has drifted, or so it seems.
        assert!(report.at >= now, "the time at which it was read");
        let expected = XidReport {
            at: report.at,
            reporter: XidReporter::KernelLog,
            gpu: XidGpu::Pci("0000:17:00".into()),
            xid: 31,
            pid: Some(Pid(7)),
        };
        assert_eq!(report, expected);
    }

    /// On the machine's own log: the kernel says whether a record is its own.
    #[tokio::test]
    async fn user_space_cannot_forge_an_error_in_the_kernel_s_log() {
        let path = Path::new("/dev/kmsg");
        let opened = std::fs::OpenOptions::new().write(true).open(path);
        let (Ok(mut writer), Ok(log)) = (opened, open(path)) else {
            eprintln!("skipped: kernel_log: {} cannot be opened", path.display());
            return;
        };
        let line = format!(
            "NVRM: Xid (PCI:0000:17:00): 79, pid={}, name=x, a test of gpuacct",
            std::process::id()
        );
        // Priority 0 of facility 0: what the kernel's own records have.
        writer
            .write_all(format!("<0>{line}\n").as_bytes())
            .expect("it is written");
        let mut room = vec![0; ROOM];
        let record = loop {
            let mut ready = log.readable().await.expect("it can be waited for");
            let Ok(read) = ready.try_io(|log| Ok(rustix::io::read(log, &mut room[..])?)) else {
                continue;
            };
            let record = String::from_utf8_lossy(&room[..read.expect("it is read")]).into_owned();
            if record.contains(&line) {
                break record;
            }
        };
        assert_eq!(xid_of(record.as_bytes()), None, "{record}");
        // With the kernel's facility it would be one.
        let (_, rest) = record.split_once(',').expect("a prefix");
        assert!(xid_of(format!("0,{rest}").as_bytes()).is_some(), "{record}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_is_not_there_is_absent_and_is_found_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut rig = Rig::start(&directory.path().join("kmsg"));
        assert_eq!(rig.state().await, SourceState::Absent);
        let (_path, _log) = pipe(directory.path());
        assert_eq!(rig.state().await, SourceState::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_ends_is_down() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, log) = pipe(directory.path());
        let mut rig = Rig::start(&path);
        assert_eq!(rig.state().await, SourceState::Up);
        drop(log);
        let SourceState::Down { class, reason, .. } = rig.state().await else {
            panic!("it is down");
        };
        assert_eq!(&*class, "closed");
        assert_eq!(
            *reason,
            format!("{} ended; it is no log of a kernel", path.display())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_waited_for_is_down() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("kmsg");
        std::fs::write(&path, "3,2,1000,-;NVRM: Xid (PCI:0000:17:00): 31\n").expect("a file");
        let mut rig = Rig::start(&path);
        let SourceState::Down { class, reason, .. } = rig.state().await else {
            panic!("it is down");
        };
        assert_eq!(&*class, "permission", "{reason}");
    }
}
