//! Logs: pretty for people, JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{Log, LogFormat};

/// Installs the process's subscriber. Logs go to standard error: standard output is for what a command was
/// asked to print.
pub fn init(config: &Log) -> Result<(), ParseError> {
    // tokio-postgres logs the parameters of statements, e-mail addresses among them.
    let filter = EnvFilter::try_new(&config.filter)?.add_directive("tokio_postgres::query=off".parse()?);
    // A log that cannot be written (a closed pipe, a full disk) loses its lines. The library's own complaint about
    // that would panic in the task that logged, with a card charged and its client waiting.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let pretty = match config.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    if pretty {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    }
    Ok(())
}
