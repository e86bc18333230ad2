//! Threads that panic.

use anabranch_core::id::{ClusterId, StreamName};
use anabranch_core::stream::{MergeMode, StreamDefinition};

use super::super::NodeInfo;
use super::*;

fn started(dir: &Path) -> (Arc<Node>, Stopper) {
    let mut config = Config::default();
    config.data.dir = dir.join("data");
    config.log.segment_bytes = crate::config::ByteSize::new(4 << 20);
    let info = NodeInfo {
        cluster_name: "test".to_owned(),
        cluster: ClusterId::of("test"),
        region: config.broker.region.clone(),
    };
    let node = Arc::new(Node::new(info, config.limits.clone()));
    let stopper = start(&node, &config).unwrap();
    (node, stopper)
}

fn failure(node: &Node) -> String {
    match &*node.phase().borrow() {
        Phase::Failed(failure) => failure.to_string(),
        other => panic!("{other:?}"),
    }
}

/// It refuses to fold a commit twice.
#[test]
fn an_applier_that_panics_makes_the_broker_fail() {
    let dir = tempfile::tempdir().unwrap();
    let (node, stopper) = started(dir.path());
    let running = node.running().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let name = StreamName::parse("events").unwrap();
    let made = running.create_stream(StreamDefinition::new(name, MergeMode::Append));
    runtime.block_on(made).unwrap();
    let everything = || {
        let from = running.reader.start_position();
        running
            .reader
            .read(from, &Filter::All, REPLAY_BYTES)
            .unwrap()
    };
    let options = TablesOptions::default();
    let (_tables, applier) = Tables::open(&dir.path().join("others"), options).unwrap();
    let (runs_in, runs) = crossbeam_channel::unbounded();
    for _ in 0..2 {
        let all = everything();
        assert!(!all.commits.is_empty());
        assert!(runs_in.send((all.commits, all.next)).is_ok());
    }
    let thread = spawn_applier(&node, running, applier, runs).unwrap();
    assert!(thread.join().is_err(), "it has panicked");
    let said = failure(&node);
    assert!(said.starts_with("its applier panicked"), "{said}");
    stopper.stop();
}

#[test]
fn what_fails_before_the_start_is_over_stays_failed() {
    let phase = watch::Sender::new(Phase::Starting("a test".to_owned()));
    fail(&phase, Failure::of_write("no disk"));
    begin_serving(&phase);
    assert!(matches!(&*phase.borrow(), Phase::Failed(_)));
    let phase = watch::Sender::new(Phase::Starting("a test".to_owned()));
    begin_serving(&phase);
    assert!(phase.borrow().is_ready());
}
