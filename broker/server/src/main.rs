//! The `anabranch` binary: a table of contents.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the commands |
//! | [`config`] | flag, environment, file, default |
//! | [`demo`] | a year of flights, streamed into a broker |
//! | [`connections`] | accepting them, within limits |
//! | [`cross_site`] | web pages of strangers are kept out |
//! | [`serve`] | a broker from start to graceful end |
//! | [`node`] | the narrow waist: publish, subscribe, row, rows, stream info |
//! | [`http`] | the HTTP surface |
//! | [`peer`] | links to brokers of other regions |
//! | [`refused`] | a problem as an HTTP response |
//! | [`websocket`] | the WebSocket surface |

mod cli;
mod config;
mod connections;
mod cross_site;
mod demo;
mod http;
mod node;
mod peer;
mod refused;
mod serve;
mod websocket;

fn main() -> std::process::ExitCode {
    cli::main()
}
