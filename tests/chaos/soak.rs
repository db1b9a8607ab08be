//! Traffic on three processes over one Postgres, while all of them are killed at random; then the rules are checked.
//!
//! A process is killed by `kill -9` and started again; Postgres is stopped without a checkpoint and started again; the
//! sandbox fails charges. Clients repeat their requests until they are answered. When all have been, every invariant
//! must hold. `CHAOS_SOAK_SECONDS` sets how long this lasts, `CHAOS_SEED` which process is killed when.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rocket_rides_atomic::database::embedded::EmbeddedPostgres;
use rocket_rides_atomic::http::Listener;
use rocket_rides_atomic::stripe;
use rocket_rides_atomic::stripe::sandbox::{self, FaultControl, Faults, Ledger};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::app::{TempDir, pool};
use crate::support::books::{AT_REST, verify};
use crate::support::client::{DECLINED_USER, GOOD_USER, Http, Post, new_key};
use crate::support::eventually;
use crate::support::process::{Process, arguments, free_port};
use crate::{number, say, seed};

const PROCESSES: usize = 3;
const CLIENTS: usize = 12;
/// A process must be able to serve this soon after Postgres can.
const READY_AGAIN: Duration = Duration::from_secs(2);

/// One of the processes: it keeps its address when it is started again.
struct Place {
    arguments: Vec<String>,
    api: Http,
    process: Option<Process>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_everything_is_killed() {
    let (seconds, seed) = (number("CHAOS_SOAK_SECONDS", 20), seed());
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = TempDir::new();
    let data_dir = dir.path().join("postgres");
    let mut postgres = EmbeddedPostgres::start(&data_dir).await.unwrap();
    let faults = Faults {
        seed: Some(seed),
        latency: Duration::from_millis(5),
        server_error: 0.03,
        reply_lost: 0.05,
        truncated: 0.03,
        reset: 0.03,
        charged_then_server_error: 0.03,
        ..Faults::default()
    };
    let sandbox = Arc::new(Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap());
    let stripe = format!("http://{}", sandbox.address());
    let ledger = Arc::new(Ledger::open(&dir.path().join("ledger"), Duration::from_secs(86400)).unwrap());
    let faults = Arc::new(FaultControl::new(faults));
    tokio::spawn(sandbox::serve(sandbox, ledger, Arc::clone(&faults), CancellationToken::new()));
    let mut places: Vec<Place> = (0..PROCESSES).map(|_| Place::new(&postgres, &stripe, dir.path())).collect();
    for place in &mut places {
        place.start().await;
    }

    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let apis: Vec<_> = places.iter().map(|place| place.api.clone()).collect();
        clients.spawn(client(apis, StdRng::seed_from_u64(rng.random()), Arc::clone(&over), Arc::clone(&answered)));
    }

    let (began, mut kills, mut crashes) = (Instant::now(), 0, 0);
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(seconds as u64) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..1200))).await;
        if rng.random_bool(0.75) {
            let place = &mut places[rng.random_range(0..PROCESSES)];
            place.kill().await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..500))).await;
            place.start().await;
            kills += 1;
        } else {
            crash(postgres).await;
            postgres = EmbeddedPostgres::start(&data_dir).await.unwrap();
            slowest = slowest.max(until_all_ready(&places).await);
            crashes += 1;
        }
    }
    over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }

    faults.set(Faults::default());
    let database = pool(&postgres.config()).await;
    let stripe = stripe::Client::new(&stripe, &"sk_test_soak".into(), Duration::from_secs(10)).unwrap();
    let report = eventually("everything to come to rest", async || {
        let report = verify(&database, stripe.clone(), AT_REST).await;
        report.violated().is_empty().then_some(report)
    });
    let Ok(report) = tokio::time::timeout(Duration::from_secs(25), report).await else {
        panic!("seed {seed}: {}", verify(&database, stripe.clone(), AT_REST).await);
    };
    assert!(kills + crashes > 0 && slowest < READY_AGAIN, "ready {slowest:?} after Postgres came back");
    say(&format!(
        "soak: {} requests answered, {kills} processes and {crashes} databases killed, ready again within {slowest:?}, \
         seed {seed}, {:.1} s\n{report}",
        answered.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64()
    ));
}

impl Place {
    fn new(postgres: &EmbeddedPostgres, stripe: &str, dir: &Path) -> Self {
        let address = free_port();
        let (listen, stripe) = (format!("api.listen={address}"), format!("stripe.api_base={stripe}"));
        let more = [
            listen.as_str(),
            stripe.as_str(),
            "roles.stripe_sandbox=false",
            "stripe.timeout=500ms",
            "idempotency.lock_timeout=6s",
            "completer.grace=1s",
            "completer.retry_after=200ms",
            "completer.max_attempts=1000",
            "receipts.timeout=1s",
            "worker.lease=6s",
            "worker.retry_after=200ms",
            "worker.poll_interval=100ms",
            "completer.poll_interval=100ms",
            "reaper.retention=72h",
            "log.filter=warn,rocket_rides_atomic::supervisor=info",
        ];
        let arguments = arguments(Some(&postgres.config()), dir, &more);
        Self { arguments, api: Http::new(address), process: None }
    }

    /// Starts the process and waits until it is ready.
    async fn start(&mut self) {
        self.process = Some(Process::spawn(&self.arguments));
        let api = &self.api;
        eventually("a process that is ready", async || api.is_ready().await.then_some(())).await;
    }

    async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::SIGKILL);
            process.exit().await;
        }
    }
}

/// Stops Postgres as a power cut would: without a checkpoint, and what was not flushed is lost with the process's
/// buffers.
async fn crash(mut postgres: EmbeddedPostgres) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(postgres.pid()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGQUIT).unwrap();
    postgres.exited().await;
}

async fn until_all_ready(places: &[Place]) -> Duration {
    let began = Instant::now();
    for place in places {
        eventually("a process that is ready again", async || place.api.is_ready().await.then_some(())).await;
    }
    began.elapsed()
}

/// Books rides. Repeats each at any of the processes until it is answered, and then once more.
async fn client(apis: Vec<Http>, mut rng: StdRng, over: Arc<AtomicBool>, answered: Arc<AtomicUsize>) {
    while !over.load(Ordering::Relaxed) {
        let user = if rng.random_bool(0.1) { DECLINED_USER } else { GOOD_USER };
        let post = Post::default().key(&new_key()).user(user);
        // Some clients give up after their first attempt, and leave the rest to the completer.
        if rng.random_bool(0.1) {
            let _ = apis[rng.random_range(0..apis.len())].try_post(post.raising()).await;
            continue;
        }
        let first = insist(&apis, &post, &mut rng).await;
        let again = insist(&apis, &post, &mut rng).await;
        assert_eq!((first.status, &first.body), (again.status, &again.body));
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

async fn insist(apis: &[Http], post: &Post, rng: &mut StdRng) -> crate::support::client::Answer {
    let began = Instant::now();
    loop {
        match apis[rng.random_range(0..apis.len())].try_post(post.clone()).await {
            Ok(answer) if matches!(answer.status, 201 | 402) => return answer,
            Ok(answer) => assert!(matches!(answer.status, 409 | 503), "{answer:?}"),
            Err(_) => {}
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no answer for {:?}", post.headers);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
