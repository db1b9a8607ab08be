//! The model and the program in lockstep.
//!
//! The model checks whether the rules are right and contains nothing of the program. Here the model is walked at
//! random, while the program's own code carries out each of its actions, on a real Postgres and against the sandbox of
//! Stripe. After every step the rows, the flushes, Stripe's ledger and the answers are compared with the model's state.
//! The program's next message is compared, too: each of the model's workers is a [task](seat) that runs an attempt from
//! its lease to its end, behind a [gate] that lets one message through at a time.
//!
//! - Stripe's outcomes come from the sandbox; for lost and failed calls the connection is broken at that message.
//! - A crash of Postgres is simulated, because a real one would take seconds: `setup.sql` records the rows after each
//!   commit and whether it waited for the disk, and what a crash would have lost is undone. So a missing flush is a
//!   disagreement, and so is one that is not needed.
//! - [Time](times) is simulated, too: it is moved, and no test sleeps. So the walk can test what the model leaves out
//!   because only time decides it: when a lease may be taken, grace and backoff, the reaper's age. Each limit is tested
//!   from both sides: by a visit in time, and by a [probe](moves::Probe) a second before, which must change nothing.
//! - A client can be overtaken between its look-up of a key and its take-over. In the model these are one step.
//!
//! A walk makes some dozens of steps with one key, then another begins. [Steering](steer) prefers steps that were taken
//! rarely. When model and program disagree, the walk is repeated with steps left out until no more can be, and then
//! printed.
//!
//! Everything that is specific to a ride is behind [`Walked`]. The [faults] test whether the comparison notices
//! anything.
//!
//! ```text
//! LOCKSTEP_STEPS=160000 cargo test --profile long --test model lockstep::model -- --nocapture
//! LOCKSTEP_FAULTS=100 cargo test --test model lockstep::faults -- --nocapture
//! ```
//!
//! `LOCKSTEP_SEED` repeats a run's choices, as far as those do not depend on real time.

mod act;
mod compare;
mod faults;
mod gate;
mod moves;
mod operation;
mod seat;
mod shorten;
mod stage;
mod steer;
mod times;
mod walk;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use self::faults::{FAULTS, Fault};
use self::moves::Move;
use self::operation::{Ride, Walked};
use self::stage::Stage;
use self::steer::{Pilot, Tally};
use self::walk::Walk;
use crate::protocol::Protocol;

/// Walks side by side, each on its own thread: while one waits for the disk, the others go on.
const SIDE_BY_SIDE: usize = 8;
/// Steps of a plain run, which takes a few seconds.
const STEPS: usize = 2000;
/// In a run of at least this many steps, each kind of edge in the model's graph must be taken [`EVERY_KIND`] times.
const LONG_RUN: usize = 100_000;
const EVERY_KIND: usize = 1000;
/// Faults that are planted in a plain run: they take a few seconds, and are drawn again in each run.
const PLANTED: usize = 8;
/// A fault that is not noticed within this many steps counts as missed.
const NOTICED_AFTER: usize = 5000;
/// Workers at once, zombies included.
const WORKERS: usize = 3;
/// Attempts of the completer before it parks: mostly one, which leads to a parked key soonest, and sometimes as many as
/// it takes until its backoff is the longest.
const MAX_ATTEMPTS: [u8; 3] = [1, 1, 8];

/// A walk in which model and program disagreed.
struct Disagreement {
    moves: Vec<Move>,
    max_attempts: u8,
    why: String,
}

#[test]
fn model_and_program_go_in_lockstep() {
    let steps = number("LOCKSTEP_STEPS").unwrap_or(STEPS);
    let seed = number("LOCKSTEP_SEED").map_or_else(rand::random, |seed| seed as u64);
    let began = Instant::now();
    let (mut all, over) = (Tally::default(), AtomicBool::new(false));
    let results: Vec<_> = std::thread::scope(|scope| {
        let lane = |lane| {
            let over = &over;
            scope.spawn(move || run(Ride, steps.div_ceil(SIDE_BY_SIDE), seed.wrapping_add(lane), over))
        };
        let lanes: Vec<_> = (0..SIDE_BY_SIDE as u64).map(lane).collect();
        lanes.into_iter().map(|lane| lane.join().expect("no panic")).collect()
    });
    for result in results {
        all.add(&result.unwrap_or_else(|report| panic!("seed {seed}: {report}")));
    }
    for (action, count) in &all.actions {
        let details = all.edges.iter().filter(|(kind, _)| kind.action == *action && !kind.detail.is_empty());
        let details: String = details.map(|(kind, count)| format!("; {}: {count}", kind.detail)).collect();
        say(&format!("{count:7} {action}{details}"));
    }
    for (besides, count) in &all.besides {
        say(&format!("{count:7} besides: {besides}"));
    }
    let rarest = all.actions.values().min().copied().unwrap_or_default();
    say(&format!(
        "lockstep: {} steps of {} kinds, the rarest taken {rarest} times, 0 disagreements, seed {seed}, {:.1} s",
        all.steps(),
        all.actions.len(),
        began.elapsed().as_secs_f64()
    ));
    if steps >= LONG_RUN {
        let all_actions = moves::all_actions(&Protocol { workers: 2, ..protocol(1) });
        assert_eq!(all.actions.keys().cloned().collect::<BTreeSet<_>>(), all_actions, "every kind of edge");
        assert!(rarest >= EVERY_KIND, "the rarest kind of edge was taken {rarest} times only");
    }
}

/// Without a fault, model and program agree (see the test above); with one they must not.
#[test]
fn faults_in_the_statements_of_a_key_are_noticed() {
    let began = Instant::now();
    let mut faults: Vec<&Fault> = FAULTS.iter().collect();
    faults.shuffle(&mut rand::rng());
    faults.truncate(number("LOCKSTEP_FAULTS").unwrap_or(PLANTED));
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                in_a_runtime(async {
                    let mut stage = Stage::new(Ride, WORKERS + 1).await;
                    while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match notice(&mut stage, fault).await {
                            Ok(how) => say(&format!("  noticed: {}: {how}", fault.name)),
                            Err(why) => missed.lock().unwrap().push(format!("{}: {why}", fault.name)),
                        }
                    }
                });
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    let (all, seconds) = (faults.len(), began.elapsed().as_secs_f64());
    say(&format!("lockstep: {} of {all} faults noticed, {seconds:.1} s", all - missed.len()));
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Walks until the fault is noticed.
async fn notice<O: Walked>(stage: &mut Stage<O>, fault: &Fault) -> Result<String, String> {
    stage.plant(fault.bug).await;
    let mut pilot = Pilot::new(StdRng::seed_from_u64(rand::random()));
    while pilot.tally.steps() < NOTICED_AFTER {
        if let Err(found) = walk(stage, &mut pilot).await {
            let steps = pilot.tally.steps();
            return match stage.bugs.not_planted() {
                Some(why) => Err(format!("not planted: {why}")),
                None => Ok(format!("after {steps} steps, {}", found.why)),
            };
        }
    }
    Err(format!("not noticed in {NOTICED_AFTER} steps; {:?}", stage.bugs.not_planted()))
}

/// Walks this many steps, unless `over` is set before, and reports the first disagreement.
fn run<O: Walked>(operation: O, steps: usize, seed: u64, over: &AtomicBool) -> Result<Tally, String> {
    in_a_runtime(async {
        let mut stage = Stage::new(operation, WORKERS + 1).await;
        let mut pilot = Pilot::new(StdRng::seed_from_u64(seed));
        while pilot.tally.steps() < steps && !over.load(Ordering::Relaxed) {
            if let Err(found) = walk(&mut stage, &mut pilot).await {
                over.store(true, Ordering::Relaxed);
                return Err(shorten::report(&mut stage, found).await);
            }
        }
        Ok(pilot.tally)
    })
}

/// Runs the future on this thread alone, so that a message gets from program to proxy without waking another thread.
fn in_a_runtime<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Makes one walk, with one key.
async fn walk<O: Walked>(stage: &mut Stage<O>, pilot: &mut Pilot) -> Result<(), Disagreement> {
    let max_attempts = MAX_ATTEMPTS[pilot.rng.random_range(0..MAX_ATTEMPTS.len())];
    let length = pilot.rng.random_range(10..100);
    let mut walk = Walk::open(stage, protocol(max_attempts)).await;
    let mut made = Vec::new();
    while made.len() < length && !walk.is_stale() {
        let Some(moves) = pilot.next(&walk) else { break };
        for mv in moves {
            // Real time has passed since the moves were chosen, which is the only reason why one may not be possible
            // any more.
            if !walk.is_possible(mv) {
                break;
            }
            made.push(mv);
            if let Err(why) = walk.make(mv).await {
                return Err(Disagreement { moves: made, max_attempts, why });
            }
        }
    }
    Ok(())
}

fn protocol(max_attempts: u8) -> Protocol {
    Protocol { change: None, workers: WORKERS, max_attempts, calls: 1 }
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

#[expect(clippy::print_stdout, reason = "what was walked is what one runs this for")]
fn say(line: &str) {
    println!("{line}");
}
