//! Logs: pretty for people, JSON for machines.

use std::error::Error;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{Log, LogFormat};

/// Installs the process's subscriber. Logs go to standard error: standard output is for what a command was
/// asked to print.
pub fn init(config: &Log) -> Result<(), ParseError> {
    // tokio-postgres logs the parameters of statements, e-mail addresses among them.
    let filter = EnvFilter::try_new(&config.filter)?.add_directive("tokio_postgres::query=off".parse()?);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
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

/// An error and all its sources as one line. No source is repeated in an error's own text, so this says
/// everything once.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
