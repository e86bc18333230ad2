//! A year of flights: after the demo the broker holds what the source files say.

use std::collections::BTreeMap;
use std::fmt::Write;

use anabranch_tests::broker::Broker;
use anabranch_tests::demo::{Demo, answers, records, rows, sha256};
use anabranch_tests::home::Home;
use anabranch_tests::http::Http;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_demo_everything_is_as_the_source_files_say() {
    let home = Home::new();
    Demo::start(&home).finish().await;
    let broker = Broker::start(&home).await;
    check(&broker.http()).await;
    broker.stop().await;
    // Once more: it finds everything there.
    Demo::start(&home).finish().await;
    let broker = Broker::start(&home).await;
    let shown = broker.http().json("/v1/streams/flights").await;
    assert_eq!(shown["offsets"][0]["next"], answers()["events"]["total"]);
    broker.stop().await;
}

/// Checks counts, aggregates and the order of everything that the demo leaves.
pub(crate) async fn check(http: &Http) {
    let expected = answers();
    check_events(http, &expected).await;
    check_tables(http, &expected).await;
}

/// Counts, sums and extremes of a column.
#[derive(Default)]
struct Total {
    count: u64,
    sum: i64,
    max: Option<i64>,
    min: Option<i64>,
}

impl Total {
    fn add(&mut self, value: &Value) {
        let Some(value) = value.as_i64() else { return };
        self.count += 1;
        self.sum += value;
        self.max = self.max.max(Some(value));
        self.min = Some(self.min.map_or(value, |min| min.min(value)));
    }

    fn json(&self) -> Value {
        json!({"count": self.count, "sum": self.sum, "max": self.max, "min": self.min})
    }
}

/// What is counted while all events pass.
#[derive(Default)]
struct Events {
    lines: String,
    count: BTreeMap<String, u64>,
    by_origin: BTreeMap<String, u64>,
    by_carrier: BTreeMap<String, u64>,
    by_destination: BTreeMap<String, u64>,
    departure_delay: Total,
    arrival_delay: Total,
    distance: Total,
    air_time: Total,
}

impl Events {
    fn add(&mut self, value: &Value) {
        let text = |field: &str| value[field].as_str().unwrap();
        let (time, event) = (text("time"), text("event"));
        let (carrier, flight) = (text("carrier"), &value["flight"]);
        let (origin, dest) = (text("origin"), text("dest"));
        writeln!(
            self.lines,
            "{time} {event} {carrier}{flight} {origin}-{dest}"
        )
        .unwrap();
        let count = |counts: &mut BTreeMap<String, u64>, of: &str| {
            *counts.entry(of.to_owned()).or_default() += 1;
        };
        count(&mut self.count, event);
        if event == "departure" {
            count(&mut self.by_origin, origin);
            count(&mut self.by_carrier, carrier);
            self.departure_delay.add(&value["delay"]);
            self.distance.add(&value["distance"]);
        } else {
            count(&mut self.by_destination, dest);
            self.arrival_delay.add(&value["delay"]);
            self.air_time.add(&value["air_time"]);
        }
    }
}

async fn check_events(http: &Http, expected: &Value) {
    let mut events = Events::default();
    records(http, "flights", |value| events.add(value)).await;
    let found = json!({
        "departures": events.count["departure"],
        "arrivals": events.count["arrival"],
        "departures_by_origin": events.by_origin,
        "departures_by_carrier": events.by_carrier,
        "arrivals_by_destination": events.by_destination,
        "departure_delay_minutes": events.departure_delay.json(),
        "arrival_delay_minutes": events.arrival_delay.json(),
        "distance_miles_flown": events.distance.json(),
        "air_time_minutes": events.air_time.json(),
        "sha256_of_events_in_order": sha256(&events.lines),
    });
    for (name, value) in found.as_object().unwrap() {
        let expected = expected["events"].get(name).unwrap_or(&expected[name]);
        assert_eq!(value, expected, "{name}");
    }
}

async fn check_tables(http: &Http, expected: &Value) {
    let mut tables = BTreeMap::new();
    for (name, count) in expected["rows"].as_object().unwrap() {
        let rows = rows(http, name).await;
        assert_eq!(&json!(rows.len()), count, "rows of {name}");
        tables.insert(name.as_str(), rows);
    }
    let mut seats = Total::default();
    let mut by_manufacturer: BTreeMap<&str, u64> = BTreeMap::new();
    for plane in tables["planes"].values() {
        seats.add(&plane["seats"]);
        let manufacturer = plane["manufacturer"].as_str().unwrap();
        *by_manufacturer.entry(manufacturer).or_default() += 1;
    }
    assert_eq!(seats.json(), expected["seats_of_all_planes"]);
    assert_eq!(json!(by_manufacturer), expected["planes_by_manufacturer"]);
    let mut hours: BTreeMap<&str, u64> = BTreeMap::new();
    for hour in tables["weather"].values() {
        *hours.entry(hour["origin"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!(json!(hours), expected["weather_hours_by_origin"]);
    let latest = tables["flight_status"].values();
    let arrived = latest.filter(|it| it["event"] == "arrival").count();
    assert_eq!(
        json!(arrived),
        expected["events"]["arrivals"],
        "each arrival is the last event"
    );
    for (name, source) in expected["examples"].as_object().unwrap() {
        let (table, key) = name.split_once('/').unwrap();
        let row = http.json(&format!("/v1/tables/{table}/rows/{key}")).await;
        check_example(name, &row, source);
    }
}

/// The source files hold texts, with `NA` for nothing; rows hold numbers and null.
fn check_example(name: &str, row: &Value, source: &Value) {
    for (column, text) in source.as_object().unwrap() {
        let text = text.as_str().unwrap();
        let same = match &row[column] {
            Value::Null => text == "NA",
            Value::String(held) => held == text,
            Value::Number(held) => {
                let number = |text: &str| text.parse::<f64>().unwrap();
                (number(&held.to_string()) - number(text)).abs() < 1e-9
            }
            _ => false,
        };
        assert!(
            same,
            "{name}: {column} is {} where {text} is due",
            row[column]
        );
    }
}
