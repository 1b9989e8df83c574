//! Tests of `fleet`, against servers that lie, hang and answer half.

use std::sync::Arc as Shared;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::errors::chain;
use crate::report::prices::Prices;
use crate::report::promql::Access;
use crate::report::range::Asked;
use crate::report::tally::Filter;
use crate::report::zone::Zone;

const NOW: &str = "2026-01-31T08:30:00Z";

/// What a server answers to a request line: whole, as bytes; none if it never does.
type Answers = dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync;

fn http(status: u16, body: &str) -> Option<Vec<u8>> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    Some([head.as_bytes(), body.as_bytes()].concat())
}

async fn server(answers: Shared<Answers>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = Shared::clone(&answers);
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                        _ => return,
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                match answers(&request) {
                    Some(answer) => drop(stream.write_all(&answer).await),
                    // Until whoever asks has had enough.
                    None => drop(stream.read(&mut buffer).await),
                }
            });
        }
    });
    format!("http://{address}")
}

fn question(by: &[Dimension]) -> Question {
    Question {
        asked: Asked {
            since: "2026-01-31T06:00:00Z".parse().unwrap(),
            until: Some("2026-01-31T08:00:00Z".parse().unwrap()),
        },
        zone: Zone::UTC,
        by: by.to_vec(),
        filter: Filter::default(),
        prices: None,
        timeline: true,
    }
}

async fn asked(
    answers: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> Result<Report, String> {
    asked_within(Duration::from_secs(60), answers).await
}

/// The same with another time for each request.
async fn asked_within(
    timeout: Duration,
    answers: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> Result<Report, String> {
    let access = Access {
        url: server(Shared::new(answers))
            .await
            .replace("http://", "http://me:hunter22@"),
        timeout,
        ..Access::default()
    };
    asked_of(access, &question(&[Dimension::Namespace])).await
}

async fn asked_of(access: Access, question: &Question) -> Result<Report, String> {
    let mut store = Store::new(access).unwrap();
    let made = make(&mut store, question, None, NOW.parse().unwrap()).await;
    made.map_err(|error| chain(&error))
}

fn names() -> String {
    let names = FAMILIES.map(|family| format!("{:?}", family.name));
    format!(r#"{{"status":"success","data":[{}]}}"#, names.join(","))
}

fn matrix(series: &str) -> String {
    format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":[{series}]}}}}"#)
}

/// One GPU, two hours, of which 600 s are busy: by each function and family of a query.
fn whole(request: &str) -> Option<Vec<u8>> {
    if request.contains("label/__name__") {
        return http(200, &names());
    }
    if !request.contains("/query_range") {
        return http(200, r#"{"status":"success","data":[]}"#);
    }
    // The hours of the range; nothing is there of the day before it but what was last.
    if !request.contains("last_over_time") && !request.contains("end=1769846400") {
        return http(200, &matrix(""));
    }
    let of = |busy: &str, elapsed: &str| match () {
        () if request.contains("gpu_busy_seconds_total") => busy.to_owned(),
        () if request.contains("gpu_elapsed") => elapsed.to_owned(),
        () if request.contains("gpu_idle_seconds") => "0".to_owned(),
        () => String::new(),
    };
    let (least, most) = match () {
        () if request.contains("last_over_time") => (of("1000", "1000"), of("1000", "1000")),
        () => (of("1000", "1000"), of("1600", "1600")),
    };
    let labels = match () {
        () if request.contains("container_gpu_busy") => {
            r#""gpu_uuid":"GPU-0","namespace":"research","pod":"a","container":"b","pod_uid":"u","container_id":"c""#
        }
        () if request.contains("host_gpu_busy") => return http(200, &matrix("")),
        () => r#""gpu_uuid":"GPU-0""#,
    };
    let value = match () {
        () if request.contains("resets") => "0".to_owned(),
        () if request.contains("max_over_time") => most,
        () => least,
    };
    if value.is_empty() || (value == "0" && of("1", "1").is_empty()) {
        return http(200, &matrix(""));
    }
    // 06:00 to 07:00; the seeds are of a day before that.
    let at = match request.contains("last_over_time") {
        true => 1_769_752_800,
        false => 1_769_842_800,
    };
    http(
        200,
        &matrix(&format!(
            r#"{{"metric":{{{labels}}},"values":[[{at},"{value}"]]}}"#
        )),
    )
}

/// The same of a MIG instance.
fn instance(request: &str) -> Option<Vec<u8>> {
    if request.contains("label/__name__") {
        return http(200, &names().replace("[\"", "[\"gpuacct_gpu_info\",\""));
    }
    if request.contains("/series") {
        return http(
            200,
            r#"{"status":"success","data":[{"gpu_uuid":"GPU-0","index":"0","model":"A100",
                "mig_profile":"1g.10gb","mig_parent":"GPU-1"}]}"#,
        );
    }
    whole(request)
}

#[tokio::test]
async fn time_on_a_mig_instance_was_billed_at_the_price_of_the_whole_gpu() {
    let prices = "currency = \"EUR\"\n[gpu.A100]\nbusy_hour = \"6\"\n[gpu.A100.mig.\"1g.10gb\"]\nbusy_hour = \"0.6\"\n";
    let question = Question {
        prices: Some(Prices::parse(prices, "prices").unwrap()),
        ..question(&[Dimension::Namespace, Dimension::Profile])
    };
    let access = Access {
        url: server(Shared::new(instance)).await,
        timeout: Duration::from_secs(60),
        ..Access::default()
    };
    let report = asked_of(access, &question).await.unwrap();
    let row = report
        .rows
        .iter()
        .find(|row| row.kind == Kind::Container)
        .unwrap();
    assert_eq!(&*row.key[1], "1g.10gb");
    // A sixth of an hour.
    let cost = row.cost.map(|cost| cost.to_string());
    assert!(
        cost.as_deref().is_some_and(|cost| cost.starts_with("0.1")),
        "{cost:?}"
    );
}

#[tokio::test]
async fn a_store_that_answers_well_is_added_up() {
    let report = asked(whole).await.unwrap();
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| (row.kind, row.sums.gpu))
        .collect();
    assert_eq!(
        rows,
        [
            (Kind::Container, Nanos::from_secs(600)),
            (Kind::Unaccounted, Nanos::from_secs(6_600)),
        ]
    );
    assert_eq!(report.total.sums.gpu, Nanos::from_secs(7_200));
    assert_eq!(report.imbalance, Nanos::ZERO);
}

#[tokio::test]
async fn a_store_that_lies_or_answers_half_is_an_error_in_plain_words() {
    type Change = fn(&str) -> Option<Vec<u8>>;
    let rows: [(&str, Change); 9] = [
        ("\"NaN\"", |request| {
            let answer = String::from_utf8(whole(request)?).unwrap();
            Some(answer.replace("\"1600\"", "\"NaN\" ").into())
        }),
        // The server knows the password and repeats it.
        ("(redacted)", |_| http(401, "no access for me:hunter22")),
        ("refuses", |_| http(302, "")),
        ("end of file", |request| {
            let mut answer = whole(request)?;
            answer.truncate(answer.len() / 2);
            Some(answer)
        }),
        ("no metric of gpuacct", |_| {
            http(200, r#"{"status":"success","data":[]}"#)
        }),
        ("lacks gpuacct_gpu_elapsed_seconds_total", |_| {
            http(200, r#"{"status":"success","data":["gpuacct_build_info"]}"#)
        }),
        ("contradict", |request| {
            match request.contains("max_over_time") {
                true => http(200, &matrix("")),
                false => whole(request),
            }
        }),
        ("names no GPU", |request| {
            let answer = String::from_utf8(whole(request)?).unwrap();
            Some(answer.replace("gpu_uuid", "gpu_uuix").into())
        }),
        ("execution: too many samples", |request| {
            match request.contains("/query_range") {
                true => http(
                    422,
                    r#"{"status":"error","errorType":"execution","error":"too many samples"}"#,
                ),
                false => whole(request),
            }
        }),
    ];
    for (expected, change) in rows {
        let error = asked(change).await.expect_err(expected);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains("http://127.0.0.1:"), "{error}");
        assert!(!error.contains("hunter22"), "{error}");
    }
}

#[tokio::test]
async fn a_store_that_hangs_is_given_up() {
    let hangs = asked_within(Duration::from_millis(400), |_| None);
    let error = hangs.await.expect_err("it hangs");
    assert!(error.contains("has not answered"), "{error}");
    let error = asked(|_| Some(Vec::new())).await.expect_err("it hangs up");
    assert!(error.contains("no answer from"), "{error}");
}

#[tokio::test]
async fn a_store_that_is_busy_is_asked_again() {
    let times = std::sync::atomic::AtomicUsize::new(0);
    let report =
        asked(
            move |request| match times.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 3 {
                0 => http(503, ""),
                _ => whole(request),
            },
        );
    assert_eq!(report.await.unwrap().imbalance, Nanos::ZERO);
}

#[tokio::test]
async fn an_answer_without_end_is_refused() {
    let error = asked(|request| match request.contains("label/__name__") {
        true => {
            let mut answer = b"HTTP/1.1 200 X\r\n\r\n".to_vec();
            answer.resize((64 << 20) + 100, b' ');
            Some(answer)
        }
        false => whole(request),
    });
    let error = error.await.expect_err("too long");
    assert!(error.contains("longer than 64 MiB"), "{error}");
}

#[tokio::test]
async fn what_the_store_says_beside_its_answer_is_shown() {
    let report = asked(|request| {
        let answer = String::from_utf8(whole(request)?).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body = body.replacen('{', r#"{"warnings":["a store gateway is down"],"#, 1);
        http(200, &body)
    });
    let report = report.await.unwrap();
    assert!(!report.is_complete);
    let shown = report
        .warnings
        .iter()
        .filter(|text| text.contains("gateway is down"));
    assert_eq!(shown.count(), 1, "{:?}", report.warnings);
}

fn labels(text: &str) -> Labels {
    let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn owners_are_found_by_whatever_name_a_scraper_or_otlp_gave_their_labels() {
    let what = What::Container(families::Amount::Busy);
    let expected = Subject::of(
        what,
        &labels("namespace=a pod=b container=c pod_uid=u container_id=i gpu_uuid=G"),
    );
    for text in [
        "namespace=x pod=y container=z exported_namespace=a exported_pod=b exported_container=c pod_uid=u \
         container_id=i gpu_uuid=G instance=1 prometheus_replica=a",
        "namespace=x owner_namespace=a owner_pod=b owner_container=c owner_pod_uid=u owner_container_id=i \
         gpu_uuid=G",
        "k8s_namespace_name=a k8s_pod_name=b k8s_container_name=c k8s_pod_uid=u container_id=i hw_id=G",
        "k8s.namespace.name=a k8s.pod.name=b k8s.container.name=c k8s.pod.uid=u container.id=i hw.id=G",
    ] {
        assert_eq!(Subject::of(what, &labels(text)), expected, "{text}");
    }
}

#[test]
fn owners_are_overwritten_only_if_all_have_the_labels_of_the_target() {
    let own = [labels("gpu_uuid=G namespace=monitoring pod=gpuacct-1")];
    let target = labels("gpu_uuid=G namespace=monitoring pod=gpuacct-1");
    let other = labels("gpu_uuid=G namespace=monitoring pod=grafana-1");
    let renamed = labels("gpu_uuid=G namespace=monitoring exported_namespace=a pod=gpuacct-1");
    let found = |owners: &[Labels]| overwritten(&own, owners.iter()).is_some();
    assert!(found(std::slice::from_ref(&target)));
    assert!(!found(&[]));
    assert!(!found(&[target.clone(), other]));
    assert!(!found(&[target.clone(), renamed]));
    assert!(overwritten(&[labels("gpu_uuid=G")], [target].iter()).is_none());
}
