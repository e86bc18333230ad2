//! Streams that only some regions may hold, with processes over recorded links: every byte that
//! another region stores, and that is carried to it, is searched.

use std::path::Path;
use std::time::Duration;

use anabranch_protocol::peer::block::{Block, BlockReader, Item};
use anabranch_protocol::peer::{Decoder, LENGTH_BYTES, PeerMessage};
use anabranch_tests::broker::command;
use anabranch_tests::condition::eventually;
use anabranch_tests::proxy::Weather;
use anabranch_tests::regions::Regions;
use bytes::Bytes;
use serde_json::{Value, json};

const CUT: Weather = Weather {
    cut: true,
    delay: Duration::ZERO,
    corrupt_every: None,
};

/// Texts that nothing else holds: a mark and noise.
struct Secrets {
    mark: String,
    random: fastrand::Rng,
}

impl Secrets {
    fn new() -> Self {
        let mut random = fastrand::Rng::new();
        let mark = std::iter::repeat_with(|| random.alphanumeric()).take(16);
        Self {
            mark: mark.collect(),
            random,
        }
    }

    fn next(&mut self) -> String {
        let noise = std::iter::repeat_with(|| self.random.alphanumeric()).take(60);
        let noise: String = noise.collect();
        format!("{}{noise}", self.mark)
    }

    /// How often the mark is in these bytes.
    fn found_in(&self, bytes: &[u8]) -> usize {
        let mark = self.mark.as_bytes();
        bytes
            .windows(mark.len())
            .filter(|part| *part == mark)
            .count()
    }

    /// How often it is in all files of a folder.
    fn found_under(&self, folder: &Path) -> usize {
        let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        let found = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
            true => self.found_under(&entry.path()),
            false => self.found_in(&std::fs::read(entry.path()).unwrap()),
        });
        found.sum()
    }

    /// How often it is in what went over connections to a broker, as it is and inflated; and how
    /// many stubs there were.
    fn found_over_links(&self, carried: &[Vec<u8>]) -> (usize, usize) {
        let (mut found, mut stubs) = (0, 0);
        for bytes in carried {
            found += self.found_in(bytes);
            let mut reader = BlockReader::default();
            for block in blocks(bytes) {
                found += self.found_in(&block.heads) + self.found_in(&block.bodies);
                for item in reader.read(&block).unwrap() {
                    let Item::Frame(frame) = item else { continue };
                    stubs += frame.batches().iter().filter(|b| b.is_none()).count();
                    for batch in frame.batches().iter().flatten() {
                        found += self.found_in(batch.records().unwrap().bytes());
                    }
                }
            }
        }
        (found, stubs)
    }
}

/// All blocks that went over a connection, inflated.
fn blocks(mut carried: &[u8]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut decoder = Decoder::default();
    while let Some((length, rest)) = carried.split_first_chunk::<LENGTH_BYTES>() {
        let length = u32::from_le_bytes(*length) as usize;
        // The last message may have been cut off.
        let Some((message, rest)) = rest.split_at_checked(length) else {
            break;
        };
        let message = decoder.decode(Bytes::copy_from_slice(message)).unwrap();
        if let PeerMessage::Block {
            compressed,
            inflated,
            mut block,
        } = message
        {
            if compressed {
                let bodies = zstd::bulk::decompress(&block.bodies, inflated as usize);
                block.bodies = bodies.unwrap().into();
            }
            blocks.push(block);
        }
        carried = rest;
    }
    blocks
}

/// The command says where it is kept, as another one does.
fn create_by_command(regions: &Regions, name: &str, kept_in: &str) {
    let run = |arguments: &[&str]| {
        let address = regions.broker(0).address();
        let mut command = command();
        command.args(arguments);
        command.env("ANABRANCH_SERVER", format!("http://{address}"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.contains("r0, r1") || said.contains(r#"["r0","r1"]"#),
            "{said}"
        );
    };
    run(&[
        "stream",
        "create",
        name,
        "--merge",
        "lww",
        "--regions",
        kept_in,
    ]);
    run(&["stream", "show", name, "--json"]);
}

struct Scene {
    regions: Regions,
    secrets: Secrets,
    /// Keys and values of the rows that 0 and 1 hold and 2 does not.
    rows: Vec<(String, String)>,
    events: usize,
}

impl Scene {
    async fn start(settings: &[&'static str]) -> Self {
        let mut all = vec!["log.segment_bytes=1MiB"];
        all.extend(settings);
        let mut regions = Regions::start(3, &all).await;
        regions.record();
        for number in 0..3 {
            regions.restart(number).await;
        }
        regions.linked().await;
        let kept_in = json!(["r1", "r0"]);
        create_by_command(&regions, "rows", "r1,r0");
        regions.know("rows").await;
        for definition in [
            json!({"name": "events", "merge": "append", "partitions": 2, "regions": kept_in}),
            json!({"name": "open", "merge": "lww"}),
        ] {
            let name = definition["name"].as_str().unwrap().to_owned();
            regions.broker(0).create(definition).await;
            regions.know(&name).await;
        }
        Self {
            regions,
            secrets: Secrets::new(),
            rows: Vec::new(),
            events: 0,
        }
    }

    /// Secrets in keys, values and headers, alone and together with what all may hold.
    async fn write(&mut self, at: usize) {
        let http = self.regions.broker(at).http();
        for _ in 0..5 {
            let (key, value) = (self.secrets.next(), self.secrets.next());
            self.regions.put(at, "rows", &key, &value).await;
            self.rows.push((key, value));
            let records = json!([{
                "key": self.secrets.next(),
                "value": {self.secrets.next(): [self.secrets.next()]},
                "headers": {self.secrets.next(): self.secrets.next()},
            }]);
            let answer = http.post("/v1/streams/events/records", &records).await;
            assert!(answer.status < 300, "{answer:?}");
            let (key, value) = (self.secrets.next(), self.secrets.next());
            let transaction = json!([
                {"stream": "open", "key": format!("both-{}", self.events), "value": 1},
                {"stream": "rows", "key": key, "value": value},
                {"stream": "events", "value": self.secrets.next()},
            ]);
            let answer = http.post("/v1/transactions", &transaction).await;
            assert!(answer.status < 300, "{answer:?}");
            self.rows.push((key, value));
            self.events += 2;
        }
    }

    /// 0 and 1 hold all that was written, and 2 the same frames and nothing of it.
    async fn agree(&self) {
        self.regions.converged().await;
        for at in [0, 1] {
            for (key, value) in &self.rows {
                let row = self.regions.row(at, "rows", key).await;
                assert_eq!(row, Some(json!(value)), "at {at}");
            }
            let http = self.regions.broker(at).http();
            let path = "/v1/streams/events/records?from=earliest&limit=10000";
            let records = http.json(path).await["records"].clone();
            assert_eq!(records.as_array().unwrap().len(), self.events, "at {at}");
        }
        let open = self.regions.rows(0, "open").await;
        for at in [1, 2] {
            assert_eq!(self.regions.rows(at, "open").await, open);
        }
    }

    /// Where the payload may not be, a clear answer says where it is.
    async fn refused(&self) {
        let http = self.regions.broker(2).http();
        let shown = http.json("/v1/streams/events").await;
        assert_eq!(shown["regions"], json!(["r0", "r1"]));
        let (record, change) = (
            json!([{"key": "k", "value": 1}]),
            json!({"regions": ["r2"]}),
        );
        let transaction = json!([{"stream": "rows", "key": "k", "value": 1}]);
        for (method, path, body) in [
            ("POST", "/v1/streams/events/records", &record),
            ("POST", "/v1/transactions", &transaction),
            ("PUT", "/v1/tables/rows/rows/k", &json!(1)),
            ("DELETE", "/v1/tables/rows/rows/k", &Value::Null),
            ("GET", "/v1/tables/rows/rows/k", &Value::Null),
            ("GET", "/v1/tables/rows/rows", &Value::Null),
            (
                "GET",
                "/v1/streams/events/records?from=earliest",
                &Value::Null,
            ),
        ] {
            let headers = [("content-type", "application/json")];
            let answer = http.send(method, path, &headers, body.to_string()).await;
            let problem = answer.problem(403, "AB4002");
            let detail = problem["detail"].as_str().unwrap();
            assert!(
                detail.contains("is kept in r0, r1"),
                "{method} {path}: {detail}"
            );
        }
        let headers = [("content-type", "application/json")];
        let path = "/v1/streams/events";
        let changed = http.send("PATCH", path, &headers, change.to_string()).await;
        let _ = changed.problem(409, "AB1103");
    }

    /// Who holds stubs does not acknowledge what it lacks.
    async fn acknowledged(&mut self) {
        let http = self.regions.broker(0).http();
        let path = |regions: u8| format!("/v1/streams/events/records?ack=regions:{regions}");
        let record = json!([{"value": self.secrets.next()}]);
        let refused = http.post(&path(3), &record).await;
        let _ = refused.problem(400, "AB1007");
        let answer = http.post(&path(2), &record).await;
        assert!(answer.status < 300, "{answer:?}");
        assert_eq!(answer.json()["regions"], json!(["r0", "r1"]));
        self.events += 1;
    }

    /// What a broker says that it holds of another.
    async fn holds(&self, at: usize, of: usize) -> Value {
        let origin = self.regions.status(of).await["origin"].clone();
        let vector = &self.regions.status(at).await["vector"];
        vector[origin.as_str().unwrap()].clone()
    }

    async fn reads(&self, at: usize, key: &str) {
        eventually(key, async || self.regions.row(at, "open", key).await).await;
    }

    /// No byte of it is, or went, where it may not be; and it would be found.
    async fn search(mut self) {
        let status = self.regions.broker(2).http().get("/metrics").await;
        assert_eq!(self.secrets.found_in(&status.body), 0);
        let carried = [1, 2].map(|at| self.regions.carried_to(at));
        let [(found, _), (leaked, stubs)] = carried.map(|c| self.secrets.found_over_links(&c));
        assert!(found > self.rows.len(), "found {found} on the way to 1");
        assert_eq!(leaked, 0, "on the way to 2");
        assert!(stubs > self.rows.len());
        let homes = [1, 2].map(|at| self.regions.home(at).path().to_owned());
        self.regions.stop_all().await;
        assert!(self.secrets.found_under(&homes[0]) > self.rows.len());
        assert_eq!(self.secrets.found_under(&homes[1]), 0, "where 2 stores");
    }
}

async fn nothing_leaks(settings: &[&'static str]) {
    let mut scene = Scene::start(settings).await;
    scene.refused().await;
    scene.write(0).await;
    scene.write(1).await;
    scene.agree().await;
    scene.acknowledged().await;
    // Only the relay that may not hold it is left.
    scene.regions.set_between(0, 1, CUT);
    scene.regions.put(0, "open", "before", "secrets").await;
    scene.reads(1, "before").await;
    scene.write(0).await;
    let written = scene.holds(0, 0).await;
    eventually("the relay holds stubs", async || {
        (scene.holds(2, 0).await == written).then_some(())
    })
    .await;
    assert_ne!(scene.holds(1, 0).await, written);
    scene.regions.restart(2).await;
    scene.regions.linked_but(0, 1).await;
    scene.regions.put(1, "open", "from-1", "on").await;
    scene.reads(0, "from-1").await;
    let (key, _) = scene.rows.last().unwrap();
    assert_eq!(scene.regions.row(1, "rows", key).await, None);
    scene.regions.set_between(0, 1, Weather::default());
    scene.agree().await;
    scene.regions.restart(1).await;
    scene.regions.restart(2).await;
    scene.write(1).await;
    scene.agree().await;
    scene.search().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_nowhere_else_over_compressed_links() {
    nothing_leaks(&["links.compress=true"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_nowhere_else_over_plain_links() {
    nothing_leaks(&["links.compress=false"]).await;
}

/// What a relay writes follows from no stub that it holds, so nobody waits for what it may not pass
/// on.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_writes_on_past_stubs() {
    let mut scene = Scene::start(&[]).await;
    scene.regions.converged().await;
    scene.regions.set_between(0, 1, CUT);
    let (key, value) = (scene.secrets.next(), scene.secrets.next());
    scene.regions.put(0, "rows", &key, &value).await;
    scene.rows.push((key, value));
    let written = scene.holds(0, 0).await;
    eventually("the relay holds the stub", async || {
        (scene.holds(2, 0).await == written).then_some(())
    })
    .await;
    scene.regions.put(2, "open", "from-2", "on").await;
    scene.reads(1, "from-2").await;
    scene.reads(0, "from-2").await;
    assert_ne!(scene.holds(1, 0).await, written, "a stub does not count");
    scene.regions.set_between(0, 1, Weather::default());
    scene.agree().await;
}
