//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use rocket_rides_atomic::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().run().await
}
