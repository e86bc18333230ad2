//! The commands.
//!
//! | module | holds |
//! |---|---|
//! | [`arguments`], [`age`] | what can be typed |
//! | [`connect`] | the broker that a command talks to |
//! | [`failure`] | what goes wrong, and the exit code that says so |
//! | [`output`] | tables on a terminal, plain lines in a pipe, JSON where asked |
//! | [`broker`] | `dev` and `serve` |
//! | [`dev`] | `dev` with several regions |
//! | [`stream`], [`publish`], [`subscribe`], [`rows`], [`regions`] | the commands that talk to a broker |
//! | [`waiting`] | what they wait for in other regions |
//! | [`rejoin`] | putting the data of a parked broker aside |
//! | [`verify`], [`doctor`] | whether what is on disk holds, and whether the machine does |

mod age;
mod arguments;
mod broker;
mod connect;
mod dev;
mod doctor;
mod failure;
mod logging;
mod output;
mod publish;
mod regions;
mod rejoin;
mod rows;
mod stream;
mod subscribe;
mod verify;
mod waiting;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use crate::demo;
use arguments::{Arguments, Command, ConfigArguments};

pub(crate) use arguments::{BrokerFlags, DemoArguments};
pub(crate) use broker::{command, interrupted, server_flag};
pub(crate) use failure::Failure;
pub(crate) use logging::start_quietly as start_logging;
pub(crate) use output::{Output, hint, progress};

/// How long the tasks of a broker that has stopped may take to end.
const CLOSING: Duration = Duration::from_secs(10);

/// Runs the command that was typed.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::from(anyhow::Error::from(error)).report(),
    };
    let serves = arguments.command.serves();
    let ended = runtime.block_on(Box::pin(run(arguments.command)));
    if serves {
        // Tasks hold the tables, and RocksDB aborts the process when it ends with them open.
        runtime.shutdown_timeout(CLOSING);
    } else {
        // Reading standard input cannot be interrupted, so nothing waits for it.
        runtime.shutdown_background();
    }
    match ended {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// What every command ends with.
type Ended = Result<ExitCode, Failure>;

async fn run(command: Command) -> Ended {
    match command {
        Command::Dev(arguments) => dev::run(arguments).await,
        Command::Serve(arguments) => broker::serve(arguments).await,
        Command::Stream(verb) => stream::run(verb).await,
        Command::Pub(arguments) => publish::run(arguments).await,
        Command::Sub(arguments) => subscribe::run(arguments).await,
        Command::Get(arguments) => rows::get(arguments).await,
        Command::Put(arguments) => rows::put(arguments).await,
        Command::Delete(arguments) => rows::delete(arguments).await,
        Command::Rows(arguments) => rows::list(arguments).await,
        Command::Regions(arguments) => regions::run(arguments).await,
        Command::Bench(command) => {
            Box::pin(anabranch_bench::run(command)).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(arguments) => Box::pin(demo::run(arguments)).await,
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Rejoin(arguments) => rejoin::run(arguments).await,
        Command::Doctor(arguments) => doctor::run(arguments).await,
        Command::Config(arguments) => show_configuration(&arguments),
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "anabranch", &mut script);
            // Whoever reads may have seen enough, which `generate` would take for a bug.
            std::io::Write::write_all(&mut std::io::stdout(), &script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn show_configuration(arguments: &ConfigArguments) -> Ended {
    let output = Output::new(arguments.json);
    if arguments.reference {
        output.line(&crate::config::as_table())?;
        return Ok(ExitCode::SUCCESS);
    }
    let loaded = arguments.flags.load()?;
    let text = match arguments.json {
        true => crate::config::as_json_lines(&loaded),
        false => crate::config::as_toml(&loaded),
    };
    output.line(&text)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Arguments::command().debug_assert();
    }
}
