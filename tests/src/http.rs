//! HTTP as a test speaks it: blocking, bounded, on loopback. And addresses for daemons.
//!
//! The client is not the one that the agent is built with, so that a misreading of the protocol
//! does not cancel out.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use ureq::Body;
use ureq::http::Response;

/// How long a request may take. Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const MAX_BODY_BYTES: u64 = 1 << 28;

/// A GET: code and body.
///
/// # Errors
/// If there is no answer; a code that says so is an answer.
pub fn get(url: &str, accept: &str) -> Result<(u16, String)> {
    let answer = client().get(url).header("accept", accept).call();
    read(answer).with_context(|| format!("GET {url}"))
}

/// A POST of bytes: code and body.
///
/// # Errors
/// As [`get`].
pub fn post(url: &str, content_type: &str, body: &[u8]) -> Result<(u16, String)> {
    let answer = client().post(url).content_type(content_type).send(body);
    read(answer).with_context(|| format!("POST {url}"))
}

/// A POST of a form: code and body.
///
/// # Errors
/// As [`get`].
pub fn post_form(url: &str, fields: &[(&str, &str)]) -> Result<(u16, String)> {
    let answer = client().post(url).send_form(fields.iter().copied());
    read(answer).with_context(|| format!("POST {url}"))
}

/// An address of the loopback interface whose port is free, and stays so while its daemon is down:
/// each has a host number of its own in 127/8, which no other test process asks for.
///
/// # Errors
/// If there is none.
pub fn free_address() -> Result<SocketAddr> {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    // 127.0 is left to those who are content with 127.0.0.1.
    let host = Ipv4Addr::new(127, high | 1, low, NEXT.fetch_add(1, Ordering::Relaxed));
    let listener =
        TcpListener::bind((host, 0)).with_context(|| format!("no free port of {host}"))?;
    Ok(listener.local_addr()?)
}

fn client() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into()
}

fn read(answer: Result<Response<Body>, ureq::Error>) -> Result<(u16, String)> {
    let mut answer = answer?;
    let body = answer.body_mut().with_config().limit(MAX_BODY_BYTES);
    let text = body.read_to_string().context("the body cannot be read")?;
    Ok((answer.status().as_u16(), text))
}
