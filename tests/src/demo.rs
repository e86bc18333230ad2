//! `anabranch demo` as a process, and what a broker must hold after it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::broker::command;
use crate::condition::eventually;
use crate::home::Home;
use crate::http::Http;

/// A demo that ends once everything is loaded. It is killed when it is dropped.
#[derive(Debug)]
pub struct Demo {
    child: Child,
    address: SocketAddr,
}

impl Demo {
    /// Starts it on this home's directory, where it goes on if it was there before.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(home: &Home) -> Self {
        let address = free_address();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(home.log());
        let mut command = command();
        command.arg("demo").arg("--data-dir").arg(home.data());
        command.args(["--json", "--exit", "--listen", &address.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.unwrap());
        Self {
            child: command.spawn().unwrap(),
            address,
        }
    }

    /// Where its broker listens, once it does.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has ended by itself.
    ///
    /// # Panics
    /// When it ended badly.
    pub fn has_ended(&mut self) -> bool {
        let Some(status) = self.child.try_wait().unwrap() else {
            return false;
        };
        assert!(status.success(), "the demo ended: {status}");
        true
    }

    /// Waits until it has loaded everything and ended.
    pub async fn finish(mut self) {
        eventually("the demo ends", async || self.has_ended().then_some(())).await;
    }

    /// Kills it, and its broker with it.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The demo has to be told where to listen: nobody has used this port for a while.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// What the source files say, computed by a program that shares nothing with the broker.
///
/// # Panics
/// When the file is not there.
#[must_use]
pub fn answers() -> Value {
    let path = crate::repository().join("tests/data/nycflights13_answers.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// All records of a stream, page by page: their values, in order.
///
/// # Panics
/// When they cannot be read.
pub async fn records(http: &Http, stream: &str, mut each: impl FnMut(&Value)) {
    let mut from = "earliest".to_owned();
    loop {
        let path = format!("/v1/streams/{stream}/records?from={from}&limit=10000");
        let page = http.json(&path).await;
        let records = page["records"].as_array().unwrap();
        if records.is_empty() {
            return;
        }
        records.iter().for_each(|record| each(&record["value"]));
        from = page["cursor"].as_str().unwrap().to_owned();
    }
}

/// All rows of a table.
///
/// # Panics
/// When they cannot be read.
pub async fn rows(http: &Http, stream: &str) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/tables/{stream}/rows?limit=1000{after}");
        let page = http.json(&path).await;
        for row in page["rows"].as_array().unwrap() {
            let key = row["key"].as_str().unwrap().to_owned();
            rows.insert(key, row["value"].clone());
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return rows,
        }
    }
}

/// The SHA-256 of a text, in hexadecimal, by the system's own tool.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn sha256(text: &str) -> String {
    let mut tool = Command::new("sha256sum");
    tool.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = tool.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout[..64]).into_owned()
}
