//! One file per measurement.
//!
//! | file | measures |
//! |---|---|
//! | `publish` | durable publishing, in batches and one by one |
//! | `client` | publishing through the Rust client |
//! | `rows` | publishing into a table, until it is readable |
//! | `latency` | publish to delivery |
//! | `reads` | rows over HTTP |
//! | `fanout` | one stream to many subscribers |
//! | `restart` | start after a clean end and after a crash |
//! | `idle` | memory without work |
//! | `regions` | several regions |
//! | `load` | what is sent: flags and defaults |
//! | `stage` | a broker, its folder, and the machine's limits beside it |
//! | `team` | several publishers that share the work |

mod client;
mod fanout;
mod idle;
mod latency;
mod load;
mod publish;
mod reads;
mod regions;
mod restart;
mod rows;
mod stage;
mod team;

use anyhow::Result;

use crate::cli::{
    Command, FanoutArguments, IdleArguments, LoadArguments, Merge, PublishArguments,
    RestartArguments, Setting,
};
use crate::report::Printer;

pub(crate) async fn run(command: Command) -> Result<()> {
    let setting = command.setting().clone();
    let mut printer = match command {
        Command::All(_) => Printer::table(&setting),
        _ => Printer::each(&setting),
    };
    let commands = match command {
        Command::All(setting) => all(&setting),
        one => vec![one],
    };
    for command in commands {
        Box::pin(one(command, &mut printer)).await?;
    }
    printer.finish()
}

async fn one(command: Command, printer: &mut Printer<'_>) -> Result<()> {
    match command {
        Command::Publish(arguments) => printer.print(publish::batches(&arguments).await?),
        Command::Singles(load) => printer.print(publish::singles(&load).await?),
        Command::Client(load) => printer.print(client::run(&load).await?),
        Command::Rows(load) => printer.print(rows::run(&load).await?),
        Command::Latency(load) => printer.print(latency::run(&load).await?),
        Command::Reads(load) => printer.print(reads::run(&load).await?),
        Command::Fanout(arguments) => {
            for &subscribers in &arguments.subscribers {
                printer.print(fanout::run(&arguments, subscribers).await?)?;
            }
            Ok(())
        }
        Command::Restart(arguments) => printer.print(restart::run(&arguments).await?),
        Command::Idle(arguments) => printer.print(idle::run(&arguments).await?),
        Command::RegionsLatency(arguments) => {
            printer.print(regions::latency::run(&arguments).await?)
        }
        Command::RegionsCatchUp(arguments) => {
            printer.print(regions::catch_up::run(&arguments).await?)
        }
        Command::RegionsScale(arguments) => {
            for report in regions::scale::run(&arguments).await? {
                printer.print(report)?;
            }
            Ok(())
        }
        Command::All(_) => Ok(()),
    }
}

/// Every measurement of one broker with its defaults. A restart needs a broker of its own.
fn all(setting: &Setting) -> Vec<Command> {
    let load = LoadArguments {
        setting: setting.clone(),
        ..LoadArguments::default()
    };
    let setting = setting.clone();
    let publish = PublishArguments {
        merge: Merge::Append,
        load: load.clone(),
    };
    let fanout = FanoutArguments {
        subscribers: vec![1, 10, 100],
        behind: 32,
        load: load.clone(),
    };
    let mut commands = vec![
        Command::Publish(publish),
        Command::Rows(load.clone()),
        Command::Latency(load.clone()),
        Command::Reads(load.clone()),
        Command::Singles(load.clone()),
        Command::Client(load),
        Command::Fanout(fanout),
    ];
    if setting.server.is_none() {
        commands.push(Command::Restart(RestartArguments {
            megabytes: None,
            merge: Merge::Lww,
            setting: setting.clone(),
        }));
    }
    commands.push(Command::Idle(IdleArguments {
        subscribers: None,
        setting,
    }));
    commands
}
