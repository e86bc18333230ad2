//! Subscribers and readers that go from region to region, over links that are slow, cut and healed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anabranch_core::id::{Dot, PartitionId};
use anabranch_protocol::ws::KeyFilter;
use anabranch_tests::condition::PATIENCE;
use anabranch_tests::follow::{Came, Follower};
use anabranch_tests::proxy::Weather;
use anabranch_tests::regions::Regions;
use anabranch_tests::wire::subscribe;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

const CUT: Weather = Weather {
    cut: true,
    delay: Duration::ZERO,
    corrupt_every: None,
};

const fn slow(milliseconds: u64) -> Weather {
    Weather {
        cut: false,
        delay: Duration::from_millis(milliseconds),
        corrupt_every: None,
    }
}

/// How long a subscriber stays where nothing comes.
const STAY: Duration = Duration::from_millis(15);

/// Frames that are written while the subscribers hop.
const FRAMES: usize = 150;

/// Which records a subscriber wants.
#[derive(Clone, Copy, Debug)]
enum Wants {
    All,
    Partition(u16),
    Prefix(&'static str),
}

impl Wants {
    fn parameters(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Partition(partition) => format!("&partition={partition}"),
            Self::Prefix(prefix) => format!("&prefix={prefix}"),
        }
    }

    fn wants(self, record: &Value) -> bool {
        match self {
            Self::All => true,
            Self::Partition(partition) => record["partition"] == partition,
            Self::Prefix(prefix) => record["key"].as_str().unwrap().starts_with(prefix),
        }
    }
}

/// A subscriber that is somewhere else at every step.
#[derive(Debug)]
struct Hopper {
    wants: Wants,
    cursor: String,
    given: Vec<Dot>,
}

impl Hopper {
    fn new(wants: Wants) -> Self {
        Self {
            wants,
            cursor: "earliest".to_owned(),
            given: Vec::new(),
        }
    }

    /// Takes something in one region, in one of the ways there are.
    async fn step(&mut self, regions: &Regions, random: &mut fastrand::Rng) {
        let region = random.usize(..3);
        match random.u8(..3) {
            0 => self.page(regions, region, random.usize(1..9)).await,
            1 => self.frames(regions, region).await,
            _ => self.events(regions, region, random.usize(1..9)).await,
        }
    }

    fn path(&self, limit: usize) -> String {
        let (from, wants) = (&self.cursor, self.wants.parameters());
        format!("/v1/streams/e/records?from={from}&limit={limit}{wants}")
    }

    /// One answer over HTTP, which may end inside a frame.
    async fn page(&mut self, regions: &Regions, region: usize, limit: usize) {
        let http = regions.broker(region).http();
        let page = http.json(&self.path(limit)).await;
        let records = page["records"].as_array().unwrap();
        self.given.extend(records.iter().map(dot));
        page["cursor"]
            .as_str()
            .unwrap()
            .clone_into(&mut self.cursor);
    }

    /// A frame or two over a WebSocket.
    async fn frames(&mut self, regions: &Regions, region: usize) {
        let cursor = self.cursor.clone();
        let mut subscription = subscribe(1, "e", &cursor);
        match self.wants {
            Wants::All => {}
            Wants::Partition(partition) => {
                subscription.partitions = vec![PartitionId::new(partition)];
            }
            Wants::Prefix(prefix) => {
                subscription.keys = KeyFilter::Prefix(prefix.as_bytes().into());
            }
        }
        let mut follower = Follower::start(regions.broker(region).address(), subscription).await;
        for _ in 0..2 {
            match timeout(STAY, follower.next_unhurried()).await {
                Ok(Came::Frame { records, cursor }) => {
                    self.given.extend(records.iter().map(|got| got.dot));
                    self.cursor = cursor;
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => return,
            }
        }
    }

    /// Server-sent events, of which those count whose id has come.
    async fn events(&mut self, regions: &Regions, region: usize, limit: usize) {
        let http = regions.broker(region).http();
        let headers = [("accept", "text/event-stream")];
        let answer = http.open("GET", &self.path(limit), &headers, "").await;
        let mut body = answer.unwrap().into_body();
        let mut held = String::new();
        while let Ok(Some(frame)) = timeout(STAY, body.frame()).await {
            let data = frame.unwrap().into_data().unwrap();
            held.push_str(std::str::from_utf8(&data).unwrap());
        }
        let (whole, _) = held.rsplit_once('\n').unwrap_or_default();
        let mut unnamed = Vec::new();
        for line in whole.lines() {
            if let Some(record) = line.strip_prefix("data: ") {
                unnamed.push(dot(&serde_json::from_str(record).unwrap()));
            } else if let Some(id) = line.strip_prefix("id: ") {
                self.given.append(&mut unnamed);
                id.clone_into(&mut self.cursor);
            } else {
                assert!(!line.starts_with("event: error"), "{whole}");
            }
        }
    }

    /// Everything once, and what one broker has written in the order in which it was written.
    fn check(&self, all: &[Value]) {
        let wanted: BTreeSet<Dot> = all
            .iter()
            .filter(|record| self.wants.wants(record))
            .map(dot)
            .collect();
        let given: BTreeSet<Dot> = self.given.iter().copied().collect();
        assert_eq!(given.len(), self.given.len(), "given twice: {self:?}");
        assert_eq!(given, wanted, "{:?}", self.wants);
        let mut by_origin = BTreeMap::new();
        for dot in &self.given {
            let place = (dot.sequence, dot.index);
            let before = by_origin.insert(dot.origin, place);
            assert!(before < Some(place), "{dot} is out of order: {self:?}");
        }
    }
}

fn dot(record: &Value) -> Dot {
    record["dot"].as_str().unwrap().parse().unwrap()
}

/// Makes some link slow, cuts one, or heals all.
fn change_weather(regions: &Regions, random: &mut fastrand::Rng) {
    let a = random.usize(..3);
    let b = (a + random.usize(1..3)) % 3;
    match random.u8(..4) {
        0 => regions.set_between(a, b, CUT),
        1 => regions.set(a, CUT),
        2 => regions.set_between(a, b, slow(random.u64(5..60))),
        _ => (0..3).for_each(|region| regions.set(region, Weather::default())),
    }
}

async fn write(regions: &Regions, number: usize, random: &mut fastrand::Rng) {
    let record = |index: usize| {
        let family = random.choice(['a', 'b']).unwrap();
        json!({"key": format!("{family}-{number}-{index}"), "value": index})
    };
    let records: Vec<_> = (0..5).map(record).collect();
    let http = regions.broker(number % 3).http();
    let answer = http.post("/v1/streams/e/records", &json!(records)).await;
    assert!(answer.status < 300, "{answer:?}");
}

/// All records of the stream, from one region.
async fn all_records(regions: &Regions) -> Vec<Value> {
    let mut reader = "earliest".to_owned();
    let mut all = Vec::new();
    loop {
        let path = format!("/v1/streams/e/records?from={reader}&limit=10000");
        let page = regions.broker(0).http().json(&path).await;
        let records = page["records"].as_array().unwrap();
        if records.is_empty() {
            return all;
        }
        all.extend(records.iter().cloned());
        page["cursor"].as_str().unwrap().clone_into(&mut reader);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hops_between_regions_at_every_step_is_given_everything_once() {
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let regions = Regions::start(3, &[]).await;
    let stream = json!({"name": "e", "partitions": 2});
    regions.broker(0).create(stream).await;
    regions.know("e").await;
    let mut hoppers = [Wants::All, Wants::Partition(1), Wants::Prefix("b")].map(Hopper::new);
    for number in 0..FRAMES {
        if number % 5 == 0 {
            change_weather(&regions, &mut random);
        }
        write(&regions, number, &mut random).await;
        for hopper in &mut hoppers {
            hopper.step(&regions, &mut random).await;
        }
    }
    (0..3).for_each(|region| regions.set(region, Weather::default()));
    regions.converged().await;
    let all = all_records(&regions).await;
    assert_eq!(all.len(), FRAMES * 5);
    let until = Instant::now() + PATIENCE;
    for hopper in &mut hoppers {
        let wanted = all.iter().filter(|record| hopper.wants.wants(record));
        let wanted = wanted.count();
        while hopper.given.len() < wanted {
            assert!(Instant::now() < until, "{} of {wanted}", hopper.given.len());
            hopper.step(&regions, &mut random).await;
        }
        hopper.check(&all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_a_read_in_another_region_wait_for_the_write() {
    let regions = Regions::start(3, &[]).await;
    let stream = json!({"name": "t", "merge": "lww"});
    regions.broker(0).create(stream).await;
    regions.know("t").await;
    regions.set(0, slow(150));
    let row = "/v1/tables/t/rows/k";
    for round in 0..3 {
        let written = regions.broker(0).http().put(row, &json!(round)).await;
        let token = written.header("anabranch-token").to_owned();
        for other in [1, 2] {
            let headers = [("anabranch-token", token.as_str())];
            let http = regions.broker(other).http();
            let read = http.send("GET", row, &headers, "").await;
            assert_eq!((read.status, read.json()), (200, json!(round)), "{read:?}");
        }
    }
    regions.set(0, CUT);
    let written = regions.broker(0).http().put(row, &json!("cut")).await;
    let token = written.header("anabranch-token").to_owned();
    let headers = [("anabranch-token", token.as_str()), ("prefer", "wait=1")];
    let http = regions.broker(1).http();
    let refused = http.send("GET", row, &headers, "").await;
    let problem = refused.problem(504, "AB3101");
    let missing = regions.status(0).await["origin"]
        .as_str()
        .unwrap()
        .to_owned();
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&missing), "{missing} in {problem}");
    // Without the token the older row is read, and with it the newer one once it is here.
    let read = http.get(row).await;
    assert_eq!(read.json(), json!(2));
    let headers = [("anabranch-token", token.as_str()), ("prefer", "wait=30")];
    let waiting = http.send("GET", row, &headers, "");
    let healing = async { regions.set(0, Weather::default()) };
    let (read, ()) = tokio::join!(waiting, healing);
    assert_eq!((read.status, read.json()), (200, json!("cut")), "{read:?}");
}
