//! Records out: `GET /v1/streams/{stream}/records`, as one answer. With
//! `Accept: text/event-stream` it becomes a stream of events; see [`super::events`].

use std::collections::BTreeSet;
use std::time::Duration;

use anabranch_core::cursor::Order;
use anabranch_core::id::{Dot, PartitionId};
use anabranch_core::stream::MergeMode;
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::http::EVENT_STREAM;
use anabranch_protocol::position::From;
use anabranch_protocol::record::json::{write_delivered, write_row};
use anabranch_protocol::ws::KeyFilter;
use axum::extract::{Request, State};
use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::answer::json_text;
use super::publish::partition_number;
use super::query::{Query, bad};
use super::refusal::Refusal;
use super::{Answer, App, events, path};
use crate::node::{Event, Given, SubscribeRequest, Subscription, each_selected};

/// Records of one answer when the request does not say.
const DEFAULT_RECORDS: usize = 1_000;

/// Records of one answer at most.
const MAX_RECORDS: usize = 10_000;

/// Bytes at which an answer ends, whatever its limit. The last frame is given whole.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// How long one answer looks for records that match, before it says how far it came.
const LOOKING: Duration = Duration::from_secs(5);

const PARAMETERS: [&str; 7] = [
    "from",
    "order",
    "partition",
    "key",
    "prefix",
    "limit",
    "wait",
];

/// What is there, or what comes within `wait`.
pub(super) async fn read(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    let (parts, _) = request.into_parts();
    let query = Query::read(&parts.uri, &PARAMETERS)?;
    let goes_on = wants_events(&parts.headers);
    let subscribe = SubscribeRequest {
        stream: path::stream(&parts.uri).into_owned(),
        partitions: partitions(&query)?,
        keys: keys(&query)?,
        from: from(&query, if goes_on { Some(&parts.headers) } else { None })?,
        order: order(&query)?,
    };
    let longest = surface.limits().longest_wait_seconds;
    let wait = query.seconds("wait")?.unwrap_or_default().min(longest);
    let most = if goes_on { usize::MAX } else { MAX_RECORDS };
    let limit = query.count("limit", most)?;
    let subscription = running.subscribe(&subscribe)?;
    if goes_on {
        return events::follow(subscription, &subscribe.from, limit);
    }
    let page = Page::new(
        subscription,
        &subscribe.from,
        limit.unwrap_or(DEFAULT_RECORDS),
    );
    Ok(json_text(StatusCode::OK, page.fill(wait).await?))
}

fn wants_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter();
    accepted.any(|value| value.to_str().is_ok_and(|text| text.contains(EVENT_STREAM)))
}

fn partitions(query: &Query<'_>) -> Result<Option<BTreeSet<PartitionId>>, Refusal> {
    let mut partitions = BTreeSet::new();
    for list in query.all("partition") {
        for number in String::from_utf8_lossy(list).split(',') {
            partitions.insert(partition_number(number.trim())?);
        }
    }
    Ok(Some(partitions).filter(|given| !given.is_empty()))
}

fn keys(query: &Query<'_>) -> Result<KeyFilter<'static>, Refusal> {
    match (query.one("key")?, query.one("prefix")?) {
        (None, None) => Ok(KeyFilter::All),
        (Some(key), None) => Ok(KeyFilter::Key(key.to_vec().into())),
        (None, Some(prefix)) => Ok(KeyFilter::Prefix(prefix.to_vec().into())),
        (Some(_), Some(_)) => Err(bad("give key or prefix, not both".to_owned())),
    }
}

fn order(query: &Query<'_>) -> Result<Order, Refusal> {
    let Some(name) = query.text("order")? else {
        return Ok(Order::Local);
    };
    Order::named(name).ok_or_else(|| bad("order: must be local or total".to_owned()))
}

/// Where to start. A reader of events that connects again says in `Last-Event-ID` how far it came,
/// which counts for more than what its address says.
fn from(query: &Query<'_>, resumes: Option<&HeaderMap>) -> Result<From, Refusal> {
    let last = resumes.and_then(|headers| headers.get("last-event-id"));
    let last = last
        .and_then(|id| id.to_str().ok())
        .filter(|id| !id.is_empty());
    match last.map_or_else(|| query.text("from"), |id| Ok(Some(id)))? {
        None => Ok(From::default()),
        Some(text) => {
            From::parse(text).map_err(|error| Refusal::new(Code::BadFrom, error.to_string()))
        }
    }
}

/// Gives `each` the wanted records of what comes next as JSON, until none are left to give. If it
/// holds more, returns the index of the first that was not given.
pub(super) fn take(
    subscription: &mut Subscription,
    given: &Given,
    left: &mut usize,
    each: &mut dyn FnMut(&[u8]),
) -> Result<Option<u32>, Problem> {
    let indexes = subscription.pass(given);
    let (definition, selection) = (subscription.definition(), subscription.selection());
    let mut cut = None;
    let mut json = Vec::new();
    each_selected(
        given.frame(),
        definition,
        selection,
        &indexes,
        &mut |selected| {
            if *left == 0 {
                cut.get_or_insert(selected.index);
                return;
            }
            *left -= 1;
            json.clear();
            write_delivered(
                &mut json,
                Some(selected.partition),
                selected.offset,
                &selected.record,
            );
            add_dot(&mut json, &given.commit().header.dot(selected.index));
            each(&json);
        },
    )?;
    Ok(cut)
}

/// Adds the global name of a record to its object.
fn add_dot(json: &mut Vec<u8>, dot: &Dot) {
    let end = json.pop();
    debug_assert_eq!(end, Some(b'}'));
    json.extend_from_slice(format!(",\"dot\":\"{dot}\"}}").as_bytes());
}

/// An answer in the making.
struct Page {
    subscription: Subscription,
    /// Records as JSON, separated by commas.
    body: Vec<u8>,
    limit: usize,
    left: usize,
    /// Whether rows of a table are still to come, which must all be given.
    in_rows: bool,
    /// The cursor, when not all of what the subscription gave went into the answer.
    stopped_at: Option<String>,
}

impl Page {
    fn new(subscription: Subscription, from: &From, limit: usize) -> Self {
        let keyed = subscription.definition().merge == MergeMode::Lww;
        Self {
            subscription,
            body: Vec::new(),
            limit,
            left: limit,
            in_rows: keyed && *from == From::Table,
            stopped_at: None,
        }
    }

    /// Takes what is there; when nothing is, what comes first within `wait`.
    async fn fill(mut self, wait: Duration) -> Result<Vec<u8>, Problem> {
        let now = Instant::now();
        let (until, looking) = (now + wait, now + wait.max(LOOKING));
        loop {
            self.take_held(looking).await?;
            if !self.body.is_empty() || self.is_full() || Instant::now() >= until {
                return self.finish();
            }
            match timeout_at(until, self.subscription.next()).await {
                Ok(event) => self.take_event(event?)?,
                Err(_) => return self.finish(),
            }
        }
    }

    async fn take_held(&mut self, looking: Instant) -> Result<(), Problem> {
        while !self.is_full() && Instant::now() < looking {
            match self.subscription.next_held().await? {
                Some(event) => self.take_event(event)?,
                None => break,
            }
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        let full = self.left == 0 || self.body.len() >= ANSWER_BYTES;
        self.stopped_at.is_some() || (full && !self.in_rows)
    }

    fn take_event(&mut self, event: Event) -> Result<(), Problem> {
        match event {
            Event::Rows(page) => {
                for (key, value) in &page.rows {
                    self.take_row(key, value)?;
                }
            }
            Event::Live(_) => self.in_rows = false,
            Event::Frames(frames) => {
                for frame in &frames {
                    self.take_frame(frame)?;
                }
            }
        }
        Ok(())
    }

    fn take_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        if self.left == 0 || self.body.len() >= ANSWER_BYTES {
            let stream = &self.subscription.definition().name;
            return Err(Problem::new(
                Code::BadFrom,
                format!(
                    "the table has more rows than fit one answer (limit {}), which cannot be continued within a table; read pages from /v1/tables/{stream}/rows, or follow with accept: text/event-stream",
                    self.limit
                ),
            ));
        }
        self.left -= 1;
        separate(&mut self.body);
        write_row(&mut self.body, key, value);
        Ok(())
    }

    fn take_frame(&mut self, frame: &Given) -> Result<(), Problem> {
        if self.stopped_at.is_some() {
            return Ok(());
        }
        if self.is_full() {
            self.stopped_at = Some(self.subscription.cursor_before(frame));
            return Ok(());
        }
        let body = &mut self.body;
        let cut = take(&mut self.subscription, frame, &mut self.left, &mut |json| {
            separate(body);
            body.extend_from_slice(json);
        })?;
        let subscription = &self.subscription;
        self.stopped_at = cut.map(|index| subscription.cursor_within(frame, index));
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>, Problem> {
        let cursor = match self.stopped_at {
            Some(cursor) => cursor,
            None => self
                .subscription
                .encode_cursor(&self.subscription.cursor()?),
        };
        let mut out = Vec::with_capacity(self.body.len() + cursor.len() + 32);
        out.extend_from_slice(b"{\"records\":[");
        out.extend_from_slice(&self.body);
        out.extend_from_slice(b"],\"cursor\":\"");
        out.extend_from_slice(cursor.as_bytes());
        out.extend_from_slice(b"\"}");
        Ok(out)
    }
}

fn separate(body: &mut Vec<u8>) {
    if !body.is_empty() {
        body.push(b',');
    }
}
