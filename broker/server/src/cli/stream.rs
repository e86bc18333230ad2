//! Creating, listing, showing, altering, trimming and deleting streams.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anabranch_client::{Problem, Regions, StreamDefinition, StreamName};
use anabranch_protocol::http::{Retention, StreamInfo};
use serde_json::{Value, json};

use super::arguments::{RetentionFlags, StreamCommand, Target};
use super::failure::Failure;
use super::output::{self, Output};
use super::{Ended, age};
use crate::config::ByteSize;

/// Runs one of the verbs.
pub(super) async fn run(command: StreamCommand) -> Ended {
    match command {
        StreamCommand::Create {
            name,
            merge,
            partitions,
            regions,
            retention,
            target,
        } => {
            let wish = json!({
                "name": name,
                "merge": merge.as_str(),
                "partitions": partitions,
                "retention": age::retention(&retention)?,
                "regions": regions,
            });
            create(&wish, &target).await
        }
        StreamCommand::List(target) => list(&target).await,
        StreamCommand::Show { name, target } => show(&name, &target).await,
        StreamCommand::Alter {
            name,
            retention,
            target,
        } => alter(&name, &retention, &target).await,
        StreamCommand::Trim {
            name,
            before,
            target,
        } => trim(&name, &before, &target).await,
        StreamCommand::Delete { name, yes, target } => delete(&name, yes, &target).await,
    }
}

async fn create(wish: &Value, target: &Target) -> Ended {
    let definition = StreamDefinition::from_json(wish).map_err(Problem::from)?;
    let client = target.client()?;
    let info = client.create_stream(&definition).await?;
    if let Some(names) = &info.regions {
        warn_of_strangers(names, &client.regions().await?);
    }
    print_one(&info, target)
}

/// A region may come later. More often its name was mistyped, and what is written waits for nobody.
fn warn_of_strangers(names: &[String], regions: &Regions) {
    let members = regions.members.iter();
    let there: BTreeSet<&str> = members
        .filter(|member| member.standing == "active")
        .map(|member| member.region.as_str())
        .chain([regions.region.as_str()])
        .collect();
    let strange: Vec<&str> = (names.iter().map(String::as_str))
        .filter(|name| !there.contains(name))
        .collect();
    if !strange.is_empty() {
        let there: Vec<&str> = there.into_iter().collect();
        output::notice(&format!(
            "warning: no broker is in {}; those that are there are in {}. If that is a mistake, delete the stream and create it again: its regions cannot change",
            strange.join(", "),
            there.join(", ")
        ));
    }
}

async fn list(target: &Target) -> Ended {
    let streams = target.client()?.streams().await?;
    let rows: Vec<_> = streams.iter().map(summary).collect();
    let objects = streams.iter().map(|info| json!(info));
    let head = ["stream", "merge", "partitions", "keeps"];
    Output::new(target.json).table(&head, &rows, objects)?;
    if streams.is_empty() {
        output::hint("no streams yet; create one: anabranch stream create NAME --merge lww");
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(name: &str, target: &Target) -> Ended {
    let info = target.client()?.stream(name).info().await?;
    print_one(&info, target)
}

async fn alter(name: &str, retention: &RetentionFlags, target: &Target) -> Ended {
    let fields = age::retention(retention)?;
    if fields.is_empty() {
        let message = "nothing to change; use --max-age, --max-bytes or --compact";
        return Err(Failure::usage(message));
    }
    let change = json!({"retention": fields});
    let info = target.client()?.change_stream(name, &change).await?;
    print_one(&info, target)
}

async fn trim(name: &str, before: &str, target: &Target) -> Ended {
    let before = age::moment(before)?;
    // Parsed, so that it cannot name another path.
    let name = StreamName::parse(name)?;
    let path = format!("/v1/streams/{name}/trim");
    target.post(&path, &json!({"before": before})).await?;
    output::hint("trimmed; the space is given back as segments are cleaned");
    Ok(ExitCode::SUCCESS)
}

async fn delete(name: &str, sure: bool, target: &Target) -> Ended {
    if !sure && !confirmed(name)? {
        return Err(Failure::usage(format!("{name} was not deleted")));
    }
    target.client()?.delete_stream(name).await?;
    output::hint(&format!("deleted {name}"));
    Ok(ExitCode::SUCCESS)
}

/// Asks a person. A script must say `--yes`.
fn confirmed(name: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        let message = format!("deleting {name} deletes its records and rows; add --yes");
        return Err(Failure::usage(message));
    }
    let mut stderr = io::stderr();
    write!(
        stderr,
        "delete {name} with all its records and rows? type its name: "
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == name)
}

fn summary(info: &StreamInfo) -> Vec<String> {
    vec![
        info.name.clone(),
        info.merge.clone(),
        info.partitions.to_string(),
        keeps(info.retention),
    ]
}

fn keeps(retention: Retention) -> String {
    let limits = [
        retention.max_age_seconds.map(age::text),
        retention.max_bytes.map(|n| ByteSize::new(n).to_string()),
        retention.compact.then(|| "last of each key".to_owned()),
    ];
    let limits: Vec<_> = limits.into_iter().flatten().collect();
    match limits.is_empty() {
        true => "everything".to_owned(),
        false => limits.join(", "),
    }
}

fn print_one(info: &StreamInfo, target: &Target) -> Ended {
    let output = Output::new(target.json);
    let mut rows = vec![
        field("stream", &info.name),
        field("merge", &info.merge),
        field("partitions", &info.partitions.to_string()),
        field("keeps", &keeps(info.retention)),
    ];
    if let Some(regions) = &info.regions {
        rows.push(field("kept in", &regions.join(", ")));
    }
    for held in info.offsets.iter().flatten() {
        let offsets = format!(
            "{} records, offsets {} to {}",
            held.next - held.first,
            held.first,
            held.next
        );
        rows.push(field(&format!("partition {}", held.partition), &offsets));
    }
    if let Some(bytes) = info.bytes {
        rows.push(field("size", &ByteSize::new(bytes).rounded()));
    }
    output.table(&["", ""], &rows, std::iter::once::<Value>(json!(info)))?;
    Ok(ExitCode::SUCCESS)
}

fn field(name: &str, value: &str) -> Vec<String> {
    vec![name.to_owned(), value.to_owned()]
}
