//! Keeps the private Postgres running.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::embedded::{EmbeddedError, EmbeddedPostgres};

/// How long a fast shutdown may take before Postgres is told to end at once; it recovers at the next start.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why the role ended although it was not told to stop.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The server ended by itself.
    #[error("Postgres ended by itself ({0})")]
    Exited(ExitStatus),
    /// It could not be started again.
    #[error("Postgres did not start again")]
    Start(#[from] EmbeddedError),
}

/// Watches the server in `running`, which the supervisor started; starts it again if an earlier run of this role saw it
/// end.
pub async fn run(
    running: Arc<Mutex<Option<EmbeddedPostgres>>>,
    data_dir: PathBuf,
    stop: CancellationToken,
) -> Result<(), PostgresError> {
    let mut running = running.lock().await;
    let mut postgres = match running.take() {
        Some(postgres) => postgres,
        None => EmbeddedPostgres::start(&data_dir).await?,
    };
    let exited = tokio::select! {
        status = postgres.exited() => Some(status),
        () = stop.cancelled() => None,
    };
    match exited {
        Some(status) => Err(PostgresError::Exited(status)),
        None => {
            postgres.stop(STOP_GRACE).await;
            Ok(())
        }
    }
}
