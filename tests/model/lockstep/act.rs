//! Carries out the model's actions with the program's own code, one message at a time.

use std::time::Duration;

use atomic_phases::idempotency::claim::{RetryPolicy, claim};
use atomic_phases::idempotency::parked;
use atomic_phases::idempotency::reap::{Reaped, reap};
use atomic_phases::processes::{HandedBack, Verdict, hand_back};
use rocket_rides_atomic::stripe::sandbox::Fault;
use uuid::Uuid;

use super::gate::{self, Fate};
use super::moves::Probe;
use super::operation::{self, AttemptResult, Walked, attempt, complete};
use super::seat::Next;
use super::times::{CRASH_GRACE, KEY_RETENTION, Known, LEASE, RETENTION, RETRY_AFTER, STRIPE_TIMEOUT};
use super::walk::{Walk, just_fits};
use crate::protocol::{Action, Listing, Reply, State};
use crate::stripe::{Answer, Outcome};
use crate::worker::{Clock, Step, Worker};

/// The message with which a request goes on if its key exists.
const TAKE: &str = "execute update idempotency_keys";
/// No process here has been silent for this long.
const SILENT: Duration = Duration::from_secs(24 * 3600);
/// More rows than the database has.
const BATCH: i64 = 10;

impl<O: Walked> Walk<'_, O> {
    /// Carries out the action that leads from `before` to `after`, in the way that `manner` picks.
    pub(super) async fn act(
        &mut self,
        action: Action,
        manner: usize,
        before: &State,
        after: &State,
    ) -> Result<(), String> {
        match action {
            Action::Request { worker } => self.request(worker, manner, before).await,
            Action::Claim { worker } => self.claim(worker, manner, after).await,
            Action::Statement { worker, reply } => self.statement(worker, reply, manner, before, after).await,
            Action::LookUp { worker, listing } => {
                let fate = match listing {
                    Listing::Complete => Fate::Passes,
                    Listing::Failed => {
                        pick(manner, &[Fate::Dropped, Fate::ReplyLost, Fate::Refused(gate::bad_gateway)])
                    }
                    Listing::Undecidable => Fate::Reworded(gate::undecidable),
                };
                self.asks(worker, self.stage.operation.message(Step::LookUp), fate).await
            }
            Action::Charge { worker, outcome } => self.charge(worker, outcome, manner, before).await,
            Action::GiveUp { worker } => self.ends(worker, AttemptResult::LeaseLost).await,
            Action::Tell { worker } => match before.workers[worker] {
                Worker::Answering(response) => self.answers(worker, response).await,
                Worker::Idle | Worker::Attempting(_) => Err("nothing to tell".to_owned()),
            },
            Action::WorkerEnds { worker } => {
                self.stage.seats[worker].end().await;
                Ok(())
            }
            Action::DatabaseCrashes { kept } => {
                self.crash(kept).await;
                Ok(())
            }
            Action::HandBack => self.hands_back(1).await,
            Action::RetentionPasses => {
                let intended = self.times().map_or(self.now, |times| times.intended);
                let left = (intended + KEY_RETENTION.as_secs_f64() - self.now).max(0.0);
                self.pass(left + pick(manner, &[0.0, 48.0 * 3600.0])).await;
                Ok(())
            }
            Action::StripeForgets => {
                self.stage.ledger.forget_keys().unwrap();
                self.run_out_of_time(before, after);
                Ok(())
            }
            Action::Reap => self.reap(after).await,
            Action::RetryParked => {
                let ids: Vec<i64> = self.key_id.into_iter().collect();
                match parked::retry(&self.stage.house, &ids).await {
                    Ok(retried) if retried == ids => Ok(()),
                    other => Err(format!("retried {other:?}, and not {ids:?}")),
                }
            }
        }
    }

    /// Makes a visit that must change nothing.
    pub(super) async fn probe(&mut self, probe: Probe) -> Result<(), String> {
        let mut request = self.stage.operation.request(&self.opening.user, &self.opening.key);
        let expected = match probe {
            Probe::RepeatedUnderLease => AttemptResult::InProgress,
            Probe::RepeatedParked => AttemptResult::Parked,
            Probe::OtherParameters => {
                request = self.stage.operation.other_request(request);
                AttemptResult::Mismatch
            }
            Probe::OtherPath => {
                request.path.push_str("/elsewhere");
                AttemptResult::Mismatch
            }
            Probe::Claim => return self.claims_nothing().await,
            Probe::Reap => return self.reaps_nothing().await,
            Probe::HandBack => return self.hands_back(0).await,
            Probe::HandBackOfOthers => {
                let holder = self.verdict().process;
                let others = self.stage.seats.iter().map(|seat| seat.process);
                for process in others.filter(|process| *process != holder).chain([Uuid::nil()]) {
                    self.hands_back_by(Verdict { process, ..self.verdict() }, 0).await?;
                }
                return Ok(());
            }
            Probe::HandBackAlive => {
                let verdict = Verdict { silent_for: SILENT, ..self.verdict() };
                return self.hands_back_by(verdict, 0).await;
            }
            Probe::ClaimLocked | Probe::ReapLocked | Probe::HandBackLocked => {
                let lock = "BEGIN; SELECT FROM idempotency_keys FOR UPDATE";
                self.stage.locker.batch_execute(lock).await.unwrap();
                let passed_over = match probe {
                    Probe::ClaimLocked => self.claims_nothing().await,
                    Probe::HandBackLocked => self.hands_back(0).await,
                    _ => self.reaps_nothing().await,
                };
                self.stage.locker.batch_execute("ROLLBACK").await.unwrap();
                return passed_over;
            }
        };
        let executor = self.stage.operation.executor(&self.stage.means());
        let told = operation::told(self.stage.operation, executor.execute(request).await.answer);
        if told == expected { Ok(()) } else { Err(format!("told {told:?}, and not {expected:?}")) }
    }

    /// A client looks its key up, from the seat that belongs to no worker of the model.
    pub(super) async fn look(&mut self) -> Result<(), String> {
        let worker = self.protocol.workers;
        self.is_looking = true;
        self.start_request(worker, 0);
        self.asks(worker, self.stage.operation.opening(), Fate::Passes).await
    }

    /// That client tries to take the lease. If it cannot, it looks its key up again.
    pub(super) async fn take_up(&mut self, before: &State) -> Result<(), String> {
        let mut worker = self.protocol.workers;
        self.is_looking = false;
        if let Some(idle) = before.workers.iter().position(|worker| *worker == Worker::Idle) {
            self.stage.seats.swap(worker, idle);
            self.for_client[idle] = true;
            worker = idle;
        }
        self.asks(worker, TAKE, Fate::Passes).await?;
        match before.database.row() {
            Some(row) if row.parked => {
                self.asks(worker, self.stage.operation.opening(), Fate::Passes).await?;
                self.ends(worker, AttemptResult::Parked).await
            }
            Some(row) if row.response.is_none() && self.is_under_lease() => {
                self.asks(worker, self.stage.operation.opening(), Fate::Passes).await?;
                self.ends(worker, AttemptResult::InProgress).await
            }
            Some(row) if row.response.is_none() => Ok(()),
            Some(_) | None => self.asks(worker, self.stage.operation.opening(), Fate::Passes).await,
        }
    }

    fn is_under_lease(&self) -> bool {
        self.times().is_some_and(|times| self.come(times.free_at()) != Known::Yes)
    }

    fn start_request(&mut self, worker: usize, manner: usize) {
        let operation = self.stage.operation;
        let request = operation.request(&self.opening.user, &self.opening.key);
        self.stage.seats[worker].start(ahead(manner), |means| attempt(operation, means, request));
        self.for_client[worker] = true;
    }

    async fn request(&mut self, worker: usize, manner: usize, before: &State) -> Result<(), String> {
        self.start_request(worker, manner);
        self.asks(worker, self.stage.operation.opening(), Fate::Passes).await?;
        if before.database.row().is_some_and(|row| row.response.is_none()) {
            self.asks(worker, TAKE, Fate::Passes).await?;
        }
        Ok(())
    }

    async fn claim(&mut self, worker: usize, manner: usize, after: &State) -> Result<(), String> {
        let (operation, max_attempts) = (self.stage.operation, i32::from(self.protocol.max_attempts));
        self.stage.seats[worker].start(ahead(manner), |means| complete(operation, means, max_attempts));
        self.for_client[worker] = false;
        self.asks(worker, TAKE, Fate::Passes).await?;
        if after.workers[worker] == Worker::Idle { self.ends(worker, AttemptResult::Nothing).await } else { Ok(()) }
    }

    async fn statement(
        &mut self,
        worker: usize,
        reply: Reply,
        manner: usize,
        before: &State,
        after: &State,
    ) -> Result<(), String> {
        let step = before.workers[worker].attempt().ok_or("no attempt")?.step;
        let fate = match reply {
            Reply::Arrives => Fate::Passes,
            Reply::Lost => Fate::ReplyLost,
            Reply::Failed => pick(
                manner,
                &[
                    Fate::Dropped,
                    Fate::Refused(gate::refused_by_postgres::<0>),
                    Fate::Refused(gate::refused_by_postgres::<1>),
                    Fate::Refused(gate::refused_by_postgres::<2>),
                    Fate::Refused(gate::refused_by_postgres::<3>),
                ],
            ),
        };
        self.asks(worker, self.stage.operation.message(step), fate).await?;
        if after.workers[worker] != Worker::Idle {
            return Ok(());
        }
        let told = match step {
            Step::Release => AttemptResult::Again,
            Step::Park => AttemptResult::Parked,
            Step::LookUp | Step::Charge | Step::Advance | Step::Close(_) => AttemptResult::LeaseLost,
        };
        self.ends(worker, told).await
    }

    async fn charge(
        &mut self,
        worker: usize,
        outcome: Outcome,
        manner: usize,
        before: &State,
    ) -> Result<(), String> {
        let key = before.workers[worker].attempt().ok_or("no attempt")?.foreign_call_key;
        let is_new = before.stripe.remembered(key).is_none();
        let fault = |answer| match answer {
            _ if !is_new => Fault::None,
            Answer::Charged => Fault::None,
            Answer::Declined => Fault::Declined,
            Answer::Failed { charged: true } => Fault::ChargedThenStoredServerError,
            Answer::Failed { charged: false } => Fault::StoredServerError,
        };
        let (fault, fate) = match outcome {
            Outcome::Answered(answer) => (Some(fault(answer)), Fate::Passes),
            Outcome::ReplyLost(answer) => (Some(fault(answer)), Fate::ReplyLost),
            Outcome::NotMade => {
                let faults = [
                    None,
                    Some(Fault::Reset),
                    Some(Fault::ServerError),
                    Some(Fault::RateLimited),
                    Some(Fault::BadRequest),
                    Some(Fault::Unauthorized),
                    Some(Fault::Forbidden),
                ];
                let fault = pick(manner, &faults);
                (fault, if fault.is_some() { Fate::Passes } else { Fate::Dropped })
            }
        };
        let knock = self.knocks(worker, self.stage.operation.message(Step::Charge)).await?;
        self.stage.faults.script(fault);
        self.stage.seats[worker].carry_out(knock, fate).await;
        Ok(())
    }

    async fn reap(&mut self, after: &State) -> Result<(), String> {
        let parked = after.database.row().is_some();
        let expected = Reaped { removed: i64::from(!parked), parked: i64::from(parked) };
        match reap(&self.stage.house, RETENTION, LEASE, BATCH).await {
            Ok(reaped) if reaped == expected => Ok(()),
            other => Err(format!("reaped {other:?}, and not {expected:?}")),
        }
    }

    /// Takes the process for dead that holds the lease, or one that may have held it.
    async fn hands_back(&self, expected: i64) -> Result<(), String> {
        self.hands_back_by(self.verdict(), expected).await
    }

    fn verdict(&self) -> Verdict<'static> {
        let lease = self.state.database.row().and_then(|row| row.lease);
        let holder = lease.and_then(|lease| self.names.processes.get(&lease.acquisition).copied());
        Verdict {
            process: holder.unwrap_or(self.stage.seats[0].process),
            silent_for: Duration::ZERO,
            // It goes on.
            ended_after: SILENT,
            crash_grace: CRASH_GRACE,
            why: "taken for dead",
        }
    }

    async fn hands_back_by(&self, verdict: Verdict<'_>, expected: i64) -> Result<(), String> {
        let expected = HandedBack { requests: expected, ..HandedBack::default() };
        match hand_back(&self.stage.house, verdict).await {
            Ok(back) if back == expected => Ok(()),
            other => Err(format!("handed back {other:?}, and not {expected:?}")),
        }
    }

    async fn claims_nothing(&self) -> Result<(), String> {
        let max_attempts = i32::from(self.protocol.max_attempts);
        let policy = RetryPolicy { lock_timeout: LEASE, retry_after: RETRY_AFTER, max_attempts };
        let operations = [self.stage.operation.name()];
        match claim(&self.stage.house, &operations, BATCH, &policy).await {
            Ok(claims) if claims.claimed.is_empty() && claims.parked.is_empty() => Ok(()),
            other => Err(format!("claimed {other:?}")),
        }
    }

    async fn reaps_nothing(&self) -> Result<(), String> {
        match reap(&self.stage.house, RETENTION, LEASE, BATCH).await {
            Ok(reaped) if reaped == Reaped::default() => Ok(()),
            other => Err(format!("reaped {other:?}")),
        }
    }

    /// Moves the clocks of workers whose leases have become too short for a call in this step.
    fn run_out_of_time(&mut self, before: &State, after: &State) {
        for (worker, (before, after)) in before.workers.iter().zip(&after.workers).enumerate() {
            let clock = |worker: &Worker| worker.attempt().map(|attempt| attempt.clock);
            if clock(after) == Some(Clock::RanOut) && clock(before) != Some(Clock::RanOut) {
                self.stage.seats[worker].be_ahead(LEASE - STRIPE_TIMEOUT);
            }
        }
    }

    async fn asks(&mut self, worker: usize, message: &str, fate: Fate) -> Result<(), String> {
        let knock = self.knocks(worker, message).await?;
        self.stage.seats[worker].carry_out(knock, fate).await;
        Ok(())
    }

    /// Lets the worker go on; its next message must be this one.
    async fn knocks(&mut self, worker: usize, message: &str) -> Result<super::gate::PendingMessage, String> {
        match self.stage.seats[worker].next().await {
            Next::Asks(knock) if knock.boundary.label == message => Ok(knock),
            Next::Asks(knock) => Err(format!("the worker asks {}, and not {message}", knock.boundary)),
            Next::Ends(told) => Err(format!("the worker ends with {told:?}, and does not ask {message}")),
            Next::Hangs => Err(format!("the worker does not ask {message}")),
        }
    }
}

/// Returns the one of these that `manner` picks; each is picked by some value of it.
fn pick<T: Copy>(manner: usize, all: &[T]) -> T {
    all[manner % all.len()]
}

/// Returns how far a worker's clock is ahead from the start.
fn ahead(manner: usize) -> Duration {
    pick(manner, &[Duration::ZERO, just_fits()])
}
