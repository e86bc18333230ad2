//! Errors as RFC 9457 problems.

use anabranch_protocol::error::{Code, Problem};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};

use crate::refused::refused;

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

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        refused(&self.0)
    }
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
