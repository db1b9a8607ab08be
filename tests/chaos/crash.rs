//! Crash at every step: each thing that a request or a role does, times each way in which it can be cut short.
//!
//! A run without faults counts the boundaries (see [`proxy`](super::proxy)) of a scenario; then each boundary meets
//! each fault, in a run of the real binary of its own. Afterwards the process is started again if it is dead, the
//! client repeats its request until it has a final answer, and everything must have happened exactly once. A fault
//! that did not strike where it was meant to is a failure too: what was not tried has not passed.
//!
//! Crashes in the middle of recovering from a crash are too many to try them all. `CHAOS_DOUBLE` says how many are
//! drawn at random; `CHAOS_SEED` draws the same again. The roles of a process that has come back poll in their own
//! time, so where a second fault strikes may differ by a poll.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rocket_rides_atomic::idempotency::parked;
use tokio::task::JoinSet;

use super::lane::{Lane, Service};
use super::proxy::{Boundary, Bug, Fault, Plan};
use crate::support::client::{DECLINED_USER, Post, new_key};
use crate::support::world::pool;
use crate::{number, say, seed};

/// Runs side by side, each in a lane of its own.
const LANES: usize = 4;
/// Boundaries among which the second fault is drawn, if the first killed the process: a start and most of a request.
const REBIRTH: usize = 25;
/// And if it did not: what it takes to try again.
const RETRY: usize = 8;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    FreshRequest,
    DeclinedRequest,
    RepeatedRequest,
    Completion,
    Drain,
    Reaping,
}

impl Scenario {
    const ALL: [Self; 6] = [
        Self::FreshRequest,
        Self::DeclinedRequest,
        Self::RepeatedRequest,
        Self::Completion,
        Self::Drain,
        Self::Reaping,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::FreshRequest => "fresh request",
            Self::DeclinedRequest => "declined request",
            Self::RepeatedRequest => "repetition of an unfinished request",
            Self::Completion => "completion",
            Self::Drain => "drain of the outbox",
            Self::Reaping => "reaping",
        }
    }

    /// What a boundary's label says when all is done; what follows is polling.
    fn last(self) -> &'static str {
        match self {
            Self::FreshRequest | Self::DeclinedRequest | Self::RepeatedRequest | Self::Completion => {
                "execute update idempotency_keys + insert staged_jobs"
            }
            Self::Drain => "execute delete staged_jobs + insert jobs",
            Self::Reaping => "execute delete idempotency_keys + update idempotency_keys",
        }
    }

    /// Plays it under this plan and checks that everything happened exactly once. Returns what crossed and what was
    /// broken.
    async fn play(self, lane: &Lane, plan: Plan) -> (Vec<Boundary>, Vec<(Fault, Boundary)>) {
        match self {
            Self::FreshRequest => ask(lane, plan, Post::default(), false, 201).await,
            Self::DeclinedRequest => ask(lane, plan, Post::default().user(DECLINED_USER), false, 402).await,
            Self::RepeatedRequest => ask(lane, plan, Post::default(), true, 201).await,
            Self::Completion => complete(lane, plan).await,
            Self::Drain => drain(lane, plan).await,
            Self::Reaping => reap(lane, plan).await,
        }
    }
}

type Played = (Vec<Boundary>, Vec<(Fault, Boundary)>);

/// A client asks for a ride, with or without an attempt before that failed half-way.
async fn ask(lane: &Lane, plan: Plan, post: Post, failed_before: bool, status: u16) -> Played {
    let post = post.key(&new_key());
    let before = lane.books().await;
    let mut service = Service::start(lane, "api");
    let api = service.api().await;
    if failed_before {
        assert_eq!(api.post(post.clone().raising()).await.status, 500);
    }
    lane.script.arm(plan);
    let answer = service.insist(&post).await;
    let played = lane.script.disarm();
    assert_eq!(answer.status, status, "{answer:?}");
    let replay = service.insist(&post).await;
    drop(service);

    assert!(replay.is_replay(), "{replay:?}");
    for replay in [replay, lane.world.post(post).await] {
        assert_eq!((answer.status, &answer.body), (replay.status, &replay.body), "replayed byte for byte");
    }
    lane.assert_exactly_once(before, 1, i64::from(status == 201)).await;
    played
}

/// The completer finishes what a client left half-way.
async fn complete(lane: &Lane, plan: Plan) -> Played {
    let post = Post::default().key(&new_key());
    let before = lane.books().await;
    assert_eq!(lane.world.post(post.clone().raising()).await.status, 500);
    lane.world.execute("UPDATE idempotency_keys SET next_attempt_at = now() WHERE response_code IS NULL").await;
    lane.script.arm_from("update idempotency_keys", plan);
    let mut service = Service::start(lane, "completer");
    service.until_count("idempotency_keys WHERE response_code IS NULL", 0).await;
    let played = lane.script.disarm();
    drop(service);

    let answer = lane.world.post(post).await;
    assert_eq!((answer.status, answer.is_replay()), (201, true), "{answer:?}");
    lane.assert_exactly_once(before, 1, 1).await;
    played
}

/// The enqueuer delivers what three rides have staged.
async fn drain(lane: &Lane, plan: Plan) -> Played {
    let before = lane.books().await;
    for _ in 0..3 {
        assert_eq!(lane.world.post(Post::default()).await.status, 201);
    }
    lane.script.arm_from("delete staged_jobs", plan);
    let mut service = Service::start(lane, "enqueuer");
    service.until_count("staged_jobs", 0).await;
    let played = lane.script.disarm();
    drop(service);

    lane.assert_exactly_once(before, 3, 3).await;
    assert_eq!(lane.world.count("jobs").await, before.receipts + 3, "all delivered");
    played
}

/// The reaper removes an old key that is finished and sets aside one that is not, which a person then lets go on.
async fn reap(lane: &Lane, plan: Plan) -> Played {
    let before = lane.books().await;
    let (finished, unfinished) = (new_key(), new_key());
    assert_eq!(lane.world.post(Post::default().key(&finished)).await.status, 201);
    assert_eq!(lane.world.post(Post::default().key(&unfinished).raising()).await.status, 500);
    lane.world
        .execute(
            "UPDATE idempotency_keys SET created_at = now() - interval '73 hours',
                 last_run_at = now() - interval '73 hours', next_attempt_at = now() + interval '1 hour'",
        )
        .await;
    lane.script.arm_from("delete idempotency_keys", plan);
    let mut service = Service::start(lane, "reaper");
    service.until_count("idempotency_keys WHERE response_code IS NOT NULL", 0).await;
    let played = lane.script.disarm();
    drop(service);

    let parked_id: i64 = lane.world.get("SELECT id FROM idempotency_keys WHERE parked_at IS NOT NULL").await;
    let retried = parked::retry(&pool(&lane.world.database_config).await, &[parked_id]).await.unwrap();
    assert_eq!(retried, [parked_id]);
    let answer = lane.world.post(Post::default().key(&unfinished)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
    lane.assert_exactly_once(before, 2, 2).await;
    played
}

/// The boundaries of a scenario in which nothing breaks.
async fn discover(lane: &Lane, scenario: Scenario) -> Vec<Boundary> {
    let (mut boundaries, _) = scenario.play(lane, Plan::new()).await;
    let last = boundaries.iter().position(|boundary| boundary.label == scenario.last());
    boundaries.truncate(last.unwrap_or_else(|| panic!("never {}: {boundaries:#?}", scenario.last())) + 1);
    boundaries
}

/// One run to come.
struct Run {
    scenario: Scenario,
    plan: Plan,
    /// Where the first fault must strike.
    boundary: Boundary,
}

/// How a run ended: how many of its faults struck, or what went wrong.
type Ended = Result<usize, String>;

impl Run {
    async fn play(&self, lane: Arc<Lane>) -> Ended {
        let (scenario, plan) = (self.scenario, self.plan.clone());
        let played = tokio::spawn(async move { scenario.play(&lane, plan).await }).await;
        let (_, fired) = played.map_err(|error| {
            let panic = error.into_panic();
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
        })?;
        match fired.first() {
            Some((_, boundary)) if *boundary == self.boundary => Ok(fired.len()),
            Some((_, boundary)) => Err(format!("not run: it struck at {boundary}")),
            None => Err("not run: it did not strike".to_owned()),
        }
    }

    fn describe(&self) -> String {
        format!("{}, {:?}, first at {}", self.scenario.name(), self.plan, self.boundary)
    }
}

/// Plays all runs, some side by side, with this bug in the process's SQL if there is one; a lane in which something
/// went wrong is not used again. Returns how many faults struck, and what went wrong.
async fn play_all(runs: Vec<Run>, bug: Option<Bug>) -> (usize, Vec<String>) {
    let queue = Arc::new(Mutex::new(VecDeque::from(runs)));
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let queue = Arc::clone(&queue);
        lanes.spawn(async move {
            let (mut struck, mut wrong) = (0, Vec::new());
            let mut lane = Arc::new(Lane::with(bug).await);
            loop {
                let Some(run) = queue.lock().expect("no panic").pop_front() else { return (struck, wrong) };
                match run.play(Arc::clone(&lane)).await {
                    Ok(faults) => struck += faults,
                    Err(problem) => {
                        wrong.push(format!("{}: {problem}", run.describe()));
                        lane = Arc::new(Lane::with(bug).await);
                    }
                }
            }
        });
    }
    let ended = lanes.join_all().await;
    (ended.iter().map(|(struck, _)| struck).sum(), ended.into_iter().flat_map(|(_, wrong)| wrong).collect())
}

/// What came of breaking a scenario at every step.
pub struct Sweep {
    pub boundaries: Vec<Boundary>,
    pub runs: usize,
    /// Faults that struck where they were meant to, after which everything was in order.
    pub survived: usize,
    /// One for each run that ended otherwise.
    pub violations: Vec<String>,
}

/// Breaks a scenario at every step; with a bug planted, there should be violations.
pub async fn sweep(scenario: Scenario, bug: Option<Bug>) -> Sweep {
    let boundaries = discover(&Lane::new().await, scenario).await;
    let mut runs = Vec::new();
    for (n, boundary) in boundaries.iter().enumerate() {
        for fault in Fault::BREAKING.into_iter().filter(|fault| fault.fits(boundary)) {
            runs.push(Run { scenario, plan: vec![(n + 1, fault)], boundary: boundary.clone() });
        }
    }
    let planned = runs.len();
    let (survived, violations) = play_all(runs, bug).await;
    Sweep { boundaries, runs: planned, survived, violations }
}

async fn break_at_every_step(scenario: Scenario) {
    let began = Instant::now();
    let Sweep { boundaries, runs, survived, violations } = sweep(scenario, None).await;
    let listed: String = boundaries.iter().enumerate().map(|(n, b)| format!("\n    {:>2} {b}", n + 1)).collect();
    say(&format!(
        "crash: {}: {} boundaries, {survived} of {runs} runs, {} violations, {:.1} s{listed}",
        scenario.name(),
        boundaries.len(),
        violations.len(),
        began.elapsed().as_secs_f64()
    ));
    assert!(violations.is_empty() && survived == runs, "{violations:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_request_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::FreshRequest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declined_request_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::DeclinedRequest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::RepeatedRequest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::Completion).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::Drain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reaping_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::Reaping).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_survives_a_second_crash_while_it_recovers() {
    let (pairs, seed) = (number("CHAOS_DOUBLE", 30), seed());
    let began = Instant::now();
    let lane = Lane::new().await;
    let mut steps = Vec::new();
    for scenario in Scenario::ALL {
        let boundaries = discover(&lane, scenario).await;
        steps.extend(boundaries.into_iter().enumerate().map(|(n, boundary)| (scenario, n + 1, boundary)));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let runs = (0..pairs).map(|_| {
        let (scenario, n, boundary) = steps.choose(&mut rng).expect("some steps").clone();
        let fitting: Vec<Fault> = Fault::BREAKING.into_iter().filter(|fault| fault.fits(&boundary)).collect();
        let first = (n, *fitting.choose(&mut rng).expect("some faults"));
        let recovery = if matches!(first.1, Fault::Kill | Fault::KillBeforeReply) { REBIRTH } else { RETRY };
        let second = (rng.random_range(1..=recovery), *Fault::BREAKING.choose(&mut rng).expect("some faults"));
        Run { scenario, plan: vec![first, second], boundary }
    });
    let (struck, wrong) = play_all(runs.collect(), None).await;
    say(&format!(
        "crash twice: {pairs} pairs, {struck} faults struck, {} violations, seed {seed}, {:.1} s",
        wrong.len(),
        began.elapsed().as_secs_f64()
    ));
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
}
