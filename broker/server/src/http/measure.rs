//! Counters and latencies by route, method and class of status: few labels, known in advance.
//!
//! A handle is looked up once and kept; after that a request costs two clock reads and two atomic
//! additions.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::Method;
use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};
use tower::{Layer, Service};

/// Methods that are told apart; everything else is the last one.
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "other"];

/// Classes of status, from 1xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Says what the metrics are. Called once.
pub(super) fn describe() {
    describe_counter!(
        "anabranch_http_requests_total",
        "HTTP requests by route, method and class of status"
    );
    describe_histogram!(
        "anabranch_http_request_seconds",
        "Time to the head of the response, waits that the request asked for included"
    );
}

/// Measures the requests of one route.
#[derive(Clone)]
pub(super) struct Measure(Arc<Handles>);

struct Handles {
    route: &'static str,
    requests: [[OnceLock<Counter>; CLASSES.len()]; METHODS.len()],
    seconds: [OnceLock<Histogram>; METHODS.len()],
}

impl Measure {
    pub(super) fn of(route: &'static str) -> Self {
        Self(Arc::new(Handles {
            route,
            requests: Default::default(),
            seconds: Default::default(),
        }))
    }
}

impl Handles {
    fn record(&self, method: usize, response: &Response, since: Instant) {
        let class = usize::from(response.status().as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let labels = [("route", self.route), ("method", METHODS[method])];
        self.requests[method][class]
            .get_or_init(|| {
                let [route, method] = labels;
                counter!(
                    "anabranch_http_requests_total",
                    &[route, method, ("status", CLASSES[class])]
                )
            })
            .increment(1);
        self.seconds[method]
            .get_or_init(|| histogram!("anabranch_http_request_seconds", &labels))
            .record(since.elapsed().as_secs_f64());
    }
}

fn index_of(method: &Method) -> usize {
    let other = METHODS.len() - 1;
    let known = METHODS.iter().position(|known| *known == method.as_str());
    // To us a HEAD is a GET whose body nobody reads.
    known.unwrap_or(if *method == Method::HEAD { 0 } else { other })
}

impl<S> Layer<S> for Measure {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured {
            inner,
            handles: Arc::clone(&self.0),
        }
    }
}

/// A service whose requests are measured.
#[derive(Clone)]
pub(super) struct Measured<S> {
    inner: S,
    handles: Arc<Handles>,
}

impl<S> Service<Request> for Measured<S>
where
    S: Service<Request, Error = Infallible>,
    S::Response: IntoResponse,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let since = Instant::now();
        let method = index_of(request.method());
        let handles = Arc::clone(&self.handles);
        let answering = self.inner.call(request);
        Box::pin(async move {
            let response = answering.await?.into_response();
            handles.record(method, &response, since);
            Ok(response)
        })
    }
}
