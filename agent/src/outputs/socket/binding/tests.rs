//! Tests of how the socket is made.

use super::*;
use crate::errors::chain;
use crate::socket_access::SocketGroup;

fn bind(path: &Path) -> Result<BoundSocket, SocketError> {
    super::bind(path, &SocketAccess::default())
}

async fn bind_after(path: &Path, patience: Duration) -> Result<BoundSocket, SocketError> {
    super::bind_after(path, &SocketAccess::default(), patience).await
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/gpuacct/a.sock");
    let bound = bind(&path).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    // The process's umask may only take away from what was asked for.
    assert_eq!(mode(path.parent().unwrap()) & !0o755, 0);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    drop(bound);
    assert!(!path.exists());
}

#[tokio::test]
async fn the_socket_has_the_group_and_the_mode_that_are_configured() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let own = rustix::process::getgid().as_raw();
    let access = |group, mode: &str| SocketAccess {
        mode: mode.parse::<SocketMode>().unwrap(),
        group: Some(group),
    };
    let bound = super::bind(&path, &access(SocketGroup::Id(own), "0660")).unwrap();
    let file = fs::metadata(&path).unwrap();
    assert_eq!((file.mode() & 0o777, file.gid()), (0o660, own));
    assert!(has_listener(&path).unwrap());
    drop(bound);
    let unknown = SocketGroup::Name("no-such-group".to_owned());
    let error = super::bind(&path, &access(unknown, "0660")).expect_err("no such group");
    let said = chain(&error);
    assert!(
        said.contains("/etc/group has no group \"no-such-group\""),
        "{said}"
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    // A listener that is closed leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let bound = bind(&path).unwrap();
    let error = bind(&path).expect_err("it is in use");
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    // A second agent in its place: the first one's end leaves it alone.
    fs::remove_file(&path).unwrap();
    let second = bind(&path).unwrap();
    drop(bound);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_ending_is_waited_for_and_another_one_only_so_long() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let patience = Duration::from_secs(30);
    let first = bind(&path).unwrap();
    let error = bind_after(&path, patience).await.expect_err("it goes on");
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    let (second, ()) = tokio::join!(bind_after(&path, patience), async {
        tokio::time::sleep(Duration::from_secs(16)).await;
        drop(first);
    });
    drop(second.unwrap());
    // What no waiting mends is said at once.
    fs::write(&path, "").unwrap();
    let began = tokio::time::Instant::now();
    let error = bind_after(&path, patience).await.expect_err("a file");
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn what_is_not_a_socket_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    fs::write(&path, "precious").unwrap();
    let error = bind(&path).expect_err("a file is there");
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    let long = directory.path().join("x".repeat(107));
    let error = bind(&long).expect_err("too long");
    assert!(matches!(error, SocketError::PathTooLong { .. }), "{error}");
}

/// A start in `connect` was deaf to every signal for as long as the other program liked.
#[test]
fn a_socket_whose_backlog_is_full_is_in_use_and_blocks_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("full.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&socket, &SocketAddrUnix::new(&path).unwrap()) {
            Ok(()) => waiting.push(socket),
            Err(error) => {
                assert_eq!(error, Errno::AGAIN, "after {}", waiting.len());
                break;
            }
        }
        assert!(waiting.len() < 10_000, "the backlog has an end");
    }
    assert!(has_listener(&path).unwrap());
    let error = bind(&path).expect_err("somebody listens");
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    drop((listener, waiting));
    assert!(!has_listener(&path).unwrap());
}
