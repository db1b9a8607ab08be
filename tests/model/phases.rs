//! What each step does, to the database, to Stripe and to the worker.

use crate::change::Change;
use crate::database::{Durability, Intent, Key, Lease, RecoveryPoint, Response, Row, Snapshot, Token};
use crate::protocol::{Listing, Protocol, Reply, State};
use crate::stripe::{Answer, Outcome};
use crate::worker::{Attempt, Clock, Step, Worker};

impl Protocol {
    /// A client's request: opens it, takes its lease over, or repeats its answer.
    pub(crate) fn request(&self, state: &mut State, worker: usize) {
        match state.database.row().copied() {
            Some(Row { response: Some(response), .. }) => state.workers[worker] = Worker::Answering(response),
            Some(row) => self.take_over(state, worker, row),
            None => {
                let row = Row {
                    recovery_point: RecoveryPoint::Call(1),
                    response: None,
                    lease: None,
                    attempts: 0,
                    completer_attempts: 0,
                    parked: false,
                    foreign_call_key: state.fresh_foreign_call_key(),
                    intent: Intent::Recent,
                };
                self.lease(state, worker, row, self.flushed_unless(Change::OpenNotFlushed));
            }
        }
    }

    /// The completer's claim: takes the lease over, or parks the key after too many attempts.
    pub(crate) fn claim(&self, state: &mut State, worker: usize) {
        let Some(row) = state.database.row().copied() else { return };
        if row.completer_attempts >= self.max_attempts {
            state.write(Row { parked: true, lease: None, ..row }, Durability::Flushed);
        } else {
            let completer_attempts = row.completer_attempts + 1;
            self.take_over(state, worker, Row { completer_attempts, ..row });
        }
    }

    /// Takes the lease of an existing row. The commit is flushed, because a look-up may show the new holder what the
    /// last one did not learn, so a crash must not restore the last holder's lease.
    fn take_over(&self, state: &mut State, worker: usize, row: Row) {
        // A counter does harm only where a take-over can be lost.
        let can_be_lost = self.has(Change::TakeOverNotFlushed) || self.has(Change::TokenFromCounter);
        let durability = if can_be_lost { Durability::Later } else { Durability::Flushed };
        self.lease(state, worker, row, durability);
    }

    /// Writes a new lease to the row, and lets the worker go on from the recovery point.
    fn lease(&self, state: &mut State, worker: usize, mut row: Row, durability: Durability) {
        let acquisition = state.fresh_acquisition();
        let token = if self.has(Change::TokenFromCounter) {
            row.attempts += 1;
            Token::Counted(row.attempts)
        } else {
            Token::Random(acquisition)
        };
        row.lease = Some(Lease { token, acquisition });
        let past_retention = row.intent == Intent::PastRetention;
        let RecoveryPoint::Call(call) = row.recovery_point else { unreachable!("a finished key gives no lease") };
        let attempt = Attempt {
            token,
            acquisition,
            call,
            foreign_call_key: if self.has(Change::ForeignCallKeyPerAttempt) {
                state.fresh_foreign_call_key()
            } else {
                row.foreign_call_key
            },
            clock: if past_retention { Clock::Outlasts } else { Clock::FallsShort },
            step: if past_retention && !self.has(Change::LookUpRemoved) { Step::LookUp } else { Step::Charge },
        };
        state.write(row, durability);
        state.workers[worker] = Worker::Attempting(attempt);
    }

    /// Runs the worker's statement, and sets what the worker does next: it is done, it has lost its lease, or it
    /// releases the lease after an error of the database.
    pub(crate) fn statement(&self, state: &mut State, worker: usize, reply: Reply) {
        let Some(attempt) = state.workers[worker].attempt().copied() else { return };
        let done = if reply == Reply::Failed { None } else { self.execute(state, &attempt) };
        state.workers[worker] = match (reply, attempt.step) {
            (Reply::Lost | Reply::Failed, _) => attempt.at(Step::Release),
            (Reply::Arrives, Step::Advance) => match done {
                Some(row) => {
                    let next =
                        Attempt { foreign_call_key: row.foreign_call_key, call: attempt.call + 1, ..attempt };
                    Attempt { clock: Clock::FallsShort, ..next }.at(Step::Charge)
                }
                None => Worker::Idle,
            },
            (Reply::Arrives, Step::Close(response)) if done.is_some() => Worker::Answering(response),
            (Reply::Arrives, Step::Close(_) | Step::LookUp | Step::Charge | Step::Release | Step::Park) => {
                Worker::Idle
            }
        };
    }

    /// Runs one fenced statement. Returns the row after it, or `None` if the fence refused it.
    fn execute(&self, state: &mut State, attempt: &Attempt) -> Option<Row> {
        let before = *state.database.current();
        let Key::Present(mut row) = before.key else { return None };
        let mine = row.lease.is_some_and(|lease| lease.token == attempt.token);
        let due = !attempt.step.is_phase() || row.recovery_point == RecoveryPoint::Call(attempt.call);
        let open = mine && due || self.has(Change::FenceRemoved);
        if !open {
            return None;
        }
        let stale = row.lease.is_none_or(|lease| lease.acquisition != attempt.acquisition);
        let mut after = before;
        let durability = match attempt.step {
            Step::Advance => {
                row.recovery_point = RecoveryPoint::Call(attempt.call + 1);
                row.foreign_call_key = state.fresh_foreign_call_key();
                row.intent = Intent::Recent;
                self.flushed_unless(Change::OpenNotFlushed)
            }
            Step::Close(response) => {
                row.recovery_point = RecoveryPoint::Finished;
                row.response = Some(response);
                row.lease = None;
                after.receipts += u8::from(response == Response::Paid);
                self.flushed_unless(Change::CloseNotFlushed)
            }
            Step::Release => {
                row.lease = None;
                Durability::Later
            }
            Step::Park => {
                row.lease = None;
                row.parked = true;
                Durability::Flushed
            }
            Step::LookUp | Step::Charge => return None,
        };
        after.key = Key::Present(row);
        state.broken.stale_lease_wrote |= stale && after != before;
        state.database.commit(after, durability);
        Some(row)
    }

    /// Looks for a charge. Only after a complete list without one does the worker make it.
    pub(crate) fn look_up(&self, state: &mut State, worker: usize, listing: Listing) {
        let Some(mut attempt) = state.workers[worker].attempt().copied() else { return };
        state.workers[worker] = match listing {
            Listing::Complete if state.stripe.has_charge(attempt.foreign_call_key) => {
                attempt.at(self.after_charge(attempt.call))
            }
            Listing::Complete => {
                if self.has(Change::ClockCheckedBeforeLookUpOnly) {
                    attempt.clock = Clock::Unwatched;
                }
                attempt.at(Step::Charge)
            }
            Listing::Failed => attempt.at(Step::Release),
            Listing::Undecidable => attempt.at(Step::Park),
        };
    }

    /// Makes the foreign call.
    pub(crate) fn charge(&self, state: &mut State, worker: usize, outcome: Outcome) {
        let Some(attempt) = state.workers[worker].attempt().copied() else { return };
        state.charge_asked_for = state.charge_asked_for.max(attempt.call);
        if let Outcome::Answered(answer) | Outcome::ReplyLost(answer) = outcome
            && state.stripe.charge(attempt.call, attempt.foreign_call_key, answer)
        {
            for other in state.workers.iter_mut().filter_map(Worker::attempt_mut) {
                if other.clock == Clock::Outlasts {
                    other.clock = Clock::FallsShort;
                }
            }
        }
        let next = match outcome {
            Outcome::Answered(Answer::Charged) => self.after_charge(attempt.call),
            Outcome::Answered(Answer::Declined) => Step::Close(Response::Declined),
            Outcome::Answered(Answer::Failed { .. }) | Outcome::ReplyLost(_) | Outcome::NotMade => {
                if self.has(Change::TransientErrorFinal) { Step::Close(Response::Failed) } else { Step::Release }
            }
        };
        state.workers[worker] = attempt.at(next);
    }

    /// Stripe forgets its keys, at least a day after it stored the answer. See [`Clock`] for which leases have run out
    /// by then.
    pub(crate) fn stripe_forgets(&self, state: &mut State) {
        state.stripe.forget_keys();
        let current = state.database.row().and_then(|row| row.lease);
        for attempt in state.workers.iter_mut().filter_map(Worker::attempt_mut) {
            let lost = current.is_none_or(|lease| lease.acquisition != attempt.acquisition);
            if attempt.clock == Clock::FallsShort
                || (attempt.clock == Clock::Outlasts && lost && !self.has(Change::LoserChargesWhenStripeForgets))
            {
                attempt.clock = Clock::RanOut;
            }
        }
    }

    /// Removes a finished key, or parks an unfinished one, at any time: correctness does not depend on how old they
    /// must be. What a crash undoes of this, the reaper does again.
    pub(crate) fn reap(&self, state: &mut State) {
        let mut snapshot = *state.database.current();
        let Key::Present(row) = snapshot.key else { return };
        let remove = row.response.is_some() || self.has(Change::ReaperRemovesUnfinished);
        snapshot.key = if remove {
            Key::Removed(row.response)
        } else {
            Key::Present(Row { parked: true, lease: None, ..row })
        };
        state.database.commit(snapshot, Durability::Later);
    }

    /// Returns the step that follows when this call was made.
    fn after_charge(&self, call: u8) -> Step {
        if call < self.calls { Step::Advance } else { Step::Close(Response::Paid) }
    }

    fn flushed_unless(&self, change: Change) -> Durability {
        if self.has(change) { Durability::Later } else { Durability::Flushed }
    }
}

impl State {
    pub(crate) fn tell(&mut self, worker: usize) {
        let Worker::Answering(response) = self.workers[worker] else { return };
        self.broken.answer_changed |= self.told.is_some_and(|told| told != response);
        self.told = Some(response);
        self.workers[worker] = Worker::Idle;
    }

    pub(crate) fn write(&mut self, row: Row, durability: Durability) {
        let snapshot = Snapshot { key: Key::Present(row), ..*self.database.current() };
        self.database.commit(snapshot, durability);
    }
}
