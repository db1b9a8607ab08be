//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use rocket_rides_atomic::cli::Cli;

fn main() -> std::io::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    let code = runtime.block_on(cli.run());
    // Threads that are still blocked (a name look-up, say) must not keep the process alive beyond the shutdown's
    // deadline.
    runtime.shutdown_background();
    Ok(code)
}
