//! Tests of what the socket answers.

use super::*;
use crate::core::model::{Clock, WallTime};
use crate::outputs::sample::{self, NOW};
use crate::socket_access::SocketAccess;

fn state() -> (SocketState, mpsc::Receiver<Query>) {
    let (queries, asked) = mpsc::channel(1);
    let (releases, _) = mpsc::channel(1);
    let (_, published) = watch::channel(Arc::new(sample::published()));
    let state = SocketState {
        published,
        queries,
        releases,
        counters: Arc::default(),
        log: Arc::default(),
        config: watch::channel(Arc::default()).1,
        clock: Arc::new(|| Clock {
            boot: NOW,
            wall: WallTime(5),
        }),
    };
    (state, asked)
}

async fn body(response: impl IntoResponse) -> (StatusCode, Vec<u8>) {
    use http_body_util::BodyExt as _;
    let response = response.into_response();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, bytes.to_vec())
}

#[tokio::test]
async fn the_status_is_what_was_published_last() {
    let (state, _asked) = state();
    let (code, json) = body(status(State(state)).await).await;
    assert_eq!(code, StatusCode::OK);
    let report: StatusReport = serde_json::from_slice(&json).unwrap();
    let now = Clock {
        boot: NOW,
        wall: WallTime(5),
    };
    assert_eq!(report, StatusReport::new(&sample::published(), now));
}

#[tokio::test]
async fn a_probe_that_fails_says_why() {
    let (code, json) = body(answer_probe(Err("stuck\n".into()))).await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    let refusal: Refusal = serde_json::from_slice(&json).unwrap();
    assert_eq!(refusal.error, "stuck");
    let (code, text) = body(answer_probe(Ok("ok\n".into()))).await;
    assert_eq!((code, &*text), (StatusCode::OK, &b"ok\n"[..]));
}

#[tokio::test]
async fn processes_are_asked_of_the_core() {
    let (state, mut asked) = state();
    let core = tokio::spawn(async move {
        let Some(Query::Processes(answer)) = asked.recv().await else {
            panic!("nobody asked");
        };
        answer.send(sample::processes()).unwrap();
    });
    let (code, json) = body(processes(State(state)).await).await;
    assert_eq!(code, StatusCode::OK);
    let found: Vec<GpuProcessView> = serde_json::from_slice(&json).unwrap();
    assert_eq!(found, sample::processes());
    core.await.unwrap();
}

#[tokio::test]
async fn a_subject_is_explained_unknown_or_no_subject() {
    let (state, mut asked) = state();
    let core = tokio::spawn(async move {
        while let Some(Query::Explain { subject, answer }) = asked.recv().await {
            let known = subject == "4711";
            let story = known.then(|| {
                Box::new(Explanation {
                    subject: subject.into(),
                    at: NOW,
                    wall: WallTime(5),
                    events_through: None,
                    processes: vec![],
                    processes_left_out: 0,
                    owners: vec![],
                    owners_left_out: 0,
                })
            });
            answer.send(story).unwrap();
        }
    });
    let longest = "x".repeat(MAX_SUBJECT_BYTES);
    let too_long = "x".repeat(MAX_SUBJECT_BYTES + 1);
    for (subject, expected) in [
        ("4711", StatusCode::OK),
        ("4712", StatusCode::NOT_FOUND),
        (longest.as_str(), StatusCode::NOT_FOUND),
        (too_long.as_str(), StatusCode::BAD_REQUEST),
        ("", StatusCode::BAD_REQUEST),
    ] {
        let parameters = Parameters(Subject {
            subject: subject.to_owned(),
        });
        let (code, json) = body(explain(State(state.clone()), parameters).await).await;
        assert_eq!(code, expected, "{subject}");
        if code == StatusCode::OK {
            let told: Explanation = serde_json::from_slice(&json).unwrap();
            assert_eq!(&*told.subject, subject);
        } else {
            let refusal: Refusal = serde_json::from_slice(&json).unwrap();
            assert!(!refusal.error.is_empty());
        }
    }
    drop(state);
    core.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_process_whose_events_are_not_read_yet_was_said_not_to_exist() {
    let (mut state, mut asked) = state();
    let (committed, published) = watch::channel(Arc::new(sample::published()));
    state.published = published;
    let mut later = sample::published();
    later.books.at = NOW.plus(COMMIT_LATER);
    let questions = tokio::spawn(async move {
        let mut questions = 0;
        while let Some(Query::Explain { answer, .. }) = asked.recv().await {
            questions += 1;
            answer.send(None).unwrap();
            if questions == 1 {
                committed.send_replace(Arc::new(later.clone()));
            }
        }
        questions
    });
    let parameters = || {
        Parameters(Subject {
            subject: "4711".to_owned(),
        })
    };
    let (code, json) = body(explain(State(state.clone()), parameters()).await).await;
    let refusal: Refusal = serde_json::from_slice(&json).unwrap();
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert!(!refusal.error.contains("ask again"), "{refusal:?}");

    // No commit comes any more: that nothing is known yet is said.
    state.clock = Arc::new(|| Clock {
        boot: NOW.plus(Nanos::from_secs(60)),
        wall: WallTime(5),
    });
    let (code, json) = body(explain(State(state.clone()), parameters()).await).await;
    let refusal: Refusal = serde_json::from_slice(&json).unwrap();
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert!(refusal.error.contains("ask again"), "{refusal:?}");
    drop(state);
    assert_eq!(questions.await.unwrap(), 4, "each is asked twice");
}

#[tokio::test(start_paused = true)]
async fn a_core_that_is_stuck_or_gone_costs_two_seconds_at_most() {
    let (state, asked) = state();
    // The first query fills the channel, the second finds it full: both come back.
    for expected in ["the core has not answered for 2 s"; 2] {
        let (code, json) = body(processes(State(state.clone())).await).await;
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        let refusal: Refusal = serde_json::from_slice(&json).unwrap();
        assert_eq!(refusal.error, expected);
    }
    drop(asked);
    let (_, json) = body(processes(State(state)).await).await;
    let refusal: Refusal = serde_json::from_slice(&json).unwrap();
    assert_eq!(refusal.error, "the core has stopped");
}

#[tokio::test]
async fn any_programs_socket_was_called_another_agents() {
    use tokio::io::AsyncWriteExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (access, patience) = (SocketAccess::default(), Duration::ZERO);
    let path = directory.path().join("other.sock");
    let other = tokio::net::UnixListener::bind(&path).unwrap();
    let greet = async {
        loop {
            let (mut stream, _) = other.accept().await.unwrap();
            // The first connection is only tried, and closed.
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
        }
    };
    let error = tokio::select! {
        bound = bind_after(&path, &access, Duration::from_secs(30)) => bound.expect_err("it is in use"),
        () = greet => unreachable!("it greets for ever"),
    };
    let said = error.to_string();
    assert!(said.contains("no gpuacct agent"), "{said}");
    assert!(said.contains("220 mail.example ESMTP"), "{said}");

    let path = directory.path().join("agent.sock");
    let (state, _asked) = state();
    let bound = bind(&path, &SocketAccess::default()).unwrap();
    let error = tokio::select! {
        bound = bind_after(&path, &access, patience) => bound.expect_err("it is in use"),
        _ = serve(bound, state, std::future::pending()) => unreachable!("it serves for ever"),
    };
    let said = error.to_string();
    assert!(said.contains("another agent answers"), "{said}");
}

#[tokio::test]
async fn a_member_of_the_socket_s_group_could_have_stopped_the_accounting() {
    let own = rustix::process::geteuid().as_raw();
    let order = async |user: Option<u32>| {
        let (mut state, _asked) = state();
        let (releases, mut taken) = mpsc::channel::<ReleaseOrder>(1);
        state.releases = releases;
        tokio::spawn(async move {
            if let Some(order) = taken.recv().await {
                let _ = order.answer.send(ReleaseReport::TakenUp);
            }
        });
        let mut request = axum::http::Request::post("/v1/release");
        request = request.extension(ClientUser(user));
        let request = request.body(axum::body::Body::from("60")).unwrap();
        body(
            tower_service::Service::call(&mut router(state), request)
                .await
                .unwrap(),
        )
        .await
    };
    assert_eq!(order(Some(0)).await.0, StatusCode::OK);
    assert_eq!(order(Some(own)).await.0, StatusCode::OK);
    for other in [Some(own + 1), None] {
        let (code, json) = order(other).await;
        assert_eq!(code, StatusCode::FORBIDDEN);
        let refusal: Refusal = serde_json::from_slice(&json).unwrap();
        assert!(refusal.error.contains("let go of the GPUs"), "{refusal:?}");
    }
}
