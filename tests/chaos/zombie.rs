//! Workers that come back from the dead.
//!
//! A worker is held in the middle of a request, as by a long pause of its virtual machine or a packet on a detour
//! ([`stopped`] does it by SIGSTOP); its lease runs out; somebody else takes the request over; and then the worker goes on, with all it believed.
//! From that moment on it must change nothing: every row of every table stays as it was, and the card is charged once.
//!
//! The heir has either finished by then, or only just taken the lease. The second is the harder case: the request is
//! still where the worker left it, and nothing but the lease's token tells the two apart.
//!
//! `CHAOS_ZOMBIES` says how many rounds: 128 by default, each case about once; 1,000 for a night's sleep.
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

use super::crew::Crew;
use super::kind::{Books, Kind};
use super::proxy::{Fault, Plan, Strike};
use crate::support::client::Post;
use crate::support::world::World;
use crate::{number, say, seed};

/// Who is late, or takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    /// The API, asked by a client.
    Api,
    /// The API, asked to fail half-way: what it does last is give back a lease that may not be its own any more.
    Failing,
    /// A completer, for a client that gave up.
    Completer,
}

impl Worker {
    const ALL: [Self; 3] = [Self::Api, Self::Failing, Self::Completer];
    const HEIRS: [Self; 2] = [Self::Api, Self::Completer];
}

/// Who is late, where and how, and how far its heir has come when it wakes.
#[derive(Debug, Clone, Copy)]
struct Round {
    kind: Kind,
    worker: Worker,
    step: usize,
    fault: Fault,
    heir: Worker,
    heir_finished: bool,
}

impl Crew {
    /// Has a worker take the request up once.
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

    /// How many boundaries this worker crosses when nothing holds it.
    async fn steps(self: &Arc<Self>, world: &World, kind: Kind, worker: Worker) -> usize {
        let mut crossed = 0;
        // The first time statements are prepared; the second is like all that follow.
        for _ in 0..2 {
            let post = request_for(world, kind, worker).await;
            self.route.script.arm(Plan::new());
            self.work(worker, &post).await.unwrap();
            crossed = self.route.script.disarm().0.len();
            assert_eq!(world.post(post).await.status, 201);
        }
        crossed
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_outlived_its_lease_writes_nothing() {
    let (rounds, seed, began) = (number("CHAOS_ZOMBIES", 128), seed(), Instant::now());
    let (cases, places) = haunt(rounds, seed).await;
    say(&format!(
        "zombies: {rounds} rounds, {cases} cases at {places} places, 0 writes by stale workers, 0 double charges, \
         seed {seed}, {:.1} s",
        began.elapsed().as_secs_f64()
    ));
}

/// Plays so many rounds and panics at the first in which a stale worker wrote something.
/// Returns how many cases there are, and how many places to be held at were seen.
async fn haunt(rounds: usize, seed: u64) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::start().await;
    let (late, other) = (Crew::new(&world, None).await, Crew::new(&world, None).await);
    let cases = cases(&world, &late, &other).await;
    let (mut places, mut left) = (BTreeSet::new(), Vec::new());
    for n in 0..rounds {
        // Each once, in any order, before any comes again.
        if left.is_empty() {
            left.clone_from(&cases);
            left.shuffle(&mut rng);
        }
        let round: Round = left.pop().expect("some cases");
        let context = format!("seed {seed}, round {n}, {round:?}");
        places.insert(outlive(&world, &late, &other, round, &context).await);
    }
    assert_eq!(world.count("idempotency_keys WHERE response_code IS DISTINCT FROM 201").await, 0);
    assert_eq!(world.count("rides").await + world.count("refunds").await, world.count("staged_jobs").await);
    (cases.len(), places.len())
}

async fn cases(world: &World, late: &Arc<Crew>, other: &Arc<Crew>) -> Vec<Round> {
    let mut cases = Vec::new();
    for (kind, worker) in Kind::ALL.into_iter().flat_map(|kind| Worker::ALL.map(|worker| (kind, worker))) {
        other.steps(world, kind, worker).await;
        for step in 1..=late.steps(world, kind, worker).await {
            for fault in Fault::HOLDING {
                for heir in Worker::HEIRS {
                    let round = |heir_finished| Round { kind, worker, step, fault, heir, heir_finished };
                    cases.extend([round(true), round(false)]);
                }
            }
        }
    }
    cases
}

/// Plays one round. Returns where the worker was held.
async fn outlive(world: &World, late: &Arc<Crew>, other: &Arc<Crew>, round: Round, context: &str) -> String {
    let Round { kind, worker, step, fault, heir, heir_finished } = round;
    // A completer's request has left part of it behind already.
    let (prepared, before) = prepare(world, kind).await;
    let post = abandoned_by(world, worker, prepared).await;
    late.route.script.arm(vec![Strike::at(step, fault)]);
    let work = late.work(worker, &post);
    late.route.script.until_held().await;

    expire_lease(world, &post).await;
    // There is nothing to complete before there is a key, and nobody takes over what the worker has finished itself.
    let finished = is_finished(world, &post).await;
    let heir = if finished == Some(false) { heir } else { Worker::Api };
    let heir_finished = heir_finished || finished == Some(true);
    let taking_the_lease = if heir_finished { Plan::new() } else { vec![Strike::at(1, Fault::HoldReply)] };
    other.route.script.arm_from("execute update idempotency_keys", taking_the_lease);
    let mut inheritance = other.work(heir, &post);
    if heir_finished {
        (&mut inheritance).await.unwrap();
    } else {
        other.route.script.until_held().await;
    }

    let rows = digest(world).await;
    late.route.script.release();
    work.await.unwrap();
    assert_eq!(digest(world).await, rows, "{context}: the stale worker wrote something");
    if !heir_finished {
        other.route.script.release();
        inheritance.await.unwrap();
    }
    let answer = world.post(post).await;
    assert_eq!((answer.status, answer.is_replay()), (201, true), "{context}: {answer:?}");
    assert_eq!(Books::of(world).await, before + kind.leaves(true), "{context}");
    let (_, fired) = late.route.script.disarm();
    let [(fault, boundary)] = fired.as_slice() else { panic!("{context}: not held") };
    format!("{kind:?} {worker:?} {fault:?} {boundary}")
}

/// Lets the lease run out and the completer come in, as time does.
pub async fn expire_lease(world: &World, post: &Post) {
    let sql = format!(
        "UPDATE idempotency_keys SET next_attempt_at = now(),
             locked_at = CASE WHEN lease_token IS NOT NULL THEN now() - interval '1 hour' END
         WHERE idempotency_key = '{}' AND response_code IS NULL",
        key(post)
    );
    world.execute(&sql).await;
}

/// Whether the request has its answer, if there is such a key yet.
async fn is_finished(world: &World, post: &Post) -> Option<bool> {
    let sql = "SELECT response_code IS NOT NULL FROM idempotency_keys WHERE idempotency_key = $1";
    world.query(sql, &[&key(post)]).await.first().map(|row| row.get(0))
}

/// A request that was not made yet, and what had been done before it.
async fn prepare(world: &World, kind: Kind) -> (Post, Books) {
    (kind.request(world).await, Books::of(world).await)
}

/// To a completer comes what a client has left half-way.
async fn abandoned_by(world: &World, worker: Worker, post: Post) -> Post {
    if worker == Worker::Completer {
        assert_eq!(world.post(post.clone().raising()).await.status, 500);
        expire_lease(world, &post).await;
    }
    post
}

async fn request_for(world: &World, kind: Kind, worker: Worker) -> Post {
    abandoned_by(world, worker, kind.request(world).await).await
}

fn key(post: &Post) -> &str {
    post.headers.iter().find(|(name, _)| *name == "idempotency-key").map(|(_, key)| key.as_str()).expect("a key")
}

/// All rows of all tables, as one number.
async fn digest(world: &World) -> String {
    const TABLES: &str =
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    let tables = world.query(TABLES, &[]).await;
    let rows = tables.iter().map(|row| {
        let table: &str = row.get(0);
        format!("SELECT '{table} ' || t::text AS row FROM {table} t")
    });
    let all = rows.collect::<Vec<_>>().join(" UNION ALL ");
    world.get(&format!("SELECT md5(string_agg(row, E'\\n' ORDER BY row)) FROM ({all}) rows")).await
}
