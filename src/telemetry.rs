//! Logs: pretty for people, JSON for machines.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// `[log]`: what is logged, and how.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Pretty for people, JSON for machines.
    pub format: Format,
    /// Directives as of tracing's `EnvFilter`: `info`, `rocket_rides_atomic=debug`, `atomic_phases=debug`.
    pub filter: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Auto, filter: "info".to_owned() }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Installs the process's subscriber. Logs go to standard error: standard output is for the result of a command.
pub fn init(settings: &Settings) -> Result<(), ParseError> {
    // tokio-postgres logs the parameters of statements, e-mail addresses among them.
    let filter = EnvFilter::try_new(&settings.filter)?.add_directive("tokio_postgres::query=off".parse()?);
    // A log that cannot be written (a closed pipe, a full disk) loses its lines. The library's own message about that
    // would panic in the task that logged, perhaps when a card was charged and its client waits.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let pretty = match settings.format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Pretty => true,
        Format::Json => false,
    };
    if pretty {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    }
    Ok(())
}
