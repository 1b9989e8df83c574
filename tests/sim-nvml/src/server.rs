//! Where processes that use the simulated GPU announce themselves.
//!
//! A process in a container does not know its own pid as the host sees it, so it connects to a Unix
//! socket (bind-mounted into the container) and the kernel says who it is. It sends one line,
//!
//! ```json
//! {"gpu":0,"share":1.0,"memory_bytes":1073741824,"duration_ms":300}
//! ```
//!
//! ([`Job`] with an optional duration) and reads `ok` once its start is in the log. Its job ends
//! when the duration is over (it then reads `done`), or when the connection ends, as it does when
//! the process dies. A refused request is answered `error: …`.
//!
//! Bounds: [`CONNECTIONS`] at a time, lines of [`LINE_BYTES`]; what is beyond is refused aloud.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::event::Job;
use crate::scenario::Scenario;

/// Connections served at a time.
pub const CONNECTIONS: usize = 2_048;
/// Longest request line.
pub const LINE_BYTES: u64 = 4_096;

/// What can go wrong with the server itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be had.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Accepts registrations until it is dropped; then every job that it started is stopped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    scenario: Arc<Scenario>,
    closing: AtomicBool,
    refused: AtomicU64,
    clients: Mutex<Vec<Client>>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    thread: thread::JoinHandle<()>,
}

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(flatten)]
    work: Job,
    duration_ms: Option<u64>,
}

impl Server {
    /// Listens on `path`, open to every user: containers have many.
    pub fn start(scenario: Arc<Scenario>, path: impl AsRef<Path>) -> Result<Self, ServerError> {
        let path = path.as_ref().to_owned();
        let listen = |source| ServerError::Listen {
            path: path.clone(),
            source,
        };
        let listener = UnixListener::bind(&path).map_err(listen)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .map_err(listen)?;
        let shared = Arc::new(Shared {
            scenario,
            closing: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            clients: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("sim-nvml-accept".to_owned())
            .spawn(move || accept(&listener, &accepting))
            .map_err(listen)?;
        Ok(Self {
            path,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Registrations refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // Wakes the acceptor. If nothing answers, it has ended already.
        let woken = UnixStream::connect(&self.path);
        if let (Ok(_), Some(acceptor)) = (woken, self.acceptor.take()) {
            drop(acceptor.join());
        }
        drop(std::fs::remove_file(&self.path));
        let clients = std::mem::take(
            &mut *self
                .shared
                .clients
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for client in &clients {
            drop(client.stream.shutdown(std::net::Shutdown::Both));
        }
        for client in clients {
            drop(client.thread.join());
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.closing.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let mut clients = shared
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        clients.retain(|client| !client.thread.is_finished());
        if clients.len() >= CONNECTIONS {
            refuse(
                shared,
                &stream,
                &format!("too many connections: {CONNECTIONS} are open"),
            );
            continue;
        }
        let serving = Arc::clone(shared);
        let handle = stream.try_clone().and_then(|served| {
            thread::Builder::new()
                .name("sim-nvml-job".to_owned())
                .stack_size(128 << 10)
                .spawn(move || serve(&served, &serving))
        });
        match handle {
            Ok(thread) => clients.push(Client { stream, thread }),
            Err(error) => refuse(
                shared,
                &stream,
                &format!("no thread for this connection: {error}"),
            ),
        }
    }
}

fn refuse(shared: &Shared, mut stream: &UnixStream, reason: &str) {
    shared.refused.fetch_add(1, Ordering::Relaxed);
    // A client that has disconnected needs no answer.
    drop(writeln!(stream, "error: {reason}"));
    drop(stream.shutdown(std::net::Shutdown::Both));
}

fn serve(stream: &UnixStream, shared: &Shared) {
    if let Err(reason) = run_job(stream, &shared.scenario) {
        refuse(shared, stream, &reason);
    }
    drop(stream.shutdown(std::net::Shutdown::Both));
}

/// One job from its request to its end. An error is the reason for the client.
fn run_job(mut stream: &UnixStream, scenario: &Scenario) -> Result<(), String> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|error| format!("no peer credentials: {error}"))?;
    let pid =
        u32::try_from(peer.pid.as_raw_nonzero().get()).map_err(|_| "no peer pid".to_owned())?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES))
        .read_line(&mut line)
        .map_err(|error| format!("unreadable request: {error}"))?;
    let request: Request =
        serde_json::from_str(&line).map_err(|error| format!("malformed request: {error}"))?;
    let job = scenario
        .start_inside(pid, inner_pid(pid), request.work)
        .map_err(|error| error.to_string())?;
    let ends = request
        .duration_ms
        .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    let outlived = stream.write_all(b"ok\n").is_ok() && outlives(stream, ends);
    let stopped = scenario.stop(job).map_err(|error| error.to_string());
    if outlived {
        drop(stream.write_all(b"done\n"));
    }
    stopped
}

/// Waits for the end of the job: true if its time is over, false if its process has gone away.
fn outlives(mut stream: &UnixStream, ends: Option<Instant>) -> bool {
    let mut ignored = [0; 64];
    loop {
        let left = ends.map(|ends| ends.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return true;
        }
        if stream.set_read_timeout(left).is_err() {
            return false;
        }
        match stream.read(&mut ignored) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => return false,
        }
    }
}

/// A process's pid in its own namespace, with that namespace's inode, where it is another than ours.
fn inner_pid(pid: u32) -> Option<(u64, u32)> {
    let namespace = std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?.ino();
    if namespace == crate::log::pid_namespace() {
        return None;
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    Some((namespace, line.split_whitespace().last()?.parse().ok()?))
}
