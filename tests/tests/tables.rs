//! Tables: what reads see, and what becomes of rows.
//!
//! | module | holds |
//! |---|---|
//! | `reading` | one's own writes, many rows at one moment, ranges |
//! | `rebuilding` | tables that are deleted or damaged, a log that is damaged |
//! | `keeping` | retention and compaction while serving |

mod keeping;
mod reading;
mod rebuilding;

use std::collections::BTreeMap;

use anabranch_tests::http::Http;
use serde_json::Value;

/// All rows of a table, page by page.
async fn table(http: &Http, stream: &str) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    let mut after = String::new();
    loop {
        let page = http
            .json(&format!("/v1/tables/{stream}/rows?limit=500{after}"))
            .await;
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

/// Runs `verify` on a directory. Returns its exit code and all that it said.
fn verify(home: &anabranch_tests::home::Home) -> (Option<i32>, String) {
    let mut command = anabranch_tests::broker::command();
    let output = command
        .args(["verify", "--data-dir"])
        .arg(home.data())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}
