//! A broker, and a bystander: somebody who publishes and subscribes on connections of their own,
//! and must go on while others misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::ClientMessage;
use anabranch_tests::broker::Broker;
use anabranch_tests::condition::eventually;
use anabranch_tests::follow::Follower;
use anabranch_tests::home::Home;
use anabranch_tests::wire::{Wire, subscribe};
use serde_json::json;
use tokio::task::JoinHandle;

/// The bystander's stream.
const STREAM: &str = "bystander";

/// Where tests misbehave.
pub(crate) struct Scene {
    pub(crate) broker: Broker,
    pub(crate) home: Home,
    bystander: Bystander,
}

struct Bystander {
    task: JoinHandle<()>,
    delivered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Scene {
    /// With the streams `events` (append) and `rows` (lww), of two partitions each.
    pub(crate) async fn new(settings: &[&str]) -> Self {
        let home = Home::new();
        let broker = Broker::start_with(&home, settings).await;
        broker
            .create(json!({"name": "events", "partitions": 2}))
            .await;
        let rows = json!({"name": "rows", "merge": "lww", "partitions": 2});
        broker.create(rows).await;
        let bystander = Bystander::start(&broker).await;
        Self {
            broker,
            home,
            bystander,
        }
    }

    /// Checks that the bystander gets on.
    pub(crate) async fn is_undisturbed(&self) {
        let held = self.bystander.delivered.load(Ordering::Relaxed);
        eventually("the bystander goes on", async || {
            assert!(
                !self.bystander.task.is_finished(),
                "the bystander was disturbed"
            );
            let now = self.bystander.delivered.load(Ordering::Relaxed);
            (now >= held + 5).then_some(())
        })
        .await;
    }

    /// Checks that the bystander gets on, and that the broker ends well.
    pub(crate) async fn end(self) {
        self.is_undisturbed().await;
        self.bystander.stop.store(true, Ordering::Relaxed);
        self.bystander.task.await.unwrap();
        self.broker.stop().await;
    }

    /// Sends a message on a new connection. It must be refused with this code, and the connection
    /// must go on. Returns what the refusal says.
    pub(crate) async fn refused(&self, message: &ClientMessage<'_>, code: Code) -> String {
        let mut wire = self.broker.connect().await;
        wire.send(message).await;
        let error = wire.refusal(code).await;
        let asked = matches!(message, ClientMessage::Publish(_));
        assert_eq!(error.id.is_some(), asked, "{error:?}");
        assert_eq!(error.problem.retryable, code.retryable(), "{error:?}");
        wire.lives().await;
        error.problem.detail
    }
}

impl Bystander {
    async fn start(broker: &Broker) -> Self {
        broker.create(json!({"name": STREAM})).await;
        let publisher = broker.connect().await;
        let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, "latest")).await;
        follower.live().await;
        let (delivered, stop) = (Arc::default(), Arc::default());
        let task = tokio::spawn(Self::go_on(
            publisher,
            follower,
            Arc::clone(&delivered),
            Arc::clone(&stop),
        ));
        Self {
            task,
            delivered,
            stop,
        }
    }

    /// Publishes one record after the other, and waits until it is delivered.
    async fn go_on(
        mut publisher: Wire,
        mut follower: Follower,
        delivered: Arc<AtomicU64>,
        stop: Arc<AtomicBool>,
    ) {
        while !stop.load(Ordering::Relaxed) {
            let number = delivered.fetch_add(1, Ordering::Relaxed);
            let value = number.to_string().into_bytes();
            publisher.publish(STREAM, vec![Record::value(value)]).await;
            let (records, _) = follower.records(1).await;
            let texts: Vec<_> = records.iter().map(|got| got.text()).collect();
            assert_eq!(texts, [number.to_string()]);
        }
    }
}
