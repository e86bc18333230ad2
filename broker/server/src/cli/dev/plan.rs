//! What is to be started: read from the flags, and checked.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::names::{Between, Names, parse_link_delay};
use crate::cli::Failure;
use crate::cli::arguments::{BrokerFlags, DevArguments};
use crate::config::Loaded;

/// The folder of all regions, unless another is named. Not the one of a single broker, so that
/// neither finds the other's files among its own.
const FOLDER: &str = "./anabranch-regions";

/// From one region's port to the next: the ports beside each are left to what one broker may open.
const PORT_STEP: u16 = 100;

/// What is to be started.
#[derive(Debug)]
pub(super) struct Plan {
    /// The regions.
    pub(super) names: Names,
    /// How slow their links are, the last one that means a link counting.
    pub(super) delays: Vec<(Between, Duration)>,
    /// Where each keeps its folder and its log.
    pub(super) folder: PathBuf,
    /// Where each listens for clients.
    pub(super) listen: Vec<SocketAddr>,
    /// Flags for all of them.
    pub(super) flags: Vec<OsString>,
}

/// Keys that `dev` sets for each region, so that `--set` cannot.
const OURS: [&str; 3] = ["broker.region", "listen.peers", "listen.peer_address"];

impl Plan {
    /// What these flags ask for. `None` is a single broker.
    pub(super) fn of(arguments: &DevArguments) -> Result<Option<Self>, Failure> {
        let Some(names) = names(arguments)? else {
            return match arguments.json || !arguments.link_delays.is_empty() {
                false => Ok(None),
                true => Err(Failure::usage(
                    "--link-delay and --json are for several regions: add --regions 3, for example",
                )),
            };
        };
        let flags = &arguments.flags;
        if let Some((key, _)) = flags.set.iter().find(|(key, _)| OURS.contains(&&**key)) {
            return Err(Failure::usage(format!(
                "--set {key} would be the same in all regions; leave it out, and name regions with --region-names"
            )));
        }
        // What is wrong with the configuration is said once, and before anything is started.
        let loaded = flags.load()?;
        let delays = arguments.link_delays.iter();
        let delays = delays.map(|text| parse_link_delay(text, &names).map_err(Failure::usage));
        Ok(Some(Self {
            delays: delays.collect::<Result<_, _>>()?,
            folder: folder(&loaded),
            listen: addresses(loaded.config.listen.address, names.count())?,
            flags: passed_on(flags),
            names,
        }))
    }
}

fn names(arguments: &DevArguments) -> Result<Option<Names>, Failure> {
    let chosen = &arguments.region_names;
    match (arguments.regions.map(usize::from), chosen.len()) {
        (None, 0) => Ok(None),
        (Some(count), 0) => Ok(Some(Names::numbered(count))),
        (Some(count), named) if count != named => Err(Failure::usage(format!(
            "--regions {count} needs as many names, --region-names has {named}"
        ))),
        _ => Names::parse(chosen).map(Some).map_err(Failure::usage),
    }
}

fn folder(loaded: &Loaded) -> PathBuf {
    match loaded.is_default("data.dir") {
        true => PathBuf::from(FOLDER),
        false => loaded.config.data.dir.clone(),
    }
}

/// The first region's address, and the same with higher ports for the others.
fn addresses(first: SocketAddr, count: usize) -> Result<Vec<SocketAddr>, Failure> {
    let mut addresses = vec![first];
    while addresses.len() < count {
        let mut next = addresses[addresses.len() - 1];
        if first.port() != 0 {
            let port = next.port().checked_add(PORT_STEP);
            next.set_port(port.ok_or_else(|| {
                let text = format!("there are no ports for {count} regions from {first} up");
                Failure::usage(text)
            })?);
        }
        addresses.push(next);
    }
    Ok(addresses)
}

fn passed_on(flags: &BrokerFlags) -> Vec<OsString> {
    let mut passed = Vec::new();
    let mut pass = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        passed.extend([flag.into(), value.as_ref().to_owned()]);
    };
    if let Some(file) = &flags.config {
        pass("--config", file);
    }
    let texts = [
        ("--cluster", &flags.cluster),
        ("--log-level", &flags.log_level),
        ("--log-format", &flags.log_format),
    ];
    for (flag, value) in texts {
        if let Some(value) = value {
            pass(flag, value);
        }
    }
    for (key, value) in &flags.set {
        // These two are different for each region, and read above.
        if key != "data.dir" && key != "listen.address" {
            pass("--set", &format!("{key}={value}"));
        }
    }
    if flags.insecure_listen {
        passed.push("--insecure-listen".into());
    }
    passed
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::arguments::{Arguments, Command};

    fn plan(flags: &[&str]) -> Result<Option<Plan>, Failure> {
        let words = ["anabranch", "dev"].iter().chain(flags);
        match Arguments::parse_from(words).command {
            Command::Dev(arguments) => Plan::of(&arguments),
            other => panic!("{other:?}"),
        }
    }

    fn ports(plan: &Plan) -> Vec<u16> {
        plan.listen.iter().map(SocketAddr::port).collect()
    }

    #[test]
    fn without_regions_it_is_a_single_broker() {
        assert!(plan(&[]).unwrap().is_none());
        assert!(plan(&["--link-delay", "40ms"]).is_err());
    }

    #[test]
    fn regions_have_names_folders_and_ports_of_their_own() {
        let three = plan(&["--regions", "3"]).unwrap().unwrap();
        assert_eq!(three.names, Names::numbered(3));
        assert_eq!(ports(&three), [7070, 7170, 7270]);
        assert_eq!(three.folder, PathBuf::from(FOLDER));
        let flags = [
            "--region-names",
            "eu,us",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            "x",
        ];
        let two = plan(&flags).unwrap().unwrap();
        assert_eq!(two.names.of(1), "us");
        assert_eq!(ports(&two), [0, 0]);
        assert_eq!(two.folder, PathBuf::from("x"));
        assert!(plan(&["--regions", "3", "--region-names", "eu,us"]).is_err());
        assert!(plan(&["--regions", "3", "--listen", "127.0.0.1:65400"]).is_err());
    }

    #[test]
    fn what_holds_for_all_is_passed_on_and_what_cannot_is_refused() {
        let flags = [
            "--regions",
            "2",
            "--cluster",
            "c",
            "--set",
            "log.tail_bytes=2MiB",
        ];
        let passed = plan(&flags).unwrap().unwrap().flags;
        assert_eq!(passed, ["--cluster", "c", "--set", "log.tail_bytes=2MiB"]);
        let flags = ["--regions", "2", "--set", "data.dir=y"];
        let elsewhere = plan(&flags).unwrap().unwrap();
        assert_eq!(elsewhere.folder, PathBuf::from("y"));
        assert!(elsewhere.flags.is_empty());
        assert!(plan(&["--regions", "2", "--set", "broker.region=x"]).is_err());
        assert!(plan(&["--regions", "2", "--set", "no.such=1"]).is_err());
    }

    #[test]
    fn a_single_brokers_flags_and_several_regions_exclude_each_other() {
        for other in [
            ["--peer", "a:1"],
            ["--region", "x"],
            ["--peer-listen", "a:1"],
        ] {
            let words = ["anabranch", "dev", "--regions", "2"].iter().chain(&other);
            assert!(Arguments::try_parse_from(words).is_err(), "{other:?}");
        }
    }
}
