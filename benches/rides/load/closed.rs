//! The closed loop: each client sends its next request when it has the answer to the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Tally;
use super::keys::Keys;
use super::wire::Connection;

/// Runs `connections` clients for `warm_up` and then `window`, or until there are no more keys.
///
/// The clients start one after the other, in the first half of the warm-up. If all started at once they would stay in
/// step, because the sandbox takes the same time for every charge; real clients do not stay in step.
pub(crate) async fn run(
    address: SocketAddr,
    connections: usize,
    keys: Keys,
    warm_up: Duration,
    window: Duration,
) -> Tally {
    let keys = Arc::new(keys);
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Connection::open(address).await.expect("connect to the API"));
    }
    let first = Instant::now();
    let began = first + warm_up;
    let ends = began + window;
    let mut running = JoinSet::new();
    for (n, client) in clients.into_iter().enumerate() {
        let comes = first + warm_up.mul_f64(0.5 * n as f64 / connections as f64);
        let keys = Arc::clone(&keys);
        running.spawn(async move {
            tokio::time::sleep_until(comes.into()).await;
            one(client, keys, began, ends).await
        });
    }
    let mut tally = Tally::default();
    while let Some(ended) = running.join_next().await {
        tally.add(ended.expect("no client panics"));
    }
    // A set of keys that was used up ends the measurement early.
    tally.window = window.min(began.elapsed());
    tally
}

async fn one(mut client: Connection, keys: Arc<Keys>, began: Instant, ends: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < ends
        && let Some(key) = keys.next()
    {
        let answer = client.book(&key).await;
        let now = Instant::now();
        if answer.is_ok() && now >= began && now < ends {
            tally.answers += 1;
        }
        tally.count(&answer);
    }
    tally
}
