//! What every test uses: its own database, a whole supervisor on free ports, and a client.

pub mod app;
pub mod books;
pub mod broker;
pub mod client;
pub mod cluster;
pub mod framing;
pub mod keys;
pub mod nats;
pub mod process;
pub mod processes;
pub mod receipts;
pub mod redis;
pub mod sandbox;
pub mod server;
pub mod smtp;
pub mod sources;
pub mod tap;
pub mod temp;
pub mod tls;

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// A condition that does not come true within this time never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` returns something, and returns it.
pub async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        look_again(what, began).await;
    }
}

/// Like [`eventually`], for a condition that changes what it has borrowed. Such a wait stays in the task that it began
/// in: the compiler does not see that it could be sent to another thread.
pub async fn eventually_mut<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        look_again(what, began).await;
    }
}

async fn look_again(what: &str, began: Instant) {
    assert!(began.elapsed() < PATIENCE, "still waiting after {PATIENCE:?}: {what}");
    sleep(Duration::from_millis(10)).await;
}
