//! Errors as RFC 9457 problems.

use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::http::PROBLEM_JSON;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

/// A problem on its way out.
#[derive(Debug)]
pub(super) struct Refusal(Problem);

impl Refusal {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Problem::new(code, detail))
    }

    #[cfg(test)]
    pub(super) fn into_problem(self) -> Problem {
        self.0
    }
}

impl<E: Into<Problem>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// What a client that retries should wait at least, in seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        problem(&self.0)
    }
}

/// A problem as a response.
pub(crate) fn problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.code.http_status())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).expect("a problem is a map of texts");
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    if problem.retryable && status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    response
}

/// The answer to a path that is none. The path is shown, cut to a reasonable length.
pub(super) async fn no_such_route(request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(120).collect();
    Refusal::new(
        Code::NoSuchRoute,
        format!("there is nothing at {path}; the routes are listed at /openapi.json"),
    )
}

/// The answer to a method that a path does not have; axum adds the `Allow` header.
pub(super) async fn wrong_method(request: Request) -> Refusal {
    Refusal::new(
        Code::MethodNotAllowed,
        format!(
            "{} is not possible at this path; the Allow header lists what is",
            request.method()
        ),
    )
}
