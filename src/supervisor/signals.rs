//! SIGINT and SIGTERM: the first starts the drain, the second ends the process at once.

use futures_util::StreamExt;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio_util::sync::CancellationToken;

/// Exit code after a second signal: 128 + SIGINT, as shells have it.
const SECOND_SIGNAL: i32 = 130;

/// Listens for as long as the process lives.
#[derive(Debug)]
pub struct Signals {
    first: CancellationToken,
}

impl Signals {
    /// Starts to listen, so that from here on neither signal kills the process by itself.
    pub fn listen() -> std::io::Result<Self> {
        let mut signals = signal_hook_tokio::Signals::new([SIGINT, SIGTERM])?;
        let first = CancellationToken::new();
        let asked = first.clone();
        tokio::spawn(async move {
            while let Some(signal) = signals.next().await {
                if asked.is_cancelled() {
                    tracing::warn!(signal, "second signal: leaving at once");
                    std::process::exit(SECOND_SIGNAL);
                }
                tracing::info!(signal, "shutting down; a second signal ends the process at once");
                asked.cancel();
            }
        });
        Ok(Self { first })
    }

    /// Resolves at the first signal.
    pub async fn first(&self) {
        self.first.cancelled().await;
    }
}
