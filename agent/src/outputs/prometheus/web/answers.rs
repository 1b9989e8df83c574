//! The answers to requests that are not let through, in the words of Go's server.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{Admission, Guard, Rules};
use crate::outputs::connections::ClientAddress;
use crate::outputs::probe;

/// Answers a request, or says why not.
pub(crate) async fn admit(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    if !guard.is_on() || probe::PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let rules = guard.rules().await;
    let refused = &guard.counters.metrics_refused;
    if !guard.may_ask() {
        refused.rate_limit.add(1);
        return text(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests");
    }
    let address: Option<IpAddr> = request
        .extensions()
        .get::<ClientAddress>()
        .and_then(|address| address.0);
    let admission = guard.admits(&rules, request.headers(), address).await;
    let mut answer = match admission {
        Admission::Yes => next.run(request).await,
        Admission::No => {
            refused.unauthorized.add(1);
            unauthorized(&rules)
        }
        Admission::Busy => {
            refused.busy.add(1);
            let busy = text(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable");
            with(busy, RETRY_AFTER, "1")
        }
    };
    for (name, value) in &rules.headers {
        answer.headers_mut().insert(name.clone(), value.clone());
    }
    answer
}

fn unauthorized(rules: &Rules) -> Response {
    let mut answer = text(StatusCode::UNAUTHORIZED, "Unauthorized");
    let ways = [
        (rules.has_passwords(), "Basic"),
        (rules.tokens.is_some(), "Bearer"),
    ];
    for (_, way) in ways.into_iter().filter(|(is_one, _)| *is_one) {
        let way = HeaderValue::from_static(way);
        answer.headers_mut().append(WWW_AUTHENTICATE, way);
    }
    answer
}

/// An answer as `http.Error` of Go makes it.
fn text(code: StatusCode, line: &str) -> Response {
    let answer = (code, format!("{line}\n")).into_response();
    let answer = with(answer, CONTENT_TYPE, "text/plain; charset=utf-8");
    with(answer, X_CONTENT_TYPE_OPTIONS, "nosniff")
}

fn with(mut answer: Response, name: HeaderName, value: &'static str) -> Response {
    let value = HeaderValue::from_static(value);
    answer.headers_mut().insert(name, value);
    answer
}
