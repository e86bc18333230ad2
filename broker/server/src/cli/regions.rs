//! This broker among the others: what it holds, links, members.

use std::process::ExitCode;

use anabranch_protocol::http::{Behind, Link, Member, Regions};
use serde_json::json;

use super::Ended;
use super::arguments::{RegionsArguments, RegionsCommand, Target};
use super::output::Output;

/// Shows them, or ends a member first.
pub(super) async fn run(arguments: RegionsArguments) -> Ended {
    match arguments.command {
        None => {
            let target = arguments.target;
            let regions = target.client()?.regions().await?;
            show(&target, &regions)
        }
        Some(RegionsCommand::Park { member, target }) => {
            let regions = target.client()?.park(&member).await?;
            show(&target, &regions)
        }
        Some(RegionsCommand::Remove { member, target }) => {
            let regions = target.client()?.remove_member(&member).await?;
            show(&target, &regions)
        }
    }
}

fn show(target: &Target, regions: &Regions) -> Ended {
    let mut rows = vec![
        row("cluster", regions.cluster.clone()),
        row("region", regions.region.clone()),
        row("origin", regions.origin.clone()),
        row("writes", regions.writes.clone()),
    ];
    rows.extend(regions.members.iter().map(|held| member(regions, held)));
    for peer in regions.peers.iter().filter(|peer| peer.broker.is_none()) {
        let what = "never met since the start: is its address right, and does it run?";
        rows.push(row(format!("peer {}", peer.address), what.to_owned()));
    }
    for link in &regions.links {
        let what = format!(
            "up {} s; behind it {}; it is behind {}; {}",
            link.up_seconds,
            lag(&link.behind),
            lag(&link.ahead),
            compared(link)
        );
        rows.push(row(format!("link to {}", link.region), what));
    }
    rows.push(row("only here", lag(&regions.only_here)));
    if regions.held.frames > 0 {
        let held = format!(
            "{} frames, {} bytes",
            regions.held.frames, regions.held.bytes
        );
        rows.push(row("waiting", held));
    }
    for (origin, sequence) in &regions.vector {
        let stable = regions.stable.get(origin).copied().unwrap_or(0);
        let what = format!("up to {sequence}; all hold up to {stable}");
        rows.push(row(format!("frames of {origin}"), what));
    }
    for differing in &regions.differing {
        rows.push(row("differs", differing.clone()));
    }
    for fork in &regions.forks {
        rows.push(row("forked", fork.clone()));
    }
    Output::new(target.json).table(&["", ""], &rows, std::iter::once(json!(regions)))?;
    Ok(ExitCode::SUCCESS)
}

fn member(regions: &Regions, member: &Member) -> Vec<String> {
    let waits = match (member.standing.as_str(), member.waited_for) {
        ("active", _) => "",
        (_, true) => ", waited for until all others know",
        (_, false) => ", not waited for",
    };
    let is_elsewhere = member.broker != regions.broker && member.standing == "active";
    let linked = match is_elsewhere && !regions.is_linked(&member.broker) {
        true => ", not linked",
        false => "",
    };
    let lacks = match member.lacks_frames {
        0 => String::new(),
        frames => format!(", lacks {frames} frames"),
    };
    let what = format!(
        "{}: {}{waits}{linked}{lacks}",
        member.broker, member.standing
    );
    row(format!("member in {}", member.region), what)
}

fn row(name: impl Into<String>, what: String) -> Vec<String> {
    vec![name.into(), what]
}

fn compared(link: &Link) -> String {
    match link.compared_seconds {
        None => "rows not compared yet".to_owned(),
        Some(age) => format!("{} tables equal, {age} s ago", link.equal_tables),
    }
}

fn lag(behind: &Behind) -> String {
    match behind.frames {
        0 => "by nothing".to_owned(),
        frames => format!(
            "by {frames} frames, about {} bytes, for {:.1} s",
            behind.bytes, behind.seconds
        ),
    }
}
