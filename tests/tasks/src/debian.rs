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
    let privileges = Privileges::of_this_process();
    let Some(prefix) = privileges.prefix() else {
        return Err(by_hand(privileges, &packages));
    };
    // The list of packages of a fresh machine is empty or old.
    let lists = apt_get(prefix, &["update"]);
    let mut arguments = INSTALL.to_vec();
    arguments.extend(&packages);
    if lists && apt_get(prefix, &arguments) {
        return Ok(());
    }
    Err(by_hand(privileges, &packages))
}

const INSTALL: [&str; 3] = ["install", "--yes", "--no-install-recommends"];

/// How this process may run apt-get.
#[derive(Clone, Copy)]
enum Privileges {
    Root,
    /// `sudo` asks nothing.
    Sudo,
    /// `sudo` asks for a password.
    Password,
    /// There is no `sudo`.
    User,
    /// There is no apt-get.
    NotDebian,
}

impl Privileges {
    fn of_this_process() -> Self {
        if !starts("apt-get") {
            return Self::NotDebian;
        }
        let id = Command::new("id").arg("-u").output();
        if id.is_ok_and(|id| id.stdout.trim_ascii() == b"0") {
            return Self::Root;
        }
        match Command::new("sudo").args(["-n", "true"]).output() {
            Ok(output) if output.status.success() => Self::Sudo,
            Ok(_) => Self::Password,
            Err(_) => Self::User,
        }
    }

    /// What to put in front of apt-get, where it may be run.
    fn prefix(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Root => Some(&[]),
            Self::Sudo => Some(&["sudo", "-n"]),
            Self::Password | Self::User | Self::NotDebian => None,
        }
    }
}

/// What to do where this process could not install `packages`.
fn by_hand(privileges: Privileges, packages: &[&str]) -> String {
    let (why, sudo) = match privileges {
        Privileges::Root => ("apt-get failed, see above; run it by hand", ""),
        Privileges::Sudo => ("apt-get failed, see above; run it by hand", "sudo "),
        Privileges::Password => (
            "installing needs root, and sudo asks for a password",
            "sudo ",
        ),
        Privileges::User => ("installing needs root, and there is no sudo; as root", ""),
        Privileges::NotDebian => {
            return format!(
                "there is no apt-get here; install what other systems have instead of Debian's {}, then try again",
                packages.join(" ")
            );
        }
    };
    format!(
        "\n{why}:\n\n    {sudo}apt-get update && {sudo}apt-get {} {}\n\nthen try again",
        INSTALL.join(" "),
        packages.join(" ")
    )
}

fn apt_get(prefix: &[&str], arguments: &[&str]) -> bool {
    let mut words = prefix.iter().copied().chain(["apt-get"]);
    let mut command = Command::new(words.next().unwrap_or("apt-get"));
    command.args(words).args(arguments);
    eprintln!("running {}", shown(&command));
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.status().is_ok_and(|status| status.success())
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_install_is_told_the_whole_command() {
        let told = by_hand(Privileges::Password, &["g++", "libclang-dev"]);
        let command = "sudo apt-get update && \
                       sudo apt-get install --yes --no-install-recommends g++ libclang-dev";
        assert!(told.contains(command), "{told}");
        let told = by_hand(Privileges::User, &["g++"]);
        assert!(!told.contains("sudo apt-get"), "{told}");
    }

    #[test]
    fn only_root_and_a_silent_sudo_install() {
        assert_eq!(Privileges::Root.prefix(), Some(&[][..]));
        assert_eq!(Privileges::Sudo.prefix(), Some(&["sudo", "-n"][..]));
        assert!(Privileges::Password.prefix().is_none());
        assert!(Privileges::User.prefix().is_none());
    }

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("sudo");
        command.args(["-n", "apt-get", "update"]);
        assert_eq!(shown(&command), "sudo -n apt-get update");
    }
}
