//! Who listens on the path that the agent's socket is to have.
//!
//! An agent that is being replaced ends soon, so a new one waits for it. Another program does not
//! end, so the new agent says at once what is there. A connection alone does not tell them apart.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::errors::quoted;

/// How long the program may take to answer.
const LIMIT: Duration = Duration::from_secs(2);
/// How much of the answer is read, in bytes.
const MAX_ANSWER_BYTES: usize = 512;
/// What any version of the agent answers.
const QUESTION: &[u8] = b"GET /v1/status HTTP/1.1\r\nhost: gpuacct\r\nconnection: close\r\n\r\n";
/// The beginning of the body of an agent's answer: of every version, so `version` stays its first field.
const AGENTS_BODY: &str = "\r\n\r\n{\"version\":\"";

/// Who listens on a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nobody has asked.
    Unknown,
    /// There is no socket, or no program listens on it any more.
    Nobody,
    /// This process may not connect.
    Closed,
    /// An agent.
    Agent,
    /// A program that accepts connections and says nothing. It may be an agent that is ending.
    Silent,
    /// Another program.
    Other {
        /// Beginning of its answer, quoted.
        said: String,
    },
}

impl Occupant {
    /// Asks who listens on `path`.
    pub async fn ask(path: &Path) -> Self {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) => return Self::of_a_refusal(error.kind()),
        };
        let mut answer = Vec::new();
        // Whatever ends it, what was read until then is looked at.
        let _ = timeout(LIMIT, read(stream, &mut answer)).await;
        let text = String::from_utf8_lossy(&answer);
        if text.starts_with("HTTP/1.1 200 ") && text.contains(AGENTS_BODY) {
            Self::Agent
        } else if answer.is_empty() {
            Self::Silent
        } else {
            Self::Other {
                said: quoted(&answer),
            }
        }
    }

    /// By why there is no connection.
    fn of_a_refusal(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::PermissionDenied => Self::Closed,
            // A program listens, and its backlog is full.
            ErrorKind::WouldBlock => Self::Silent,
            _ => Self::Nobody,
        }
    }
}

async fn read(mut stream: UnixStream, answer: &mut Vec<u8>) -> std::io::Result<()> {
    // One that speaks first and hangs up does not take the question.
    let _ = stream.write_all(QUESTION).await;
    let mut buffer = [0; MAX_ANSWER_BYTES];
    while answer.len() < MAX_ANSWER_BYTES {
        let room = MAX_ANSWER_BYTES - answer.len();
        match stream.read(&mut buffer[..room]).await? {
            0 => break,
            read => answer.extend(&buffer[..read]),
        }
    }
    Ok(())
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("a program listens there"),
            Self::Nobody => f.write_str("no program listens there"),
            Self::Closed => f.write_str(
                "this user may not open it, and cannot see whether an agent listens there",
            ),
            Self::Agent => f.write_str("another agent answers there"),
            Self::Silent => f.write_str("a program listens there and does not answer"),
            Self::Other { said } => {
                write!(
                    f,
                    "a program that is no gpuacct agent answers there: {said}"
                )
            }
        }
    }
}
