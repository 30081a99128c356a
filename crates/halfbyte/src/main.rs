//! The command line: parses, runs one command, and turns errors into one line and an exit code.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | `error: ...` on standard error says what was wrong |
//! | 2 | the command line itself was wrong |
//! | 3 | `compare` measured everything, and a limit that the user gave is missed |
//! | 130 | stopped by Ctrl-C |

mod cli;
mod commands;
mod fail;
mod output;
mod progress;
mod recipes;
mod system;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    system::keep_freed_memory();
    let cli = Cli::parse();
    system::log_to_stderr(cli.verbose);
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail::report(&error),
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Demo(args) => commands::demo::run(args),
        Command::Plan(args) => commands::plan::run(args, cli.verbose > 0),
        Command::Quantize(args) => commands::quantize::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Compare(args) => commands::compare::run(args),
        Command::Ablate(args) => commands::ablate::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Transform(args) => commands::transform::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Recipes(args) => commands::recipes::run(args),
        Command::Synth(args) => commands::synth::run(args),
    }
}
