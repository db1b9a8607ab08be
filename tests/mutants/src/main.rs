//! Puts the tests on trial: each clause of each SQL statement is dropped or weakened, one at a time, and faults that an
//! engineer might make are planted in the source. A test must fail for each.
//!
//! See `tests/mutants/README.md`.

mod planted;
mod sql;
mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Puts the tests on trial")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mutants of the program's SQL statements, run against the tests that have them sent
    Sql(sql::Options),
    /// Faults planted in the source, run against the tests that are to notice them
    Planted(planted::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let root = project();
    let work = async {
        match Arguments::parse().command {
            Command::Sql(options) => sql::run(&root, &options).await,
            Command::Planted(options) => planted::run(&root, &options).await,
        }
    };
    // Dropping the work ends the processes that it has started.
    let ended = tokio::select! {
        ended = work => ended,
        () = told_to_stop() => Err("stopped".into()),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::from(2)
        }
    }
}

async fn told_to_stop() {
    let mut terminated = signal(SignalKind::terminate()).expect("a handler");
    tokio::select! {
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Returns the root of the project that this was built in.
fn project() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}
