//! How soon the work of a process goes on that was killed under load, at its successor and at another process that lives.
//!
//! Lease and grace are as long as in production, so neither is why it goes on. `CHAOS_KILLS` sets the number of kills of
//! each kind: 1 by default, 20 for the figures in `docs/proofs.md`.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use crate::support::app::{TempDir, TestApp};
use crate::support::client::{Answer, Http, Post, new_key};
use crate::support::eventually;
use crate::support::process::{Process, arguments};
use crate::{number, say};

/// Requests in flight when the process is killed, at least; as many clients send them.
const IN_FLIGHT: i64 = 4;
const CLIENTS: usize = 8;
/// Far more than it takes, for a machine with other things to do. Without the heart it takes 90 s and 5 minutes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Successor {
    /// A process that is started after the kill.
    Restarted,
    /// A process that was there all the time.
    Alive,
}

/// What clients do that got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clients {
    ComeBack,
    GiveUp,
}

/// What was seen of one kill.
#[derive(Debug, Default)]
struct Seen {
    /// Requests without an answer, and jobs that had not been worked, when the process had been killed.
    requests: i64,
    jobs: i64,
    /// From the kill, or from the moment when the restarted process is ready.
    finished_after: Duration,
    worked_after: Duration,
    /// Answers 409 and 503 to clients that came back.
    told_to_wait: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_was_at_goes_on_within_seconds() {
    let kills = number("CHAOS_KILLS", 1);
    for successor in [Successor::Restarted, Successor::Alive] {
        for clients in [Clients::ComeBack, Clients::GiveUp] {
            let mut all = Vec::new();
            for _ in 0..kills {
                all.push(kill_under_load(successor, clients).await);
            }
            let sum = |figure: fn(&Seen) -> i64| all.iter().map(figure).sum::<i64>();
            let times = |figure: fn(&Seen) -> Duration| {
                let mut all: Vec<f64> = all.iter().map(|seen| figure(seen).as_secs_f64()).collect();
                all.sort_by(f64::total_cmp);
                format!("{:.2} s (at most {:.2})", all[all.len() / 2], all[all.len() - 1])
            };
            say(&format!(
                "deaths: {successor:?}, clients {clients:?}: {kills} kills, {} requests and {} jobs under way; requests finished \
                 after {}, jobs worked after {}; {} answers 409 or 503",
                sum(|seen| seen.requests),
                sum(|seen| seen.jobs),
                times(|seen| seen.finished_after),
                times(|seen| seen.worked_after),
                all.iter().map(|seen| seen.told_to_wait).sum::<usize>(),
            ));
        }
    }
}

async fn kill_under_load(successor: Successor, clients: Clients) -> Seen {
    let app = TestApp::with(|config| {
        config.roles.api = false;
        config.stripe_sandbox.faults.latency = Duration::from_millis(150);
    })
    .await;
    let mut killed = spawn(&app, true);
    let mut other = match successor {
        Successor::Alive => Some(spawn(&app, false)),
        Successor::Restarted => None,
    };
    let api = killed.1.api().await;
    if let Some((_, other)) = &other {
        other.api().await;
    }
    let mut unanswered = load(&app, &api, &mut killed.1).await;
    let mut seen = Seen {
        requests: app.count("idempotency_keys WHERE response_code IS NULL").await,
        jobs: app.count("staged_jobs").await + app.count("jobs WHERE finished_at IS NULL").await,
        ..Seen::default()
    };
    let process = other.get_or_insert_with(|| spawn(&app, false));
    let api = process.1.api().await;
    let began = Instant::now();
    if clients == Clients::GiveUp {
        unanswered.clear();
    }
    let mut back = JoinSet::new();
    for post in unanswered {
        back.spawn(insist(api.clone(), post));
    }
    let until_none = async |sql: &str| {
        while app.count(sql).await > 0 {
            assert!(began.elapsed() < PATIENCE, "still {sql}: {:#?}", process.1.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        began.elapsed()
    };
    seen.finished_after = until_none("idempotency_keys WHERE response_code IS NULL").await;
    until_none("staged_jobs").await;
    seen.worked_after = until_none("jobs WHERE finished_at IS NULL").await;
    for (answer, told_to_wait) in back.join_all().await {
        assert_eq!(answer.status, 201, "{answer:?}");
        seen.told_to_wait += told_to_wait;
    }
    app.assert_sound().await;
    seen
}

/// Starts a process with every role, and all times as in production.
fn spawn(app: &TestApp, first: bool) -> (TempDir, Process) {
    let dir = TempDir::new();
    let sandbox = format!("stripe.api_base=http://{}", app.sandbox_address);
    let more = [
        sandbox.as_str(),
        "roles.stripe_sandbox=false",
        "reaper.retention=72h",
        "idempotency.lock_timeout=90s",
        "stripe.timeout=10s",
        "completer.grace=5m",
        "completer.retry_after=60s",
        // The one that is killed leaves jobs to work.
        if first { "worker.concurrency=1" } else { "worker.concurrency=8" },
        "worker.retry_after=10s",
    ];
    let process = Process::spawn(&arguments(Some(&app.database_config), dir.path(), &more));
    (dir, process)
}

/// Sends requests until some are in flight, kills the process, and returns those without an answer.
async fn load(app: &TestApp, api: &Http, process: &mut Process) -> Vec<Post> {
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let api = api.clone();
        clients.spawn(async move {
            loop {
                let post = Post::default().key(&new_key());
                if api.try_post(post.clone()).await.is_err() {
                    return post;
                }
            }
        });
    }
    eventually("requests in flight after some answers", async || {
        let answered = app.count("idempotency_keys WHERE response_code = 201").await >= IN_FLIGHT;
        let in_flight = app.count("idempotency_keys WHERE lease_token IS NOT NULL").await >= IN_FLIGHT;
        (answered && in_flight).then_some(())
    })
    .await;
    process.signal(Signal::SIGKILL);
    process.exit().await;
    clients.join_all().await
}

/// Repeats a request until it has its answer, and counts how often it is told to come back later.
async fn insist(api: Http, post: Post) -> (Answer, usize) {
    let began = Instant::now();
    let mut told_to_wait = 0;
    loop {
        let answer = api.post(post.clone()).await;
        if !matches!(answer.status, 409 | 503) || began.elapsed() > PATIENCE {
            return (answer, told_to_wait);
        }
        told_to_wait += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
