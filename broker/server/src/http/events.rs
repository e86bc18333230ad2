//! Records out as they come: server-sent events.
//!
//! Every record is an event without a name, its JSON the data. The last record of a frame carries
//! the cursor as its id, so a reader that connects again (`Last-Event-ID`) gets whole frames. With
//! `from=table` the rows come first, then an event `live`, then what changes. An event `error`
//! holds the problem that ended it.
//!
//! Nothing is queued for a reader: the next frames are looked up once the socket has taken the
//! last ones.

use std::convert::Infallible;
use std::time::Duration;

use anabranch_protocol::error::Problem;
use anabranch_protocol::http::EVENT_STREAM;
use anabranch_protocol::position::From;
use anabranch_protocol::record::json::write_row;
use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::stream::unfold;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio::time::{Instant, timeout_at};

use super::Answer;
use super::records::take;
use crate::node::{Event, Given, Page, Subscription};

/// How long a reader hears nothing at most. Proxies cut connections that are silent for longer,
/// commonly after 30 to 60 seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with events until `limit` records were given, or without end.
pub(super) fn follow(subscription: Subscription, from: &From, limit: Option<usize>) -> Answer {
    let mut first = Vec::new();
    if *from != From::Table {
        // Lets a reader resume here even if it is cut off before its first record.
        write_id(
            &mut first,
            &subscription.encode_cursor(&subscription.cursor()?),
        );
        first.push(b'\n');
    }
    let follow = Follow {
        subscription,
        out: first,
        left: limit.unwrap_or(usize::MAX),
        passed: None,
        last_sent: Instant::now(),
        ended: false,
    };
    let chunks = unfold(follow, |mut follow| async move {
        let chunk = follow.chunk().await?;
        Some((Ok::<_, Infallible>(chunk), follow))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

struct Follow {
    subscription: Subscription,
    /// What goes out next.
    out: Vec<u8>,
    /// Records that may still be given.
    left: usize,
    /// The last frame that was looked at, if its cursor was not sent.
    passed: Option<Given>,
    last_sent: Instant,
    ended: bool,
}

impl Follow {
    async fn chunk(&mut self) -> Option<Bytes> {
        while self.out.is_empty() {
            if self.ended {
                return None;
            }
            let quiet_until = self.last_sent + KEEP_ALIVE;
            let result = match timeout_at(quiet_until, self.subscription.next()).await {
                Ok(Ok(event)) => self.write_event(event),
                Ok(Err(problem)) => Err(problem),
                Err(_) => Ok(()),
            };
            if let Err(problem) = result {
                self.write_error(&problem);
            }
            // Also when frames come without end of which none is wanted.
            if self.out.is_empty() && Instant::now() >= quiet_until {
                self.write_keep_alive();
            }
        }
        self.last_sent = Instant::now();
        Some(std::mem::take(&mut self.out).into())
    }

    fn write_event(&mut self, event: Event) -> Result<(), Problem> {
        match event {
            Event::Rows(page) => self.write_rows(&page),
            Event::Live(cursor) => {
                let cursor = self.subscription.encode_cursor(&cursor);
                self.out.extend_from_slice(b"event: live\n");
                write_id(&mut self.out, &cursor);
                let data = format!("data: {{\"cursor\":\"{cursor}\"}}\n\n");
                self.out.extend_from_slice(data.as_bytes());
            }
            Event::Frames(frames) => {
                for frame in frames {
                    if self.ended {
                        break;
                    }
                    self.write_frame(frame)?;
                }
            }
        }
        Ok(())
    }

    fn write_rows(&mut self, page: &Page) {
        for (key, value) in page.rows.iter().take(self.left) {
            self.out.extend_from_slice(b"data: ");
            write_row(&mut self.out, key, value);
            self.out.extend_from_slice(b"\n\n");
        }
        self.spend(page.rows.len());
    }

    fn spend(&mut self, records: usize) {
        self.left = self.left.saturating_sub(records);
        self.ended = self.left == 0;
    }

    fn write_frame(&mut self, frame: Given) -> Result<(), Problem> {
        let start = self.out.len();
        let (out, left) = (&mut self.out, &mut self.left);
        let cut = take(&mut self.subscription, &frame, left, &mut |json| {
            // Ends the event before; the last one stays open for its id.
            if out.len() > start {
                out.push(b'\n');
            }
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(json);
            out.push(b'\n');
        })?;
        if self.out.len() == start {
            self.passed = Some(frame);
            return Ok(());
        }
        match cut {
            None => write_id(&mut self.out, &self.subscription.cursor_after(&frame)),
            Some(index) => {
                let cursor = self.subscription.cursor_within(&frame, index);
                write_id(&mut self.out, &cursor);
            }
        }
        self.out.push(b'\n');
        self.passed = None;
        self.spend(0);
        Ok(())
    }

    fn write_error(&mut self, problem: &Problem) {
        let json = serde_json::to_string(problem).expect("a problem is a map of texts");
        let event = format!("event: error\ndata: {json}\n\n");
        self.out.extend_from_slice(event.as_bytes());
        self.ended = true;
    }

    /// An id alone is no event, but moves the place to which a reader comes back.
    fn write_keep_alive(&mut self) {
        match self.passed.take() {
            Some(frame) => write_id(&mut self.out, &self.subscription.cursor_after(&frame)),
            None => self.out.extend_from_slice(b": keep-alive\n"),
        }
        self.out.push(b'\n');
    }
}

fn write_id(out: &mut Vec<u8>, cursor: &str) {
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(cursor.as_bytes());
    out.push(b'\n');
}
