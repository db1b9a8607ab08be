//! Crash at every step: each message of a request or a role, combined with each fault that can cut it short.
//!
//! A run without faults counts the boundaries (see [`proxy`](super::proxy)) of a scenario; then each boundary meets
//! each fault, each in its own run of the real binary. Afterwards the process is started again if it is dead, the
//! client repeats its request until it has a final answer, and everything must have happened exactly once. A fault that
//! did not strike at its boundary, in several tries, is a failure too: that step was not tested.
//!
//! A second crash during the recovery from a first has too many combinations to try them all. `CHAOS_DOUBLE` says how
//! many are drawn at random; `CHAOS_SEED` draws the same again. The roles of a restarted process poll at their own
//! times, so the place where a second fault strikes may differ by a poll.
//!
//! [`ambiguous`] adds faults of Stripe (see [`Weather`]).

mod ambiguous;
mod scenario;
mod work;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use self::scenario::{Played, Scenario};
use super::kind::Kind;
use super::lane::Lane;
use super::proxy::{Boundary, Fault, Plan, Strike};
use super::weather::Weather;
use crate::{number, say, seed};

/// How many runs happen side by side, each in its own lane.
const LANES: usize = 4;
/// Runs in one lane: after more of them a look-up would read a second page, which is a step that was not counted.
const RUNS_IN_A_LANE: usize = 40;
/// Tries of a run whose fault misses its boundary, because a poll or a timeout comes in between.
const MISSES: usize = 3;
/// Boundaries among which the second fault is drawn, if the first killed the process: a start and most of a request.
const STEPS_AFTER_RESTART: usize = 25;
/// The same if the first did not kill it: the boundaries of another attempt.
const STEPS_AFTER_RETRY: usize = 8;

/// One planned run.
#[derive(Debug, Clone)]
struct Run {
    scenario: Scenario,
    weather: Weather,
    plan: Plan,
}

/// The result of a run, or what went wrong in it.
type Ended = Result<Played, String>;

impl Run {
    /// Returns a run without faults, which shows at which boundaries faults can strike.
    fn unbroken(scenario: Scenario, weather: Weather) -> Self {
        Self { scenario, weather, plan: Plan::new() }
    }

    /// Returns this run with one fault, at the `n`th of these boundaries.
    fn broken_at(&self, boundaries: &[Boundary], n: usize, fault: Fault) -> Self {
        Self { plan: vec![Strike::at_last_of(&boundaries[..=n], fault)], ..self.clone() }
    }

    /// Returns the boundaries that an unbroken run crossed, up to the last that is not polling.
    fn boundaries(&self, played: Played) -> Vec<Boundary> {
        let (mut boundaries, label) = (played.crossed, self.scenario.last());
        let last = boundaries.iter().position(|boundary| boundary.label == label);
        boundaries.truncate(last.unwrap_or_else(|| panic!("never {label}: {boundaries:#?}")) + 1);
        boundaries
    }

    async fn play(&self, lane: Arc<Lane>) -> Ended {
        let Self { scenario, weather, plan, .. } = self.clone();
        let played = tokio::spawn(async move { scenario.play(&lane, weather, plan).await }).await;
        played.map_err(|error| {
            let panic = error.into_panic();
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
        })
    }

    /// Returns an explanation if the run was to have a fault and none struck.
    fn missed(&self, played: &Played) -> Option<String> {
        (!self.plan.is_empty() && played.fired.is_empty()).then(|| "not run: it did not strike".to_owned())
    }

    fn describe(&self) -> String {
        let Self { scenario, weather, plan } = self;
        format!("{}, {}, {:?}, {plan:?}", scenario.name(), weather.fault, weather.memory)
    }
}

/// Plays all runs, some side by side; a lane in which something went wrong is not used again. Returns them in order.
async fn play_all(runs: Vec<Run>) -> Vec<(Run, Ended)> {
    let queue: VecDeque<_> = runs.into_iter().enumerate().map(|(n, run)| (n, run, 1)).collect();
    let queue = Arc::new(Mutex::new(queue));
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let queue = Arc::clone(&queue);
        lanes.spawn(async move {
            let (mut all, mut lane, mut played_here) = (Vec::new(), Arc::new(Lane::new().await), 0);
            loop {
                if played_here == RUNS_IN_A_LANE {
                    (lane, played_here) = (Arc::new(Lane::new().await), 0);
                }
                played_here += 1;
                let Some((n, run, times)) = queue.lock().expect("no panic").pop_front() else { return all };
                let mut ended = run.play(Arc::clone(&lane)).await;
                match ended.as_ref().map(|played| run.missed(played)) {
                    Ok(Some(_)) if times < MISSES => {
                        queue.lock().expect("no panic").push_back((n, run, times + 1));
                        continue;
                    }
                    Ok(Some(miss)) => ended = Err(miss),
                    Ok(None) => {}
                    Err(_) => played_here = RUNS_IN_A_LANE,
                }
                all.push((n, run, ended));
            }
        });
    }
    let mut ended: Vec<_> = lanes.join_all().await.into_iter().flatten().collect();
    ended.sort_by_key(|(n, ..)| *n);
    ended.into_iter().map(|(_, run, ended)| (run, ended)).collect()
}

/// Returns what went wrong in these runs.
fn violations(ended: &[(Run, Ended)]) -> Vec<String> {
    let problem =
        |(run, ended): &(Run, Ended)| ended.as_ref().err().map(|problem| format!("{}: {problem}", run.describe()));
    ended.iter().filter_map(problem).collect()
}

/// Returns the boundaries of a scenario in which nothing breaks.
async fn discover(lane: &Lane, scenario: Scenario) -> Vec<Boundary> {
    let played = scenario.play(lane, Weather::FAIR, Plan::new()).await;
    Run::unbroken(scenario, Weather::FAIR).boundaries(played)
}

async fn break_at_every_step(scenario: Scenario) {
    let began = Instant::now();
    let boundaries = discover(&Lane::new().await, scenario).await;
    let unbroken = Run::unbroken(scenario, Weather::FAIR);
    let mut runs = Vec::new();
    for (n, boundary) in boundaries.iter().enumerate() {
        let fitting = Fault::BREAKING.into_iter().filter(|fault| fault.fits(boundary));
        runs.extend(fitting.map(|fault| unbroken.broken_at(&boundaries, n, fault)));
    }
    let planned = runs.len();
    let ended = play_all(runs).await;
    let violations = violations(&ended);
    let listed: String = boundaries.iter().enumerate().map(|(n, b)| format!("\n    {:>2} {b}", n + 1)).collect();
    say(&format!(
        "crash: {}: {} boundaries, {} of {planned} runs, {} violations, {:.1} s{listed}",
        scenario.name(),
        boundaries.len(),
        ended.len() - violations.len(),
        violations.len(),
        began.elapsed().as_secs_f64()
    ));
    assert!(violations.is_empty() && ended.len() == planned, "{violations:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_request_survives_a_crash_at_every_step() {
    for kind in Kind::ALL {
        break_at_every_step(Scenario::FreshRequest(kind)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declined_request_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::DeclinedRequest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_survives_a_crash_at_every_step() {
    for kind in Kind::ALL {
        break_at_every_step(Scenario::RepeatedRequest(kind)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_survives_a_crash_at_every_step() {
    for kind in Kind::ALL {
        break_at_every_step(Scenario::Completion(kind)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_succession_survives_a_crash_at_every_step() {
    for kind in Kind::ALL {
        break_at_every_step(Scenario::Succession(kind)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::Drain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worked_job_survives_a_crash_at_every_step() {
    break_at_every_step(Scenario::Work).await;
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
    for scenario in Scenario::all() {
        let boundaries = discover(&lane, scenario).await;
        steps.extend((1..=boundaries.len()).map(|n| (scenario, boundaries[..n].to_vec())));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let runs = (0..pairs).map(|_| {
        let (scenario, until) = steps.choose(&mut rng).expect("some steps").clone();
        let boundary = until.last().expect("a boundary");
        let fitting: Vec<Fault> = Fault::BREAKING.into_iter().filter(|fault| fault.fits(boundary)).collect();
        let first = *fitting.choose(&mut rng).expect("some faults");
        let recovery = if matches!(first, Fault::Kill | Fault::KillBeforeReply) {
            STEPS_AFTER_RESTART
        } else {
            STEPS_AFTER_RETRY
        };
        let second = *Fault::BREAKING.choose(&mut rng).expect("some faults");
        let plan = vec![Strike::at_last_of(&until, first), Strike::at(rng.random_range(1..=recovery), second)];
        Run { scenario, weather: Weather::FAIR, plan }
    });
    let ended = play_all(runs.collect()).await;
    let struck: usize = ended.iter().flat_map(|(_, ended)| ended).map(|played| played.fired.len()).sum();
    let wrong = violations(&ended);
    say(&format!(
        "crash twice: {pairs} pairs, {struck} faults struck, {} violations, seed {seed}, {:.1} s",
        wrong.len(),
        began.elapsed().as_secs_f64()
    ));
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
}
