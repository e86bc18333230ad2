//! Bad input gets a clear error, and nobody else notices.
//!
//! | module | holds |
//! |---|---|
//! | `scene` | a broker, and a bystander who must go on undisturbed |
//! | `messages` | WebSocket messages that are none, or come out of turn |
//! | `publishes` | publishes that cannot be taken |
//! | `batches` | record batches that lie |
//! | `subscriptions` | subscriptions that cannot be served |
//! | `requests` | HTTP requests that cannot be answered |
//! | `slowness` | clients that do not go on |
//! | `starting` | brokers that cannot start |
//! | `space` | a disk without room |
//! | `links` | frames that cannot be, from brokers or strangers |

mod batches;
mod links;
mod messages;
mod publishes;
mod requests;
mod scene;
mod slowness;
mod space;
mod starting;
mod subscriptions;
