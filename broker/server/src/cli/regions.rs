//! This region, its broker, what it holds, and its links to others.

use std::process::ExitCode;

use serde_json::json;

use super::Ended;
use super::arguments::Target;
use super::output::Output;

/// Shows them.
pub(super) async fn run(target: Target) -> Ended {
    let regions = target.client()?.regions().await?;
    let mut rows = vec![
        vec!["cluster".to_owned(), regions.cluster.clone()],
        vec!["region".to_owned(), regions.region.clone()],
        vec!["broker".to_owned(), regions.broker.clone()],
        vec!["origin".to_owned(), regions.origin.clone()],
    ];
    for (origin, sequence) in &regions.vector {
        rows.push(vec![format!("holds {origin}"), format!("up to {sequence}")]);
    }
    for link in &regions.links {
        rows.push(vec![
            format!("link to {}", link.region),
            format!(
                "{}, up {} s, {} frames behind, {} ahead",
                link.origin, link.up_seconds, link.behind_frames, link.ahead_frames
            ),
        ]);
    }
    Output::new(target.json).table(&["", ""], &rows, std::iter::once(json!(regions)))?;
    Ok(ExitCode::SUCCESS)
}
