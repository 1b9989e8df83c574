//! A stand-in for the store of a fleet that is too large to be written here: it makes its answers when it is
//! asked. Each counter grows evenly and never begins anew. So what is measured is the report, and one thread that makes
//! answers.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::Result;
use axum::Router;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::get;
use gpuacct_tests::endpoint::bound;
use tokio::runtime::Runtime;

use super::{BEGIN, DAY, GPUS, NAMESPACES, SCRAPE};

/// What each counter of a GPU and of a container grows in a thousand seconds. The parts of a GPU's time add
/// up to it, and so does the busy time of its three containers.
const OF_GPUS: [(&str, i64); 4] = [
    ("gpuacct_gpu_elapsed_seconds_total", 1_000),
    ("gpuacct_gpu_busy_seconds_total", 600),
    ("gpuacct_gpu_idle_seconds_total", 400),
    ("gpuacct_gpu_energy_joules_total", 300_000),
];
const OF_CONTAINERS: [(&str, i64); 5] = [
    ("gpuacct_container_gpu_busy_seconds_total", 200),
    ("gpuacct_container_gpu_held_seconds_total", 1_000),
    ("gpuacct_container_gpu_allocated_seconds_total", 300),
    ("gpuacct_container_gpu_memory_byte_seconds_total", 4_000_000),
    ("gpuacct_container_gpu_energy_joules_total", 100_000),
];

/// Serves a fleet of so many nodes for as long as the runtime lives, and returns its URL.
pub(super) fn serve(runtime: &Runtime, nodes: i64) -> Result<String> {
    let (listener, address) = bound(runtime);
    let names = OF_GPUS.iter().chain(&OF_CONTAINERS).map(|(name, _)| name);
    let names: Vec<_> = names.map(|name| format!("{name:?}")).collect();
    let names = format!(r#"{{"status":"success","data":[{}]}}"#, names.join(","));
    let router = Router::new()
        .route(
            "/api/v1/label/__name__/values",
            get(|| async move { names }),
        )
        .route(
            "/api/v1/query_range",
            get(
                move |Query(asked): Query<HashMap<String, String>>| async move {
                    matrix(&asked, nodes).ok_or(StatusCode::BAD_REQUEST)
                },
            ),
        );
    runtime.spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}"))
}

/// The answer to a query of a range; none for a query that the report does not make.
fn matrix(asked: &HashMap<String, String>, nodes: i64) -> Option<String> {
    let query = asked.get("query")?;
    let (function, rest) = query.split_once('(')?;
    let (family, rest) = rest.split_once('{')?;
    let window: i64 = rest.rsplit_once('[')?.1.strip_suffix("s])")?.parse().ok()?;
    let time = |name: &str| asked.get(name)?.parse::<i64>().ok();
    let (start, end, step) = (time("start")?, time("end")?, time("step")?);
    // How long a counter has grown at the sample that the function answers.
    let grown = |at: i64| match function {
        "min_over_time" => Some(at - window + SCRAPE),
        "max_over_time" | "last_over_time" => Some(at),
        "resets" => None,
        _ => Some(i64::MIN),
    };
    if grown(0) == Some(i64::MIN) {
        return None;
    }
    let of_gpus = OF_GPUS.iter().find(|(name, _)| *name == family);
    let of_containers = OF_CONTAINERS.iter().find(|(name, _)| *name == family);
    let (_, rate) = of_gpus.or(of_containers)?;
    let mut points = String::new();
    for at in (start..=end).step_by(usize::try_from(step).ok()?) {
        let value = grown(at).map_or(0, |at| (at - (BEGIN - 100 * DAY)) * rate);
        let comma = if points.is_empty() { "" } else { "," };
        let _ = write!(
            points,
            "{comma}[{at},\"{}.{:03}\"]",
            value / 1_000,
            value % 1_000
        );
    }
    let mut text = String::from(r#"{"status":"success","data":{"resultType":"matrix","result":["#);
    let mut series = |labels: &str| {
        if !text.ends_with('[') {
            text.push(',');
        }
        let _ = write!(text, r#"{{"metric":{{{labels}}},"values":[{points}]}}"#);
    };
    for node in 0..nodes {
        for gpu in 0..GPUS {
            let target = format!(
                r#""instance":"10.0.{}.{}:9400","job":"gpuacct","node":"n{node}","gpu_uuid":"GPU-{node}-{gpu}""#,
                node / 250,
                node % 250
            );
            if of_gpus.is_some() {
                series(&target);
                continue;
            }
            for namespace in NAMESPACES {
                let name = format!("{namespace}-{node}-{gpu}");
                series(&format!(
                    r#"{target},"namespace":"{namespace}","pod":"{name}","container":"main","pod_uid":"{name}","container_id":"{name}""#
                ));
            }
        }
    }
    text.push_str("]}}");
    Some(text)
}
