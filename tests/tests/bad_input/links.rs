//! Frames that come over a link and cannot be.

use anabranch_core::frame::Chain;
use anabranch_core::limits::MAX_ORIGINS;
use anabranch_protocol::error::Code;
use anabranch_tests::broker::Broker;
use anabranch_tests::condition::eventually;
use anabranch_tests::home::Home;
use anabranch_tests::stranger::{Stranger, frame, origin};
use serde_json::{Value, json};

/// Chain of a history that nobody has.
const NOWHERE: Chain = Chain::new([9; 32]);

async fn start(home: &Home) -> Broker {
    let flags = [
        "--peer-listen",
        "127.0.0.1:0",
        "--set",
        "links.join_seconds=0",
    ];
    let started = Broker::try_start(home, &flags).await;
    started.unwrap_or_else(|ended| panic!("{}", ended.said))
}

/// A broker that takes links, with the stream `events` and a record in it.
async fn scene() -> (Home, Broker) {
    let home = Home::new();
    let broker = start(&home).await;
    broker.create(json!({"name": "events"})).await;
    goes_on(&broker).await;
    (home, broker)
}

async fn status(broker: &Broker) -> Value {
    broker.http().get("/v1/regions").await.json()
}

/// It takes writes, and blames nobody for a fork.
async fn goes_on(broker: &Broker) {
    let path = "/v1/streams/events/records";
    let answer = broker.http().post(path, &json!([{"value": 1}])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(status(broker).await["forks"], json!([]));
}

#[tokio::test]
async fn a_frame_in_the_brokers_own_name_that_continues_nothing_ends_its_link_alone() {
    let (_home, broker) = scene().await;
    let mut stranger = Stranger::link(broker.peer_address().unwrap(), 7).await;
    let own = stranger.hello.origin;
    let (held, _) = stranger.hello.heads[&own];
    stranger.ship(&[frame(own, held.get() + 1, NOWHERE)]).await;
    let (code, why) = stranger.bye().await;
    assert_eq!(code, Code::BadFrame, "{why}");
    assert!(why.contains("anabranch verify"), "{why}");
    goes_on(&broker).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_frame_that_is_made_up_in_anothers_name_is_no_fork_of_that_one() {
    let (_home, broker) = scene().await;
    let address = broker.peer_address().unwrap();
    let first = frame(origin(7), 1, Chain::START);
    let mut honest = Stranger::link(address, 7).await;
    honest.ship(std::slice::from_ref(&first)).await;
    let name = origin(7).to_string();
    eventually("it is taken", async || {
        (status(&broker).await["vector"][&name] == 1).then_some(())
    })
    .await;
    let mut stranger = Stranger::link(address, 8).await;
    stranger.ship(&[frame(origin(7), 2, NOWHERE)]).await;
    let (code, why) = stranger.bye().await;
    assert_eq!(code, Code::BadFrame, "{why}");
    goes_on(&broker).await;
    honest
        .ship(&[frame(origin(7), 2, first.header.chain)])
        .await;
    eventually("it goes on", async || {
        (status(&broker).await["vector"][&name] == 2).then_some(())
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn a_frame_that_was_lost_here_stops_the_broker_and_a_start_gets_it_back() {
    let (home, broker) = scene().await;
    let mut stranger = Stranger::link(broker.peer_address().unwrap(), 7).await;
    let own = stranger.hello.origin;
    let (held, chain) = stranger.hello.heads[&own];
    let lost = frame(own, held.get() + 1, chain);
    stranger.ship(std::slice::from_ref(&lost)).await;
    assert_eq!(broker.ended().await.code(), Some(1));
    let said = std::fs::read_to_string(home.log()).unwrap();
    assert!(
        said.contains("AB6003") && said.contains("start it again as it is"),
        "{said}"
    );

    let broker = start(&home).await;
    assert_ne!(status(&broker).await["origin"], own.to_string());
    let mut stranger = Stranger::link(broker.peer_address().unwrap(), 7).await;
    stranger.ship(&[lost]).await;
    eventually("it is back", async || {
        let held_now = &status(&broker).await["vector"][own.to_string()];
        (*held_now == held.get() + 1).then_some(())
    })
    .await;
    goes_on(&broker).await;
    broker.stop().await;
}

#[tokio::test]
async fn another_history_under_the_brokers_name_stops_it() {
    let (home, broker) = scene().await;
    let mut forged = None;
    let mut stranger = Stranger::link_holding(broker.peer_address().unwrap(), 7, |hello| {
        let (held, _) = hello.heads[&hello.origin];
        let frame = frame(hello.origin, held.get() + 1, NOWHERE);
        let head = (frame.header.sequence, frame.header.chain);
        forged = Some(frame);
        [(hello.origin, head)].into_iter().collect()
    })
    .await;
    stranger.ship(&[forged.unwrap()]).await;
    assert_eq!(broker.ended().await.code(), Some(1));
    let said = std::fs::read_to_string(home.log()).unwrap();
    assert!(
        said.contains("AB6003") && said.contains("put the directory aside"),
        "{said}"
    );
}

#[tokio::test]
async fn origins_that_are_made_up_without_end_are_refused() {
    let (home, broker) = scene().await;
    let mut stranger = Stranger::link(broker.peer_address().unwrap(), 7).await;
    let first = |number: usize| frame(origin(1000 + number as u64), 1, Chain::START);
    let frames: Vec<_> = (0..=MAX_ORIGINS).map(first).collect();
    for frames in frames.chunks(500) {
        stranger.ship(frames).await;
    }
    let (code, why) = stranger.bye().await;
    assert_eq!(code, Code::TooManyOrigins, "{why}");
    goes_on(&broker).await;
    broker.stop().await;
    let broker = start(&home).await;
    goes_on(&broker).await;
    broker.stop().await;
}
