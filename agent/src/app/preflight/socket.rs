//! Whether the agent can make its socket, and who listens there now.

use std::fs;
use std::path::Path;

use super::finding::{Finding, Verdict, fail, ok, warn};
use super::place::{PathKind, look_at_socket, store};
use crate::config::Socket;
use crate::errors::chain;
use crate::outputs::socket::{Occupant, SocketError, bind};
use crate::socket_access::GROUPS;

/// Looks at the agent's socket. Returns whether an agent answers there, too.
pub(super) async fn look(socket: &Socket) -> (Finding, bool) {
    let path = &socket.path;
    let item = format!("socket {}", path.display());
    let by = Occupant::ask(path).await;
    let is_agent = by == Occupant::Agent;
    let finding = match by {
        Occupant::Agent => ok(item, "an agent answers"),
        Occupant::Other { .. } => fail(
            item,
            by.to_string(),
            "stop that program, or set socket.path to a path of the agent's own",
        ),
        Occupant::Silent | Occupant::Unknown => fail(
            item,
            by.to_string(),
            "an agent does not start beside it: see which program it is (ss -xlp), and stop it",
        ),
        Occupant::Closed => warn(item, by.to_string(), "run this as root"),
        Occupant::Nobody => free(item, socket),
    };
    (finding, is_agent)
}

/// Whether a socket can be made where nobody listens.
fn free(item: String, socket: &Socket) -> Finding {
    let path = &socket.path;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let group = socket.group.as_ref().map(|group| group.id(GROUPS.as_ref()));
    if let Some(Err(error)) = group {
        let error = SocketError::Group(error);
        return fail(item, chain(&error), error.remedy());
    }
    let found = match look_at_socket(path) {
        PathKind::Socket => "left behind by an agent that has ended; it will be replaced",
        PathKind::Absent if directory.is_dir() => "can be written",
        // The agent makes the directory; here nothing is left behind.
        PathKind::Absent => {
            return Finding {
                item,
                ..store(directory)
            };
        }
        // This socket is the agent's own: without it the agent does not start.
        other @ (PathKind::Other | PathKind::Unreadable(_)) => {
            return Finding {
                verdict: Verdict::Fail,
                ..other.finding(item, "")
            };
        }
    };
    // In the way the agent does it, with its mode and its group, under a name that fits wherever the
    // socket's own does.
    let length = path.file_name().map_or(0, |name| name.len());
    let trial = format!(".gpuacct-check-{}", std::process::id());
    let trial = directory.join(&trial[..trial.len().min(length.max(1))]);
    if fs::symlink_metadata(&trial).is_ok() {
        return ok(item, found);
    }
    match bind(&trial, &socket.access()) {
        Ok(_) => ok(item, found),
        Err(error) => fail(item, chain(&error), error.remedy()),
    }
}
