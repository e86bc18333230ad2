//! Folders of real brokers, whole and tampered with.

use std::path::Path;

use anabranch_client::{Client, MergeMode, StreamDefinition, StreamName};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::config::Config;
use crate::serve::serve;

/// A process has one recorder of metrics, which the first broker installs.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs a broker on a folder, writes rows, and ends it.
async fn broker_with(dir: &Path, rows: &[(&str, &str)]) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut config = Config::default();
    config.data.dir = dir.to_owned();
    config.listen.address.set_port(0);
    let (bound, listening) = oneshot::channel();
    let (ready, serving) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let broker = serve(
        config,
        |addresses| bound.send(addresses.listen).unwrap(),
        |_| ready.send(()).unwrap(),
        async { stopped.await.unwrap() },
    );
    let writing = async {
        serving.await.unwrap();
        let url = format!("http://{}", listening.await.unwrap());
        let client = Client::connect(&url).await.unwrap();
        let name = StreamName::parse("table").unwrap();
        let definition = StreamDefinition::new(name, MergeMode::Lww);
        client.create_stream(&definition).await.unwrap();
        let table = client.stream("table");
        for (key, value) in rows {
            table
                .put_row(key.as_bytes(), value.to_string())
                .await
                .unwrap();
        }
        stop.send(()).unwrap();
    };
    let (ended, ()) = tokio::join!(Box::pin(broker), writing);
    ended.unwrap();
}

struct Verified {
    rows: Option<u64>,
    findings: Vec<String>,
}

fn verified(dir: &Path) -> Verified {
    let dir = DataDir::open_existing(dir).unwrap();
    let mut findings = Vec::new();
    let mut each = |event| {
        if let Event::Finding(finding) = event {
            findings.push(finding.to_string());
        }
    };
    log::verify(&RealDisk, dir.path(), dir.identity(), &mut each).unwrap();
    let replica = Replica::of(&dir).unwrap();
    let mut found = |what: &str| {
        findings.push(what.to_owned());
        Ok(())
    };
    let rows = match dir.tables().exists() {
        true => Some(fold::compare(&replica, &mut found).unwrap().rows),
        false => None,
    };
    Verified { rows, findings }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_of_a_broker_holds_and_is_left_as_it_was() {
    let dir = TempDir::new().unwrap();
    broker_with(dir.path(), &[("a", "1"), ("b", "2"), ("a", "3")]).await;
    let before = names(dir.path());
    let verified = verified(dir.path());
    assert_eq!(verified.findings, [""; 0]);
    // Two rows, and the definition of their stream.
    assert_eq!(verified.rows, Some(3));
    assert_eq!(names(dir.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_log_does_not_make_are_found() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    broker_with(dir.path(), &[("a", "1"), ("b", "2"), ("c", "3")]).await;
    broker_with(other.path(), &[("a", "1"), ("b", "9"), ("d", "4")]).await;
    std::fs::remove_dir_all(dir.path().join("tables")).unwrap();
    std::fs::rename(other.path().join("tables"), dir.path().join("tables")).unwrap();
    let findings = verified(dir.path()).findings.join("\n");
    assert!(!findings.contains("row a"), "{findings}");
    assert!(
        findings.contains("stream table row b: differs from the fold"),
        "{findings}"
    );
    assert!(
        findings.contains("stream table row c: is missing"),
        "{findings}"
    );
    assert!(
        findings.contains("stream table row d: is there, but"),
        "{findings}"
    );
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort_unstable();
    names
}
