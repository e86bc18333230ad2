//! Brokers of several regions, each with links to all others through proxies.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::broker::{Broker, Ended};
use crate::condition::eventually;
use crate::home::Home;
use crate::http::Answer;
use crate::proxy::{Proxy, Weather};

/// Brokers that are all linked with each other.
#[derive(Debug)]
pub struct Regions {
    homes: Vec<Home>,
    brokers: Vec<Broker>,
    /// From the first to the second: who dials and who is dialled.
    proxies: BTreeMap<(usize, usize), Proxy>,
    settings: Vec<&'static str>,
}

impl Regions {
    /// Starts this many, and waits until all links are up.
    pub async fn start(count: usize, settings: &[&'static str]) -> Self {
        let mut proxies = BTreeMap::new();
        for from in 0..count {
            for to in (0..count).filter(|&to| to != from) {
                proxies.insert((from, to), Proxy::new().await);
            }
        }
        let mut regions = Self {
            homes: (0..count).map(|_| Home::new()).collect(),
            brokers: Vec::new(),
            proxies,
            settings: settings.to_vec(),
        };
        for number in 0..count {
            // They are started one after the other, and none should wait for those to come.
            let broker = regions.run(number, &["links.join_seconds=0"]).await;
            regions.brokers.push(broker);
        }
        regions.linked().await;
        regions
    }

    /// Starts one more, that dials all others and is named by none of them. It waits until it is a
    /// member.
    pub async fn join(&mut self) {
        let number = self.brokers.len();
        for to in 0..number {
            let proxy = Proxy::new().await;
            proxy.lead_to(self.brokers[to].peer_address().expect("it has peers"));
            self.proxies.insert((number, to), proxy);
        }
        self.homes.push(Home::new());
        let broker = self.run(number, &["links.join_seconds=60"]).await;
        self.brokers.push(broker);
    }

    /// Starts a broker on its home.
    async fn run(&self, number: usize, more: &[&str]) -> Broker {
        match self.try_run(number, more).await {
            Ok(broker) => broker,
            Err(ended) => panic!("the broker did not start: {}\n{}", ended.status, ended.said),
        }
    }

    async fn try_run(&self, number: usize, more: &[&str]) -> Result<Broker, Ended> {
        let name = format!("r{number}");
        let mut flags = vec!["--region", &name, "--peer-listen", "127.0.0.1:0"];
        let proxies = self.proxies.iter();
        let peers: Vec<String> = proxies
            .filter(|((from, _), _)| *from == number)
            .map(|(_, proxy)| proxy.address().to_string())
            .collect();
        for peer in &peers {
            flags.extend(["--peer", peer]);
        }
        for setting in self.settings.iter().chain(more) {
            flags.extend(["--set", setting]);
        }
        let broker = Broker::try_start(&self.homes[number], &flags).await?;
        let address = broker.peer_address().expect("it has peers");
        for ((_, to), proxy) in &self.proxies {
            if *to == number {
                proxy.lead_to(address);
            }
        }
        Ok(broker)
    }

    /// Stops a broker in order.
    pub async fn stop(&mut self, number: usize) {
        self.brokers[number].end().await;
    }

    /// Kills a broker.
    pub fn kill(&mut self, number: usize) {
        self.brokers[number].kill();
    }

    /// Starts a broker that was killed; it waits until it is a member.
    pub async fn restart_patiently(&mut self, number: usize) {
        self.brokers[number] = self.run(number, &["links.join_seconds=60"]).await;
    }

    /// Kills a broker, and starts it again.
    pub async fn restart(&mut self, number: usize) {
        self.brokers[number].kill();
        self.brokers[number] = self.run(number, &["links.join_seconds=0"]).await;
    }

    /// The folder of one of them.
    #[must_use]
    pub fn home(&self, number: usize) -> &Home {
        &self.homes[number]
    }

    /// One of them.
    #[must_use]
    pub fn broker(&self, number: usize) -> &Broker {
        &self.brokers[number]
    }

    /// All of them.
    #[must_use]
    pub fn brokers(&self) -> &[Broker] {
        &self.brokers
    }

    /// Keeps all that goes over the links from now on. To be called before anything is linked again.
    pub fn record(&self) {
        self.proxies.values().for_each(Proxy::record);
    }

    /// What was carried towards one broker since then, a list of bytes for each connection.
    #[must_use]
    pub fn carried_to(&self, number: usize) -> Vec<Vec<u8>> {
        let mut carried = Vec::new();
        for ((from, to), proxy) in &self.proxies {
            let [there, back] = proxy.recorded();
            if *to == number {
                carried.extend(there);
            } else if *from == number {
                carried.extend(back);
            }
        }
        carried
    }

    /// Does something to all links of one broker.
    pub fn set(&self, number: usize, weather: Weather) {
        for ((from, to), proxy) in &self.proxies {
            if *from == number || *to == number {
                proxy.set(weather);
            }
        }
    }

    /// Does something to the links between two brokers.
    pub fn set_between(&self, a: usize, b: usize, weather: Weather) {
        for pair in [(a, b), (b, a)] {
            self.proxies[&pair].set(weather);
        }
    }

    /// What a broker says of itself and its links.
    pub async fn status(&self, number: usize) -> Value {
        self.brokers[number].http().get("/v1/regions").await.json()
    }

    /// Waits until every broker has a link to every other.
    pub async fn linked(&self) {
        let others = self.brokers.len() - 1;
        for number in 0..self.brokers.len() {
            eventually("linked", async || {
                let status = self.status(number).await;
                let links = status["links"].as_array()?.len();
                (links == others).then_some(())
            })
            .await;
        }
    }

    /// Waits until every broker has a link to every other, but for these two.
    pub async fn linked_but(&self, a: usize, b: usize) {
        for number in 0..self.brokers.len() {
            let cut = usize::from(number == a || number == b);
            let others = self.brokers.len() - 1 - cut;
            eventually("linked", async || {
                let status = self.status(number).await;
                let links = status["links"].as_array()?.len();
                (links >= others).then_some(())
            })
            .await;
        }
    }

    /// Stops all of them in order. What they stored stays.
    pub async fn stop_all(&mut self) {
        for broker in std::mem::take(&mut self.brokers) {
            broker.stop().await;
        }
    }

    /// Waits until all hold the same, and returns what.
    pub async fn converged(&self) -> Value {
        eventually("the same vectors everywhere", async || {
            let first = self.status(0).await["vector"].clone();
            for number in 1..self.brokers.len() {
                if self.status(number).await["vector"] != first {
                    return None;
                }
            }
            Some(first)
        })
        .await
    }

    /// Waits until every broker knows a stream.
    pub async fn know(&self, stream: &str) {
        for broker in &self.brokers {
            eventually("the stream", async || {
                let answer = broker.http().get(&format!("/v1/streams/{stream}")).await;
                (answer.status == 200).then_some(())
            })
            .await;
        }
    }

    /// Writes a row in one region.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn put(&self, number: usize, stream: &str, key: &str, value: &str) {
        let path = format!("/v1/tables/{stream}/rows/{key}");
        let answer = self.brokers[number].http().put(&path, &json!(value)).await;
        assert!(answer.status < 300, "{answer:?}");
    }

    /// Deletes a row in one region.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn delete(&self, number: usize, stream: &str, key: &str) {
        let path = format!("/v1/tables/{stream}/rows/{key}");
        let http = self.brokers[number].http();
        let answer = http.send("DELETE", &path, &[], "").await;
        assert!(answer.status < 300, "{answer:?}");
    }

    /// Asks one region to park or remove another.
    pub async fn end(&self, number: usize, name: &str, how: &str) -> Answer {
        let path = format!("/v1/regions/{name}/{how}");
        self.brokers[number].http().post(&path, &json!(null)).await
    }

    /// A row as one region sees it.
    pub async fn row(&self, number: usize, stream: &str, key: &str) -> Option<Value> {
        let path = format!("/v1/tables/{stream}/rows/{key}");
        let answer = self.brokers[number].http().get(&path).await;
        (answer.status == 200).then(|| answer.json())
    }

    /// All rows of a stream as one region sees them.
    pub async fn rows(&self, number: usize, stream: &str) -> Value {
        let path = format!("/v1/tables/{stream}/rows?limit=1000");
        self.brokers[number].http().get(&path).await.json()["rows"].clone()
    }
}
