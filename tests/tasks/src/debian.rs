//! Installing packages with apt-get where that is allowed, or naming the command.

use std::process::Command;

use crate::requirements::{Requirement, starts};

/// Installs what is missing.
///
/// # Errors
/// With the command to run, where this process may not run it.
pub(crate) fn install(missing: &[Requirement]) -> Result<(), String> {
    if missing.is_empty() {
        return Ok(());
    }
    for requirement in missing {
        eprintln!("missing: {} ({})", requirement.what, requirement.package);
    }
    let packages: Vec<_> = missing.iter().map(|it| it.package).collect();
    let by_hand = format!(
        "install by hand, then try again:\n\n    sudo apt-get install --yes {}\n",
        packages.join(" ")
    );
    let Some(mut prefix) = privileges() else {
        return Err(by_hand);
    };
    // The list of packages of a fresh machine is empty or old.
    let lists = apt_get(&mut prefix, &["update"]);
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&packages);
    if lists && apt_get(&mut prefix, &arguments) {
        return Ok(());
    }
    Err(by_hand)
}

/// What to put in front of apt-get: nothing for root, `sudo` where it asks nothing.
fn privileges() -> Option<Vec<&'static str>> {
    if !starts("apt-get") {
        return None;
    }
    let id = Command::new("id").arg("-u").output().ok()?;
    if id.stdout.trim_ascii() == b"0" {
        return Some(Vec::new());
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output().ok()?;
    sudo.status.success().then(|| vec!["sudo", "-n"])
}

fn apt_get(prefix: &mut [&'static str], arguments: &[&str]) -> bool {
    let mut words = prefix.iter().copied().chain(["apt-get"]);
    let mut command = Command::new(words.next().unwrap_or("apt-get"));
    command.args(words).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    eprintln!("running {command:?}");
    command.status().is_ok_and(|status| status.success())
}
