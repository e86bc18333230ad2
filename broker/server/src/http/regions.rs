//! This broker among the others: `GET /v1/regions`, and parking and removing members.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use anabranch_core::audit::Audit;
use anabranch_core::members::Standing;
use anabranch_core::vector::VersionVector;
use anabranch_protocol::http::{Behind, Digest, Held, Link, Member, Peer, Regions};
use axum::extract::{Request, State};
use http::StatusCode;

use super::answer::json;
use super::query::Query;
use super::{Answer, App, path};
use crate::node::{Entry, LinkStatus, Running, Status};

/// This broker, what it holds, its links to others, and who belongs to the cluster.
pub(super) async fn show(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    Query::read(request.uri(), &[])?;
    let info = surface.node.info();
    let body = regions(info.cluster_name.clone(), running, running.regions.status());
    Ok(json(StatusCode::OK, &body))
}

/// `POST /v1/regions/{member}/park`: nobody waits for it any more.
pub(super) async fn park(surface: App, request: Request) -> Answer {
    end(surface, request, Standing::Parked).await
}

/// `POST /v1/regions/{member}/remove`: the same, and it is not shown any more.
pub(super) async fn remove(surface: App, request: Request) -> Answer {
    end(surface, request, Standing::Removed).await
}

async fn end(State(surface): App, request: Request, standing: Standing) -> Answer {
    let running = surface.running()?;
    Query::read(request.uri(), &[])?;
    let member = path::member(request.uri());
    running.end_member(&member, standing).await?;
    let info = surface.node.info();
    let body = regions(info.cluster_name.clone(), running, running.regions.status());
    Ok(json(StatusCode::OK, &body))
}

fn regions(cluster: String, running: &Running, status: Status) -> Regions {
    let members = status.members.iter();
    let shown_members = members
        .filter(|(_, member)| member.standing != Standing::Removed)
        .map(|(broker, member)| Member {
            broker: broker.to_string(),
            region: member.region.to_string(),
            standing: member.standing.as_str().to_owned(),
            waited_for: !status.left.contains(&broker),
            lacks_frames: status.lacks.get(&broker).copied().unwrap_or(0),
        })
        .collect();
    Regions {
        cluster,
        region: running.regions.region().to_string(),
        broker: running.broker().to_string(),
        origin: running.origin().to_string(),
        writes: match status.entry {
            Entry::Open => "open".to_owned(),
            Entry::Waiting(why) => format!("not yet: {why}"),
            Entry::Parked(why) => format!("parked: {why}"),
        },
        vector: shown(&running.vector()),
        stable: shown(&status.stable),
        members: shown_members,
        links: (status.links.into_iter())
            .map(|status| link(running, status))
            .collect(),
        peers: (status.peers.into_iter())
            .map(|(address, broker)| Peer {
                address,
                broker: broker.map(|broker| broker.to_string()),
            })
            .collect(),
        held: Held {
            frames: status.held_frames as u64,
            bytes: status.held_bytes as u64,
        },
        only_here: behind(
            status.only_here.frames,
            status.only_here.bytes,
            status.only_here.millis,
        ),
        digests: digests(running),
        differing: running.audits.found(),
        forks: status.forks,
    }
}

fn shown(vector: &VersionVector) -> BTreeMap<String, u64> {
    let entries = vector.iter();
    entries
        .map(|(origin, sequence)| (origin.to_string(), sequence.get()))
        .collect()
}

fn behind(frames: u64, bytes: u64, millis: u64) -> Behind {
    // Whole seconds and thousandths: exact far beyond any lag there can be.
    let seconds = std::time::Duration::from_millis(millis).as_secs_f64();
    Behind {
        frames,
        bytes,
        seconds,
    }
}

fn digests(running: &Running) -> Vec<Digest> {
    let streams = running.tables.streams();
    let audits = running.audits.own().into_iter();
    let digest = |audit: Audit| {
        Some(Digest {
            stream: streams.get(audit.stream)?.name.to_string(),
            rows: audit.rows,
            sum: format!("{:032x}", audit.sum),
            vector: format!("{:016x}", audit.vector),
        })
    };
    audits.filter_map(digest).collect()
}

fn link(running: &Running, link: LinkStatus) -> Link {
    let (equal, oldest) = running.audits.with(link.origin.broker);
    Link {
        equal_tables: equal as u64,
        compared_seconds: oldest.map(|age| age.as_secs()),
        region: link.region.to_string(),
        origin: link.origin.to_string(),
        dialled: link.dialled.to_string(),
        up_seconds: link.up_seconds,
        asked_of: link.asked_of.iter().map(ToString::to_string).collect(),
        behind: behind(link.behind.frames, link.behind.bytes, link.behind.millis),
        ahead: behind(link.ahead.frames, link.ahead.bytes, link.ahead.millis),
        frames_in: link.counts.frames_in.load(Ordering::Relaxed),
        bytes_in: link.counts.bytes_in.load(Ordering::Relaxed),
        frames_out: link.counts.frames_out.load(Ordering::Relaxed),
        bytes_out: link.counts.bytes_out.load(Ordering::Relaxed),
    }
}
