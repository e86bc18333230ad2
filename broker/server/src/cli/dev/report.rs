//! What happens, told to a person or to a script.

use std::process::ExitStatus;
use std::time::Duration;

use serde_json::{Value, json};

use super::console::HELP;
use super::forward::Condition;
use super::names::{Names, delay_text};
use super::plan::Plan;
use super::process::Process;
use crate::cli::broker::{command, server_flag};
use crate::cli::output::Output;

/// Tells it on standard output. That nobody reads there is no reason to stop brokers.
#[derive(Debug)]
pub(super) struct Report {
    output: Output,
    names: Names,
}

/// Lines for the addresses of all regions, so that twelve are enough for everything.
const ADDRESS_LINES: usize = 5;

impl Report {
    /// As JSON where asked.
    pub(super) fn new(json: bool, names: Names) -> Self {
        Self {
            output: Output::new(json),
            names,
        }
    }

    fn tell(&self, object: &Value, text: &str) {
        let line = match self.output.is_json() {
            true => object.to_string(),
            false => text.to_owned(),
        };
        let _ = self.output.line(&line);
    }

    /// All regions take writes, and are linked, or will be.
    pub(super) fn ready(
        &self,
        plan: &Plan,
        running: &[Option<Process>],
        linked: bool,
        took: Duration,
    ) {
        let regions = running.iter().flatten().zip(self.names.iter());
        let objects = regions.clone().map(|(process, name)| {
            let listen = process.addresses.listen;
            json!({
                "region": name.as_str(),
                "http": format!("http://{listen}"),
                "websocket": format!("ws://{listen}/v1/ws"),
                "peer_listen": process.addresses.peer_listen.to_string(),
                "pid": process.pid,
            })
        });
        let folder = plan.folder.display().to_string();
        let object = json!({
            "event": "ready",
            "linked": linked,
            "folder": folder,
            "regions": objects.collect::<Vec<_>>(),
        });
        let width = self.names.longest();
        let addresses: Vec<String> = regions
            .map(|(process, name)| format!("{name:width$}  http://{}", process.addresses.listen))
            .collect();
        let (version, count) = (env!("CARGO_PKG_VERSION"), addresses.len());
        let state = match linked {
            true => "linked",
            false => "started, but not all linked,",
        };
        let seconds = took.as_secs_f64();
        let text = format!(
            "anabranch {version}, {count} regions, {state} after {seconds:.2} s; data and logs in {folder}\n\
             {}",
            self.banner(&addresses, running)
        );
        self.tell(&object, &text);
    }

    fn banner(&self, addresses: &[String], running: &[Option<Process>]) -> String {
        let (command, count) = (command(), addresses.len());
        let lines: Vec<String> = addresses
            .chunks(count.div_ceil(ADDRESS_LINES))
            .map(|line| format!("\n  {}", line.join("    ")))
            .collect();
        let server = |region: usize| {
            let process = running.get(region).and_then(Option::as_ref);
            process.map_or_else(String::new, |it| server_flag(it.addresses.listen))
        };
        let (first, last) = (self.names.of(0), self.names.of(count - 1));
        let (write, read) = (format!("write in {first}:"), format!("read in {last}:"));
        let width = write.len().max(read.len());
        format!(
            "{}\n\
             \n{write:width$}  echo '{{\"key\":\"jfk\",\"value\":{{\"temp\":21}}}}' | {command} pub weather --create lww{}\
             \n{read:width$}  {command} get weather jfk{}\
             \n{:width$}  cut {last}, heal {last}, delay 200ms, links, help, quit",
            lines.concat(),
            server(0),
            server(count - 1),
            "type here:",
        )
    }

    /// How links are.
    pub(super) fn links(&self, links: &[((usize, usize), Condition)]) {
        let objects = links.iter().map(|((a, b), condition)| {
            json!({
                "between": [self.names.of(*a), self.names.of(*b)],
                "cut": condition.cut,
                "delay_ms": u64::try_from(condition.delay.as_millis()).unwrap_or(u64::MAX),
            })
        });
        let object = json!({"event": "links", "links": objects.collect::<Vec<_>>()});
        let texts = links.iter().map(|(pair, condition)| {
            let state = match condition.cut {
                true => "cut".to_owned(),
                false => delay_text(condition.delay),
            };
            format!("{}  {state}", self.names.of_pair(*pair))
        });
        self.tell(&object, &texts.collect::<Vec<_>>().join("\n"));
    }

    /// A broker runs again.
    pub(super) fn started(&self, region: usize, process: &Process) {
        let (name, listen) = (self.names.of(region), process.addresses.listen);
        let object = json!({"event": "started", "region": name, "pid": process.pid});
        self.tell(&object, &format!("{name}  http://{listen}"));
    }

    /// A broker has ended, whoever wanted it.
    pub(super) fn ended(&self, region: usize, status: ExitStatus) {
        let name = self.names.of(region);
        let object = json!({"event": "ended", "region": name, "status": status.to_string()});
        let text =
            format!("{name} has ended ({status}); the others go on; start {name} starts it again");
        self.tell(&object, &text);
    }

    /// What was typed cannot be done.
    pub(super) fn refused(&self, message: &str) {
        let object = json!({"event": "refused", "message": message});
        self.tell(&object, message);
    }

    /// What can be typed.
    pub(super) fn help(&self) {
        self.tell(&json!({"event": "help", "text": HELP}), HELP);
    }
}
