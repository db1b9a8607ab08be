//! Zombies: workers that go on after others have taken over their requests.
//!
//! A worker is held in the middle of a request, as by a long pause of its virtual machine or a delayed packet
//! ([`stopped`] does it by SIGSTOP). Its lease runs out, another worker (the successor) takes the request over, and
//! then the first one goes on with its old state. From that moment on it must change nothing: every row of every table
//! stays as it was, and the card is charged once.
//!
//! The successor has either finished by then, or only just taken the lease. The second is the harder case: the request
//! is still where the first worker left it, and only the lease's token distinguishes the two.
//!
//! `CHAOS_ZOMBIES` sets the number of rounds: 128 by default, each case about once; 1,000 for a thorough run.
//! `CHAOS_SEED` replays a run.

mod stopped;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use atomic_phases::roles::periodic::Periodic;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::task::JoinHandle;

use super::crew::Workers;
use super::kind::{Books, Kind};
use super::proxy::{Fault, Plan, Strike};
use crate::support::app::{TestApp, hold_the_heart};
use crate::support::client::Post;
use crate::{number, say, seed};

/// A worker that is late, or that takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    /// The API, asked by a client.
    Api,
    /// The API, asked to fail half-way: its last step is to release a lease that may no longer be its own.
    Failing,
    /// A completer, for a client that gave up.
    Completer,
}

impl Worker {
    const ALL: [Self; 3] = [Self::Api, Self::Failing, Self::Completer];
    const SUCCESSORS: [Self; 2] = [Self::Api, Self::Completer];
}

/// A round: which worker is late, where and how, and whether its successor has finished when it goes on.
#[derive(Debug, Clone, Copy)]
struct Round {
    kind: Kind,
    worker: Worker,
    step: usize,
    fault: Fault,
    successor: Worker,
    successor_finished: bool,
}

impl Workers {
    /// Runs one attempt of a worker at the request.
    fn work(self: &Arc<Self>, worker: Worker, post: &Post) -> JoinHandle<()> {
        let (crew, post) = (Arc::clone(self), post.clone());
        tokio::spawn(async move {
            let (post, expected) = match worker {
                Worker::Completer => {
                    crew.completer.run_once().await.unwrap();
                    return;
                }
                Worker::Api => (post, [201, 409, 409]),
                Worker::Failing => (post.raising(), [201, 409, 500]),
            };
            let answer = crew.api.post(post).await;
            assert!(expected.contains(&answer.status), "{answer:?}");
        })
    }

    /// Returns how many boundaries this worker crosses when nothing holds it.
    async fn steps(self: &Arc<Self>, app: &TestApp, kind: Kind, worker: Worker) -> usize {
        let mut crossed = 0;
        // The first run prepares statements; the second is like all later ones.
        for _ in 0..2 {
            let post = request_for(app, kind, worker).await;
            self.route.script.arm(Plan::new());
            self.work(worker, &post).await.unwrap();
            crossed = self.route.script.disarm().0.len();
            assert_eq!(app.post(post).await.status, 201);
        }
        crossed
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_outlived_its_lease_writes_nothing() {
    let (rounds, seed, began) = (number("CHAOS_ZOMBIES", 128), seed(), Instant::now());
    let (cases, places) = run_rounds(rounds, seed).await;
    say(&format!(
        "zombies: {rounds} rounds, {cases} cases at {places} places, 0 writes by stale workers, 0 double charges, \
         seed {seed}, {:.1} s",
        began.elapsed().as_secs_f64()
    ));
}

/// Plays this many rounds and panics at the first in which a stale worker wrote something. Returns how many cases there
/// are, and at how many places workers were held.
async fn run_rounds(rounds: usize, seed: u64) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let app = TestApp::with(hold_the_heart).await;
    let (late, other) = (Workers::new(&app, None).await, Workers::new(&app, None).await);
    let cases = cases(&app, &late, &other).await;
    let (mut places, mut left) = (BTreeSet::new(), Vec::new());
    for n in 0..rounds {
        // Each case once, in any order, before any is repeated.
        if left.is_empty() {
            left.clone_from(&cases);
            left.shuffle(&mut rng);
        }
        let round: Round = left.pop().expect("some cases");
        let context = format!("seed {seed}, round {n}, {round:?}");
        places.insert(outlive(&app, &late, &other, round, &context).await);
    }
    assert_eq!(app.count("idempotency_keys WHERE response_code IS DISTINCT FROM 201").await, 0);
    assert_eq!(app.count("rides").await + app.count("refunds").await, app.count("staged_jobs").await);
    (cases.len(), places.len())
}

async fn cases(app: &TestApp, late: &Arc<Workers>, other: &Arc<Workers>) -> Vec<Round> {
    let mut cases = Vec::new();
    for (kind, worker) in Kind::ALL.into_iter().flat_map(|kind| Worker::ALL.map(|worker| (kind, worker))) {
        other.steps(app, kind, worker).await;
        for step in 1..=late.steps(app, kind, worker).await {
            for fault in Fault::HOLDING {
                for successor in Worker::SUCCESSORS {
                    let round =
                        |successor_finished| Round { kind, worker, step, fault, successor, successor_finished };
                    cases.extend([round(true), round(false)]);
                }
            }
        }
    }
    cases
}

/// Plays one round. Returns where the worker was held.
async fn outlive(app: &TestApp, late: &Arc<Workers>, other: &Arc<Workers>, round: Round, context: &str) -> String {
    let Round { kind, worker, step, fault, successor, successor_finished } = round;
    // Counted first: for a completer, `abandoned_by` makes a part of the rows.
    let (prepared, before) = prepare(app, kind).await;
    let post = abandoned_by(app, worker, prepared).await;
    late.route.script.arm(vec![Strike::at(step, fault)]);
    let work = late.work(worker, &post);
    late.route.script.until_held().await;

    expire_lease(app, &post).await;
    // Before there is a key, a completer finds nothing; and a request that the worker has finished is not taken over.
    let finished = is_finished(app, &post).await;
    let successor = if finished == Some(false) { successor } else { Worker::Api };
    let successor_finished = successor_finished || finished == Some(true);
    let taking_the_lease = if successor_finished { Plan::new() } else { vec![Strike::at(1, Fault::HoldReply)] };
    other.route.script.arm_from("execute update idempotency_keys", taking_the_lease);
    let mut successor_work = other.work(successor, &post);
    if successor_finished {
        (&mut successor_work).await.unwrap();
    } else {
        other.route.script.until_held().await;
    }

    let rows = digest(app).await;
    late.route.script.release();
    work.await.unwrap();
    assert_eq!(digest(app).await, rows, "{context}: the stale worker wrote something");
    if !successor_finished {
        other.route.script.release();
        successor_work.await.unwrap();
    }
    let answer = app.post(post).await;
    assert_eq!((answer.status, answer.is_replay()), (201, true), "{context}: {answer:?}");
    assert_eq!(Books::of(app).await, before + kind.leaves(true), "{context}");
    let (_, fired) = late.route.script.disarm();
    let [(fault, boundary)] = fired.as_slice() else { panic!("{context}: not held") };
    format!("{kind:?} {worker:?} {fault:?} {boundary}")
}

/// Makes the lease run out and the request due for the completer, as time does.
pub async fn expire_lease(app: &TestApp, post: &Post) {
    let sql = format!(
        "UPDATE idempotency_keys SET next_attempt_at = now(),
             locked_at = CASE WHEN lease_token IS NOT NULL THEN now() - interval '1 hour' END
         WHERE idempotency_key = '{}' AND response_code IS NULL",
        key(post)
    );
    app.execute(&sql).await;
}

/// Returns whether the request has its answer; `None` if its key is not there yet.
async fn is_finished(app: &TestApp, post: &Post) -> Option<bool> {
    let sql = "SELECT response_code IS NOT NULL FROM idempotency_keys WHERE idempotency_key = $1";
    app.query(sql, &[&key(post)]).await.first().map(|row| row.get(0))
}

/// Returns a new request, and the counts before it.
async fn prepare(app: &TestApp, kind: Kind) -> (Post, Books) {
    (kind.request(app).await, Books::of(app).await)
}

/// Leaves the request half-way if the worker is a completer: it works on such requests only.
async fn abandoned_by(app: &TestApp, worker: Worker, post: Post) -> Post {
    if worker == Worker::Completer {
        assert_eq!(app.post(post.clone().raising()).await.status, 500);
        expire_lease(app, &post).await;
    }
    post
}

async fn request_for(app: &TestApp, kind: Kind, worker: Worker) -> Post {
    abandoned_by(app, worker, kind.request(app).await).await
}

fn key(post: &Post) -> &str {
    post.headers.iter().find(|(name, _)| *name == "idempotency-key").map(|(_, key)| key.as_str()).expect("a key")
}

/// Returns a digest of all rows of all tables.
async fn digest(app: &TestApp) -> String {
    // A process that wakes may say that it lives.
    const TABLES: &str = "SELECT relname::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'processes'";
    let tables = app.query(TABLES, &[]).await;
    let rows = tables.iter().map(|row| {
        let table: &str = row.get(0);
        format!("SELECT '{table} ' || t::text AS row FROM {table} t")
    });
    let all = rows.collect::<Vec<_>>().join(" UNION ALL ");
    app.get(&format!("SELECT md5(string_agg(row, E'\\n' ORDER BY row)) FROM ({all}) rows")).await
}
