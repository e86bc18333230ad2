//! Measurements of several regions, in runs that are too small to mean anything: they start the
//! brokers, load them, and check that nothing is missing.

use anabranch_tests::broker::command;
use anabranch_tests::home::Home;
use serde_json::Value;

/// The reports of a quick run.
fn quick(arguments: &[&str]) -> Vec<Value> {
    let home = Home::new();
    let output = command()
        .arg("bench")
        .args(arguments)
        .args(["--quick", "--json", "--dir"])
        .arg(home.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let reports = text.lines().map(|line| serde_json::from_str(line).unwrap());
    reports.collect()
}

/// A figure or goal of a report, by its name.
fn named<'a>(report: &'a Value, list: &str, name: &str) -> &'a Value {
    let entries = report[list].as_array().unwrap();
    let found = entries.iter().find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[test]
fn latency_over_a_link_is_at_least_its_delay() {
    let reports = quick(&["regions-latency", "--link-delay", "20ms", "--rate", "1000"]);
    assert_eq!(reports.len(), 1);
    let goal = named(&reports[0], "goals", "p50, ack to delivery there");
    assert!(goal["reached"].as_f64().unwrap() >= 15.0, "{goal}");
    let latencies = reports[0]["latencies"].as_array().unwrap();
    let read = "ack to row read there with the token";
    assert!(
        latencies.iter().any(|pair| pair[0] == read),
        "{latencies:?}"
    );
}

#[test]
fn a_region_that_was_cut_off_catches_up() {
    let reports = quick(&["regions-catch-up", "--rate", "1000"]);
    assert_eq!(reports.len(), 1);
    let goal = named(&reports[0], "goals", "catching up");
    assert!(goal["reached"].as_f64().unwrap() > 0.0, "{goal}");
}

#[test]
fn regions_are_measured_count_by_count_and_compared() {
    let reports = quick(&["regions-scale", "--regions", "1,2,3", "--rate", "1000"]);
    assert_eq!(reports.len(), 4);
    let name = "accepted in the slowest";
    assert!(reports[..3].iter().all(|report| {
        let accepted = named(report, "figures", name)["value"].as_f64();
        accepted.unwrap() > 0.0
    }));
    named(&reports[3], "figures", "region 3, of a core");
}
