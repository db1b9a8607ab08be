//! Measures the service on this machine and compares it with pgbench, on the same Postgres within the same minutes.
//!
//! ```sh
//! cargo bench                                  # everything, about a quarter of an hour
//! cargo bench -- --quick                       # a try: seconds per row, figures worth little
//! cargo bench -- --only rides,replays
//! ```
//!
//! The system under test is the release binary in a process of its own, with `config/production.toml` (so it writes
//! one log line a request, to a file) over a private Postgres with fsync on. The sandbox that stands in for Stripe is
//! another process. Everything, the load generator included, shares this machine's cores; so figures of different
//! machines, or of different hours, say little about each other. What counts is the ratios: their two sides are
//! measured in turns within one run, and the medians over the rounds are reported.
//!
//! - [`rows`]: what is measured, a file for each part of the table.
//! - [`load`]: a load generator that needs little processor time: a closed loop for throughput, an open one for
//!   latency.
//! - [`servers`]: Postgres, the system under test, the sandbox, Redis and NATS, and pgbench to compare with.
//! - [`report`], [`plot`], [`options`]: the table, the picture, the command line.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is for standard output, progress is not")]

mod load;
mod options;
mod plot;
mod report;
mod rows;
mod servers;

use std::process::ExitCode;

use options::Options;
use servers::postgres;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), String> {
    // Replaces this process if its private Postgres would not take enough connections; then it does not return.
    let binaries = postgres::binaries::with_room_for_many_clients()?;
    rocket_rides_atomic::open_files::raise_limit();
    // One thread: the load generator must leave the cores to what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(rows::run(options, binaries))
}
