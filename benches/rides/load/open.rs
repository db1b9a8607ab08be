//! The open loop: requests are due at random moments, whether or not earlier ones have been answered, as the requests
//! of many independent clients are.
//!
//! The wait is counted from the moment that a request was due, not from when a client was free to send it. So a stall
//! of the server counts for every request that was due in the meantime (a closed loop hides those: "coordinated
//! omission"). The moments are a Poisson process, as pgbench's are under `--rate`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Tally;
use super::keys::Keys;
use super::wire::Connection;

/// When requests are due, and permission to send those that are.
struct Schedule {
    due: Vec<Instant>,
    next: AtomicUsize,
    /// A permit for each request that is due; taken in the order of asking, so that all connections are used.
    permits: Semaphore,
    over: AtomicBool,
}

/// Sends `rate` requests a second over `connections` for `warm_up` and then for `window`, or until `enough` resolves
/// if that is sooner.
pub(crate) async fn run(
    address: SocketAddr,
    connections: usize,
    rate: f64,
    (warm_up, window): (Duration, Duration),
    enough: impl Future<Output = ()>,
) -> Tally {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Connection::open(address).await.expect("connect to the API"));
    }
    let start = Instant::now();
    let began = start + warm_up;
    let schedule = Arc::new(Schedule {
        due: moments(start, rate, warm_up + window),
        next: AtomicUsize::new(0),
        permits: Semaphore::new(0),
        over: AtomicBool::new(false),
    });
    let pacer = pace(Arc::clone(&schedule));
    let mut running = JoinSet::new();
    for client in clients {
        running.spawn(one(client, Arc::clone(&schedule), began));
    }
    let mut tally = Tally::default();
    let mut enough = std::pin::pin!(enough);
    let mut curtailed = false;
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(ended) => tally.add(ended.expect("no client panics")),
                None => break,
            },
            () = enough.as_mut(), if !curtailed => {
                curtailed = true;
                schedule.over.store(true, Ordering::Relaxed);
                schedule.permits.close();
            }
        }
    }
    tally.window = window.min(began.elapsed());
    pacer.join().expect("the pacer does not panic");
    tally
}

fn moments(start: Instant, rate: f64, length: Duration) -> Vec<Instant> {
    let mut at = 0.0;
    let gaps = std::iter::repeat_with(|| -(1.0 - rand::random::<f64>()).ln() / rate);
    let times = gaps.map(|gap| {
        at += gap;
        at
    });
    times.take_while(|at| *at < length.as_secs_f64()).map(|at| start + Duration::from_secs_f64(at)).collect()
}

/// Adds a permit for each request when it is due. Runs on its own thread, because the runtime's timers are whole
/// milliseconds, which is as long as a ride takes.
fn pace(schedule: Arc<Schedule>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for due in &schedule.due {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if schedule.over.load(Ordering::Relaxed) {
                return;
            }
            schedule.permits.add_permits(1);
        }
        // The clients send the requests that are left, and stop when `due` is used up.
        schedule.over.store(true, Ordering::Relaxed);
        schedule.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    })
}

async fn one(mut client: Connection, schedule: Arc<Schedule>, began: Instant) -> Tally {
    let mut tally = Tally::default();
    loop {
        let Ok(permit) = schedule.permits.acquire().await else { break };
        permit.forget();
        let Some(due) = schedule.due.get(schedule.next.fetch_add(1, Ordering::Relaxed)) else { break };
        let key = Keys::Fresh.next().expect("there are always more");
        let answer = client.book(&key).await;
        if *due >= began {
            tally.answers += 1;
            let wait = due.elapsed().as_micros();
            tally.waits_us.push(u32::try_from(wait).unwrap_or(u32::MAX));
        }
        tally.count(&answer);
    }
    tally
}
