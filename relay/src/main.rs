//! The `relay` binary: reads the command line and runs one command.

mod cli;
mod commands;
mod duration;
mod output;
mod screen;
mod status;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::report_usage(&error),
    };
    cli.start_logging();
    match cli.run() {
        Ok(status) => status,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
