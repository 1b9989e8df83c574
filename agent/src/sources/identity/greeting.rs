//! Asks a runtime's socket which runtime it is, with one request, for `gpuacct check`.
//!
//! A socket that exists says nothing, a version string says little; what counts is that a real
//! request is answered. Both requests are the cheapest that their APIs have.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::engine::{Engine, EngineError};
use super::files::{FileError, open_folder};
use super::grpc::MAX_ONE;
use gpuacct_proto::cri::VersionRequest;
use gpuacct_proto::cri::runtime_service_client::RuntimeServiceClient;

/// Longest name of a runtime that is repeated.
const MAX_NAME: usize = 64;

/// Why nobody usable is behind a socket.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// It did not answer.
    #[error("no answer within {limit:?}")]
    Timeout {
        /// How long it had.
        limit: Duration,
    },
    /// It is not a Docker Engine, or refuses.
    #[error("it does not answer as the Docker Engine API does")]
    Docker(#[source] EngineError),
    /// Nothing accepts connections.
    #[error("it accepts no connection")]
    Connect(#[source] tonic::transport::Error),
    /// It speaks gRPC and offers no CRI v1.
    #[error("it does not offer CRI v1")]
    NoCri,
    /// A folder is there and cannot be opened.
    #[error("it cannot be opened: {message}")]
    Folder {
        /// Why not.
        message: String,
    },
    /// It is not a container runtime, or refuses.
    #[error("it does not answer as CRI v1 does: {code}: {message}")]
    Cri {
        /// gRPC's code.
        code: tonic::Code,
        /// Message of the server.
        message: String,
    },
}

/// Asks a Docker Engine, or Podman in its place, and returns what it calls itself.
///
/// # Errors
/// If there is no answer.
pub async fn docker(socket: &Path, limit: Duration) -> Result<String, GreetingError> {
    let ask = async {
        let docker = Engine::new(socket);
        docker.ping().await?;
        docker.version().await
    };
    let version = timeout(limit, ask)
        .await
        .map_err(|_| GreetingError::Timeout { limit })?
        .map_err(GreetingError::Docker)?;
    Ok(named(
        version
            .platform
            .map_or_else(|| "Docker Engine".to_owned(), |platform| platform.name),
        version.version.as_deref().unwrap_or_default(),
    ))
}

/// Asks a runtime for its version over CRI v1, and returns what it calls itself.
///
/// # Errors
/// If there is no answer.
pub async fn cri(socket: &Path, limit: Duration) -> Result<String, GreetingError> {
    let ask = async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .map_err(GreetingError::Connect)?;
        let channel = endpoint.connect().await.map_err(GreetingError::Connect)?;
        let answer = RuntimeServiceClient::new(channel)
            .max_decoding_message_size(MAX_ONE)
            .version(VersionRequest {
                version: "v1".to_owned(),
            })
            .await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| match status.code() {
                tonic::Code::Unimplemented => GreetingError::NoCri,
                code => GreetingError::Cri {
                    code,
                    message: status.message().to_owned(),
                },
            })
    };
    let version = timeout(limit, ask)
        .await
        .map_err(|_| GreetingError::Timeout { limit })??;
    Ok(named(version.runtime_name, &version.runtime_version))
}

/// Whether a folder of the host's is there, whose root is mounted at `host_root`: opened as the sources
/// do that read files.
///
/// # Errors
/// If it is there and cannot be opened.
pub fn folder(host_root: &Path, path: &Path) -> Result<bool, GreetingError> {
    match open_folder(host_root, path) {
        Ok(_) => Ok(true),
        Err(FileError::Missing(_)) => Ok(false),
        Err(fault) => Err(GreetingError::Folder {
            message: fault.to_string(),
        }),
    }
}

/// The runtime's own name, without control characters.
fn named(name: String, version: &str) -> String {
    format!("{name} {version}")
        .trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_NAME)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_calls_itself_is_bounded_and_plain() {
        assert_eq!(named("containerd".into(), "v1.7"), "containerd v1.7");
        assert_eq!(named("a\u{1b}[31m".into(), ""), "a[31m");
        assert_eq!(named("x".repeat(999), "1").len(), MAX_NAME);
    }

    #[tokio::test]
    async fn a_socket_without_anybody_is_no_runtime() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.sock");
        let limit = Duration::from_secs(30);
        let error = docker(&path, limit).await.expect_err("nobody");
        assert!(matches!(error, GreetingError::Docker(_)), "{error:?}");
        let error = cri(&path, limit).await.expect_err("nobody");
        assert!(matches!(error, GreetingError::Connect(_)), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_timed_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mute.sock");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let limit = Duration::from_secs(5);
        for error in [
            docker(&path, limit).await.expect_err("mute"),
            cri(&path, limit).await.expect_err("mute"),
        ] {
            assert!(matches!(error, GreetingError::Timeout { .. }), "{error:?}");
        }
    }
}
