//! How the socket is made, and that two agents do not share one.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::net::UnixListener;

use super::occupant::Occupant;
use crate::socket_access::{GROUPS, GroupError, SocketAccess, SocketMode};

/// The kernel's bound on a socket's path (`sun_path`), less the closing zero.
const MAX_PATH_BYTES: usize = 107;
/// Connections that wait to be accepted; as many as the standard library and tokio allow.
const BACKLOG: i32 = 1_024;
/// How often a socket is tried again on which another agent answers.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit into a socket address.
    #[error("the socket path {path} is too long: {found} bytes, at most {allowed}", path = .path.display(), allowed = MAX_PATH_BYTES - 1)]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        found: usize,
    },
    /// Something else is there, and it is not for the agent to remove.
    #[error("{path} exists and is not a socket", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A program listens there.
    #[error("{path} is in use: {by}", path = .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
        /// Who listens.
        by: Occupant,
    },
    /// There is no such group as its file is to have.
    #[error("cannot give the socket to the group of socket.group")]
    Group(#[source] GroupError),
    /// The group may not be given the socket's file.
    #[error("cannot give {path} to the group {group} of socket.group", path = .path.display())]
    Chown {
        /// The file.
        path: PathBuf,
        /// Number of the group.
        group: u32,
        /// I/O error of changing the group.
        source: io::Error,
    },
    /// The file system, or the kernel, refused.
    #[error("cannot {act} {path}", path = .path.display())]
    Io {
        /// Verb phrase of the failed action, for the message.
        act: &'static str,
        /// File or directory of the action.
        path: PathBuf,
        /// I/O error of the action.
        source: io::Error,
    },
}

impl SocketError {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::InUse { .. } => {
                "stop the other agent, or give each of them a socket.path and a store.path of its own"
            }
            Self::Group(_) => "set socket.group to a group of /etc/group, or to a group's number",
            Self::Chown { .. } => {
                "let the agent be a member of the group (systemd: SupplementaryGroups=, Kubernetes: \
                 supplementalGroups), or give it CAP_CHOWN"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run this as root, or give it write access to the directory"
            }
            _ => "choose another socket.path, or remove what is in its place",
        }
    }
}

/// The socket, listening. Its file is removed when this is dropped, if it is still the same one.
#[derive(Debug)]
pub struct BoundSocket {
    /// Where connections arrive; taken by whoever serves them.
    pub(super) listener: Option<UnixListener>,
    path: PathBuf,
    inode: (u64, u64),
}

/// Makes the socket at `path`, its directory if need be, and removes one that a dead agent left.
///
/// The socket is created under another name. It listens only once it has its group and its mode, and
/// then gets its name, so that nobody else can ever connect to it.
///
/// # Errors
/// If a program listens there, if something else is there, if there is no such group, or if the system
/// refuses.
pub fn bind(path: &Path, access: &SocketAccess) -> Result<BoundSocket, SocketError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::Io { act, path, source }
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push("~");
    if beside.len() > MAX_PATH_BYTES {
        return Err(SocketError::PathTooLong {
            path: path.to_owned(),
            found: path.as_os_str().len(),
        });
    }
    let beside = PathBuf::from(beside);
    let group = access.group.as_ref().map(|group| group.id(GROUPS.as_ref()));
    let group = group.transpose().map_err(SocketError::Group)?;
    if let Some(directory) = path.parent().filter(|parent| *parent != Path::new("")) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed("make the directory", directory))?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {
            if has_listener(path).map_err(failed("find out who is behind", path))? {
                return Err(SocketError::InUse {
                    path: path.to_owned(),
                    by: Occupant::Unknown,
                });
            }
            // Nothing listens: the move below replaces it.
        }
    }
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &beside)(error));
        }
        _ => {}
    }
    let bound = bind_beside(&beside, path, access.mode, group);
    if bound.is_err() {
        // The first failure is the one that counts.
        let _ = fs::remove_file(&beside);
    }
    bound
}

/// Makes the socket under another name, and moves it into place once it is complete.
fn bind_beside(
    beside: &Path,
    path: &Path,
    mode: SocketMode,
    group: Option<u32>,
) -> Result<BoundSocket, SocketError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::Io { act, path, source }
    };
    let socket = bound_to(beside).map_err(failed("bind a socket to", beside))?;
    if let Some(group) = group {
        std::os::unix::fs::chown(beside, None, Some(group)).map_err(|source| {
            SocketError::Chown {
                path: beside.to_owned(),
                group,
                source,
            }
        })?;
    }
    fs::set_permissions(beside, Permissions::from_mode(mode.bits()))
        .map_err(failed("set the mode of", beside))?;
    let listener = listening(socket).map_err(failed("listen on", beside))?;
    let inode = inode(beside).map_err(failed("look at", beside))?;
    fs::rename(beside, path).map_err(failed("move into place", path))?;
    Ok(BoundSocket {
        listener: Some(listener),
        path: path.to_owned(),
        inode,
    })
}

/// A socket with a file, to which nobody can connect yet.
fn bound_to(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn listening(socket: OwnedFd) -> io::Result<UnixListener> {
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// As [`bind`], and waits for another agent that answers there to end, for `patience` at most: one that
/// is being replaced takes its time. Two that are meant to run on one socket never end, and neither
/// does another program.
///
/// # Errors
/// As [`bind`]. If another program answers there, at once.
pub async fn bind_after(
    path: &Path,
    access: &SocketAccess,
    patience: Duration,
) -> Result<BoundSocket, SocketError> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut known = Occupant::Unknown;
    loop {
        let path = match bind(path, access) {
            Err(SocketError::InUse { path, .. }) => path,
            result => return result,
        };
        if known == Occupant::Unknown {
            known = Occupant::ask(&path).await;
            let path = path.display();
            match &known {
                // It has ended, or does not concern this one.
                Occupant::Nobody => known = Occupant::Unknown,
                Occupant::Other { .. } | Occupant::Closed => {}
                Occupant::Agent => {
                    tracing::warn!(%path, ?patience, "another agent answers on the socket; waiting until it stops");
                }
                Occupant::Silent | Occupant::Unknown => {
                    tracing::warn!(%path, ?patience, "a program listens on the socket and does not answer; waiting until it stops");
                }
            }
        }
        let is_agent = !matches!(known, Occupant::Other { .. });
        if !is_agent || tokio::time::Instant::now() >= deadline {
            return Err(SocketError::InUse { path, by: known });
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// Whether a program listens on a socket.
///
/// It never waits. A program that accepts nothing lets connections wait in its backlog; where that is
/// full, `connect` would wait for as long as the program likes.
///
/// # Errors
/// If that cannot be found out, for lack of permission for example.
pub fn has_listener(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        // Nobody listens; or the file is gone, since an agent has just ended.
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|found| found == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            // The next agent finds that nothing answers there and replaces it.
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

#[cfg(test)]
mod tests;
