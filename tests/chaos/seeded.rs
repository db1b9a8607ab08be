//! The checker is checked: bugs are planted, and `verify` must name the rule that each of them breaks.
//!
//! Each bug of the [table](bugs) is planted and its scenario played, on a new database, and its rule must be violated. Each
//! scenario is also played without a bug, and no rule may be violated. A planted bug changes messages between the program and Postgres
//! or Stripe, so the program under test is the one that ships. Where a constraint or a trigger would refuse the bug
//! before it does harm, that guard is disabled in both cases: the constraints have their own tests (`engine.rs`), and
//! this one tests the checker alone.
//!
//! Two of the original's faults leave nothing in the books and are not here: conflicts between unrelated requests, and
//! a key that is too long. `load.rs` and `differences.rs` have them. Bugs that another layer makes harmless by itself
//! are not here either: a lease that is taken over early, because the fence holds; a job that is finished without a
//! lease, because its receipt has been sent by then and is recorded at most once.

mod bugs;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use atomic_phases::idempotency::reap::reap;
use atomic_phases::processes::{self, Verdict, hand_back};
use atomic_phases::queue;
use atomic_phases::roles::periodic::Periodic;
use atomic_phases::rules::Report;
use futures_util::{StreamExt, stream};
use tokio::task::JoinHandle;

use self::bugs::SEEDED;
use self::work::Disk;
use super::crew::Workers;
use super::proxy::{Bug, Fault, Strike};
use super::zombie::expire_lease;
use crate::say;
use crate::support::app::{TestApp, hold_the_heart, pool};
use crate::support::books::{AT_REST, rules};
use crate::support::client::{Answer, DECLINED_USER, Post};

/// Bugs played side by side.
const SIDE_BY_SIDE: usize = 4;
/// The message with which a worker stores its answer.
const ANSWER: &str = "execute update idempotency_keys + insert staged_jobs";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Rules that `books.rs` tests: here the stage itself disables the guards, and itself works the queued jobs.
const ELSEWHERE: [&str; 3] = [
    "the database refuses to turn a key back, change its answer, or remove it unfinished",
    "every queued job has been worked",
    "every lease on a job belongs to a known process",
];

/// A bug, and the rule that must catch it.
struct Seeded {
    name: &'static str,
    bug: Bug,
    lifted: &'static [Guard],
    scenario: Scenario,
    caught_by: &'static str,
}

/// A guard of the schema that would refuse a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// A trigger of `idempotency_keys`. It is enabled again before the checker runs, because a rule checks that it is
    /// there.
    Trigger(&'static str),
    /// A constraint: its table and its name.
    Constraint(&'static str, &'static str),
}

/// What happens while the bug is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// A ride is booked.
    Booked,
    /// A card is declined.
    Declined,
    /// A client repeats a request that has its answer.
    Repeated,
    /// Three rides' receipts are delivered.
    Delivered,
    /// Stripe charges and answers 500; the client asks again.
    Unanswered,
    /// Stripe answers 500 without having charged; the client asks again.
    Failed,
    /// Stripe charges, its answer is lost, it forgets the key, and then the client asks again.
    Forgotten,
    /// An attempt is asked to fail, and the next is not.
    Raised,
    /// An attempt fails, and the client does not come back.
    Abandoned,
    /// Two rides are booked, and the second is refunded.
    Refunded,
    /// As before, but Stripe answers 500 without having refunded; the client asks again.
    RefundFailed,
    /// A user asks for the refund of another user's ride.
    RefundedByStranger,
    /// The completer has used all its attempts.
    Hopeless,
    /// A worker sends its answer late: its successor has finished by then.
    LateAnswer,
    /// A worker releases its lease late: its successor has finished by then.
    LateRelease,
    /// A worker has received a decline, and stores it only when Stripe no longer remembers the key. Its successor is
    /// just having the card charged, which is good again.
    LateDecline,
    /// A worker sends its answer late. Another process meanwhile asks whether it has died, and its client asks again.
    TakenForDead,
    /// The reaper meets an old request whose charge got no answer.
    OldUnfinished,
    /// The reaper meets an old request that is being worked on.
    OldUnderWay,
    /// A worker sends the receipt of a paid ride; the ride before it was declined.
    Worked,
    /// A receipt cannot be written at first.
    FailedOnce,
    /// A worker reports late that it sent a receipt: its job is a dead letter by then.
    LateReceipt,
    /// A worker reports late that it could not send a receipt: its successor has sent it by then.
    LateFailure,
}

/// Where a scenario is played.
struct Stage {
    /// Prepares and checks, without the bug.
    house: TestApp,
    /// Has the bug, if it is planted.
    crew: Arc<Workers>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_seeded_bug_is_caught() {
    let began = Instant::now();
    let mut stages: Vec<(Scenario, &[Guard])> = Vec::new();
    for Seeded { scenario, lifted, .. } in SEEDED {
        if !stages.contains(&(*scenario, lifted)) {
            stages.push((*scenario, lifted));
        }
    }
    let sound = stages.into_iter().map(|(scenario, lifted)| async move {
        let report = play(scenario, lifted, None).await.1;
        assert!(report.violated().is_empty(), "violations without a bug, {scenario:?}, {lifted:?}: {report}");
    });
    stream::iter(sound.map(tokio::spawn)).buffered(SIDE_BY_SIDE).for_each(async |played| played.unwrap()).await;
    let plays = SEEDED.iter().map(|seeded| async { (seeded.name, tokio::spawn(seeded.judge()).await) });
    let judged: Vec<_> = stream::iter(plays).buffered(SIDE_BY_SIDE).collect().await;
    let mut missed = Vec::new();
    for (name, verdict) in &judged {
        match verdict {
            Ok(Ok(named)) => say(&format!("  caught: {name}: {named}")),
            Ok(Err(problem)) => missed.push(format!("{name}: {problem}")),
            Err(panic) => missed.push(format!("{name}: {panic}")),
        }
    }
    let (all, caught) = (judged.len(), judged.len() - missed.len());
    let seconds = began.elapsed().as_secs_f64();
    say(&format!("seeded: {caught} of {all} seeded bugs caught, {seconds:.1} s"));
    assert!(missed.is_empty(), "{missed:#?}");
    let app = TestApp::start().await;
    for rule in rules(&pool(&app.database_config).await, app.stripe()) {
        let planted = SEEDED.iter().any(|seeded| seeded.caught_by == rule.name) || ELSEWHERE.contains(&rule.name);
        assert!(planted, "nothing was planted against {:?}", rule.name);
    }
}

impl Seeded {
    /// Returns what the checker reports about the bug, or why the bug is not caught.
    async fn judge(&self) -> Result<String, String> {
        let (stage, report) = play(self.scenario, self.lifted, Some(self.bug)).await;
        if let Some(why) = stage.crew.route.script.not_planted() {
            return Err(format!("not planted: {why}"));
        }
        let found = report.findings().find(|(rule, _)| *rule == self.caught_by);
        match found.and_then(|(rule, finding)| Some((rule, finding.named.first()?))) {
            Some((rule, offender)) => Ok(format!("{rule}: {offender}")),
            None => Err(format!("not caught by {:?}: {report}", self.caught_by)),
        }
    }
}

/// Plays a scenario without these guards, and returns what the checker then reports.
async fn play(scenario: Scenario, lifted: &[Guard], bug: Option<Bug>) -> (Stage, Report) {
    let house = TestApp::with(hold_the_heart).await;
    for guard in lifted {
        let lift = match guard {
            Guard::Trigger(name) => format!("ALTER TABLE idempotency_keys DISABLE TRIGGER {name}"),
            Guard::Constraint(table, name) => format!("ALTER TABLE {table} DROP CONSTRAINT {name}"),
        };
        house.execute(&lift).await;
    }
    let stage = Stage { crew: Workers::new(&house, bug).await, house };
    scenario.play(&stage).await;
    stage.deliver().await;
    for guard in lifted {
        if let Guard::Trigger(name) = guard {
            stage.house.execute(&format!("ALTER TABLE idempotency_keys ENABLE TRIGGER {name}")).await;
        }
    }
    let report = stage.house.verify(AT_REST).await;
    (stage, report)
}

impl Scenario {
    /// Plays the scenario. Checks no answers, because they depend on the bug.
    async fn play(self, stage: &Stage) {
        let (post, house) = (Post::default(), &stage.house);
        match self {
            Self::Booked => stage.ask(&post, &[]).await,
            Self::Declined => stage.ask(&post.user(DECLINED_USER), &[]).await,
            Self::Repeated => {
                stage.ask(&post, &[]).await;
                stage.ask(&post, &[]).await;
            }
            Self::Delivered => {
                for _ in 0..3 {
                    house.post(Post::default()).await;
                }
            }
            Self::Unanswered => {
                stage.ask(&post, &["charged_then_server_error"]).await;
                stage.ask(&post, &[]).await;
            }
            Self::Failed => {
                stage.ask(&post, &["server_error"]).await;
                stage.ask(&post, &[]).await;
            }
            Self::Forgotten => {
                stage.ask(&post, &["reply_lost"]).await;
                house.forget().await;
                let days = "foreign_call_intended_at = now() - interval '2 days'";
                house.execute(&format!("UPDATE idempotency_keys SET {days}")).await;
                stage.ask(&post, &[]).await;
            }
            Self::Raised => {
                stage.ask(&post.clone().raising(), &[]).await;
                stage.ask(&post, &[]).await;
            }
            Self::Abandoned => {
                stage.ask(&post.raising(), &[]).await;
                house.execute("UPDATE idempotency_keys SET next_attempt_at = now() - interval '2 hours'").await;
                stage.crew.completer.run_once().await.unwrap();
            }
            Self::Refunded => stage.refund(Post::refund, &[]).await,
            Self::RefundFailed => stage.refund(Post::refund, &["server_error"]).await,
            Self::RefundedByStranger => {
                stage.refund(|ride| Post::refund(ride).user(DECLINED_USER), &[]).await;
            }
            Self::Hopeless => {
                stage.ask(&post, &["unauthorized", "unauthorized"]).await;
                house.execute("UPDATE idempotency_keys SET completer_attempts = 32, next_attempt_at = now()").await;
                stage.crew.completer.run_once().await.unwrap();
            }
            Self::LateAnswer => {
                stage.outlive(ANSWER, &post, &[]).await;
            }
            Self::TakenForDead => stage.outlive_a_verdict(&post).await,
            Self::LateRelease => stage.outlive("POST /v1/charges", &post, &["server_error"]).await,
            Self::LateDecline => stage.decline_late(&post).await,
            Self::OldUnfinished => {
                stage.ask(&post, &["reply_lost"]).await;
                stage.reap().await;
            }
            Self::OldUnderWay => {
                house.script(&["hold"]).await;
                let worker = stage.spawn(&post);
                house.until_held().await;
                stage.reap().await;
                house.release_held().await;
                worker.await.unwrap();
            }
            Self::Worked => {
                stage.ask(&Post::default().user(DECLINED_USER), &[]).await;
                stage.queue_a_receipt().await;
                stage.work(Disk::Good).await;
            }
            Self::FailedOnce => {
                stage.queue_a_receipt().await;
                stage.work(Disk::Gone).await;
                stage.expire_jobs().await;
                stage.work(Disk::Good).await;
            }
            Self::LateReceipt => stage.outlive_a_dead_letter().await,
            Self::LateFailure => stage.outlive_a_receipt().await,
        }
    }
}

impl Stage {
    /// Sends this request to the crew's API, with these faults at Stripe.
    async fn ask(&self, post: &Post, faults: &[&str]) {
        self.house.script(faults).await;
        self.spawn(post).await.unwrap();
    }

    /// Books two rides, and asks twice for the refund of the second.
    async fn refund(&self, post: impl Fn(i64) -> Post, faults: &[&str]) {
        for _ in 0..2 {
            self.ask(&Post::default(), &[]).await;
        }
        let refund = post(self.house.get("SELECT max(id) FROM rides").await);
        self.ask(&refund, faults).await;
        self.ask(&refund, &[]).await;
    }

    fn spawn(&self, post: &Post) -> JoinHandle<Answer> {
        let (api, post) = (self.crew.api.api.clone(), post.clone());
        tokio::spawn(async move { api.post(post).await })
    }

    async fn deliver(&self) {
        queue::postgres::deliver(&self.crew.completer.database, queue::BEFORE_FIRST, 1000).await.unwrap();
    }

    /// Runs the reaper as if everything so far had happened three days ago.
    async fn reap(&self) {
        let age = "created_at = now() - interval '73 hours', last_run_at = now() - interval '73 hours'";
        self.house.execute(&format!("UPDATE idempotency_keys SET {age}")).await;
        let lease = self.crew.completer.lock_timeout;
        reap(&self.crew.completer.database, 3 * DAY, lease, 1000).await.unwrap();
    }

    /// Holds a worker at this boundary until a successor without the bug has finished its request.
    async fn outlive(&self, held: &'static str, post: &Post, faults: &[&str]) {
        let script = &self.crew.route.script;
        let fault = if held.starts_with("POST") { Fault::HoldReply } else { Fault::Hold };
        self.house.script(faults).await;
        script.arm_from(held, vec![Strike::at(1, fault)]);
        let late = self.spawn(post);
        script.until_held().await;
        expire_lease(&self.house, post).await;
        self.house.post(post.clone()).await;
        script.release();
        late.await.unwrap();
    }

    /// Holds a worker until another process has asked whether it is dead, and a successor without the bug has tried.
    async fn outlive_a_verdict(&self, post: &Post) {
        let script = &self.crew.route.script;
        script.arm_from(ANSWER, vec![Strike::at(1, Fault::Hold)]);
        let late = self.spawn(post);
        script.until_held().await;
        let verdict = Verdict {
            process: self.house.get("SELECT process_id FROM idempotency_keys").await,
            silent_for: processes::Settings::default().dead_after,
            ended_after: DAY,
            crash_grace: Duration::ZERO,
            why: "it is said to have died",
        };
        hand_back(&self.crew.completer.database, verdict).await.unwrap();
        self.house.post(post.clone()).await;
        script.release();
        late.await.unwrap();
    }

    async fn decline_late(&self, post: &Post) {
        let script = &self.crew.route.script;
        self.house.script(&["declined", "hold"]).await;
        script.arm_from("POST /v1/charges", vec![Strike::at(1, Fault::HoldReply)]);
        let late = self.spawn(post);
        script.until_held().await;
        expire_lease(&self.house, post).await;
        self.house.forget().await;
        let successor = self.spawn(post);
        self.house.until_held().await;
        script.release();
        late.await.unwrap();
        self.house.release_held().await;
        successor.await.unwrap();
    }
}
