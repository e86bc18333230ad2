//! The HTTP surface: a stream as JSON, and a table as rows.
//!
//! | file | holds |
//! |---|---|
//! | `streams` | making, showing, changing, trimming and deleting streams |
//! | `publish` | records in |
//! | `records` | records out, as one answer |
//! | `events` | records out, as they come: server-sent events |
//! | `rows` | one row: read, write, delete |
//! | `pages` | many rows at one moment |
//! | `transactions` | writes to several streams, all or nothing |
//! | `operations` | health, metrics, the description of this API |
//! | `regions` | this broker among the others; parking and removing members |
//! | `body` `query` `path` `token` | what a request says, read strictly |
//! | `answer` | JSON answers, and those to writes |
//! | `refusal` | errors as RFC 9457 problems |
//! | `measure` | counters and latencies by route |
//!
//! **Invariant**: a surface knows the node and the protocol, and no other surface.

mod answer;
mod body;
mod events;
mod measure;
mod operations;
mod pages;
mod path;
mod publish;
mod query;
mod records;
mod refusal;
mod regions;
mod rows;
mod streams;
#[cfg(test)]
mod tests;
mod token;
mod transactions;

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, get, post};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::config::Limits;
use crate::node::{Error, Node, Running};

/// What every handler is given.
pub(crate) struct Surface {
    node: Arc<Node>,
    prometheus: PrometheusHandle,
}

impl Surface {
    fn running(&self) -> Result<&Arc<Running>, Error> {
        self.node.running()
    }

    fn limits(&self) -> &Limits {
        self.node.limits()
    }
}

type App = axum::extract::State<Arc<Surface>>;
type Answer = Result<axum::response::Response, refusal::Refusal>;

/// Every route of the surface. Routes that are added later bring their own answers to wrong
/// methods; unknown paths are answered here.
pub(crate) fn router(node: &Arc<Node>, prometheus: PrometheusHandle) -> Router {
    measure::describe();
    let node = Arc::clone(node);
    let surface = Arc::new(Surface { node, prometheus });
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| {
            let methods = methods
                .fallback(refusal::wrong_method)
                .layer(measure::Measure::of(path));
            router.route(path, methods)
        })
        .fallback(refusal::no_such_route)
        .with_state(surface)
}

fn routes() -> [(&'static str, MethodRouter<Arc<Surface>>); 15] {
    [
        ("/", get(operations::index)),
        ("/openapi.json", get(operations::openapi)),
        ("/livez", get(operations::livez)),
        ("/readyz", get(operations::readyz)),
        ("/metrics", get(operations::metrics)),
        ("/v1/regions", get(regions::show)),
        ("/v1/regions/{member}/park", post(regions::park)),
        ("/v1/regions/{member}/remove", post(regions::remove)),
        ("/v1/streams", get(streams::list).post(streams::create)),
        (
            "/v1/streams/{stream}",
            get(streams::show)
                .patch(streams::change)
                .delete(streams::delete),
        ),
        ("/v1/streams/{stream}/trim", post(streams::trim)),
        (
            "/v1/streams/{stream}/records",
            get(records::read).post(publish::publish),
        ),
        ("/v1/tables/{stream}/rows", get(pages::read)),
        (
            "/v1/tables/{stream}/rows/{key}",
            get(rows::read)
                .put(rows::write)
                .patch(rows::patch)
                .delete(rows::delete),
        ),
        ("/v1/transactions", post(transactions::commit)),
    ]
}
