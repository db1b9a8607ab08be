//! The protocol and everything that may happen to it: every state, and every step from it.

use stateright::{Model, Property};

use crate::change::Change;
use crate::database::{Database, Durability, Intent, Key, Response, Row};
use crate::properties;
use crate::stripe::{Answer, Outcome, Stripe};
use crate::worker::{Attempt, Clock, Step, Worker};

/// The model, with its bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protocol {
    /// What is done wrong on purpose.
    pub(crate) change: Option<Change>,
    /// How many attempts can be under way at once, zombies included.
    pub(crate) workers: usize,
    /// `completer.max_attempts`.
    pub(crate) max_attempts: u8,
    /// Foreign calls that the operation makes, one after the other.
    pub(crate) calls: u8,
}

/// Everything at one moment. The checker treats states as one if they differ only in [names](crate::names), as most of
/// them do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) database: Database,
    pub(crate) stripe: Stripe,
    pub(crate) workers: Vec<Worker>,
    /// The final answer that a client got.
    pub(crate) told: Option<Response>,
    /// The number of the last call that was ever made.
    pub(crate) charge_asked_for: u8,
    pub(crate) broken: Broken,
}

/// Promises about single steps that were broken, which the states before and after do not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Broken {
    pub(crate) stale_lease_wrote: bool,
    pub(crate) recovery_point_moved_back: bool,
    pub(crate) answer_changed: bool,
}

/// The reply that a worker gets to its statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Arrives,
    /// It was committed, but the connection broke.
    Lost,
    /// It was not carried out.
    Failed,
}

/// The reply that a worker gets when it looks a charge up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    Complete,
    Failed,
    /// A charge that has neither succeeded nor failed, or too many to read.
    Undecidable,
}

/// One step, of a worker, of the database, of Stripe, of the reaper or of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A client sends its request, for the first time or again.
    Request {
        worker: usize,
    },
    /// The completer takes the request over, or parks it after too many attempts.
    Claim {
        worker: usize,
    },
    Statement {
        worker: usize,
        reply: Reply,
    },
    LookUp {
        worker: usize,
        listing: Listing,
    },
    Charge {
        worker: usize,
        outcome: Outcome,
    },
    /// The worker sees by its clock that its lease has run out.
    GiveUp {
        worker: usize,
    },
    Tell {
        worker: usize,
    },
    WorkerEnds {
        worker: usize,
    },
    DatabaseCrashes {
        kept: usize,
    },
    /// The lease's process is taken for dead, rightly or by mistake.
    HandBack,
    RetentionPasses,
    StripeForgets,
    Reap,
    /// A person lets a parked key be tried again.
    RetryParked,
}

impl Action {
    /// Returns the worker whose step it is.
    pub(crate) fn worker(self) -> Option<usize> {
        match self {
            Self::Request { worker }
            | Self::Claim { worker }
            | Self::Statement { worker, .. }
            | Self::LookUp { worker, .. }
            | Self::Charge { worker, .. }
            | Self::GiveUp { worker }
            | Self::Tell { worker }
            | Self::WorkerEnds { worker } => Some(worker),
            Self::DatabaseCrashes { .. }
            | Self::HandBack
            | Self::RetentionPasses
            | Self::StripeForgets
            | Self::Reap
            | Self::RetryParked => None,
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            database: Database::empty(),
            stripe: Stripe::default(),
            workers: vec![Worker::Idle; self.workers],
            told: None,
            charge_asked_for: 0,
            broken: Broken::default(),
        }]
    }

    /// The plainest actions come last: of the shortest traces to a violation the checker reports the one that comes
    /// last.
    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend((0..state.database.unflushed()).rev().map(|kept| Action::DatabaseCrashes { kept }));
        if let Some(row) = state.database.row() {
            actions.push(if row.parked { Action::RetryParked } else { Action::Reap });
            if row.lease.is_some() {
                actions.push(Action::HandBack);
            }
            if row.intent == Intent::Recent {
                actions.push(Action::RetentionPasses);
            }
            if row.intent == Intent::PastRetention && state.stripe.remembers() {
                actions.push(Action::StripeForgets);
            }
        }
        let busy = || state.workers.iter().enumerate().rev().filter(|(_, doing)| **doing != Worker::Idle);
        actions.extend(busy().map(|(worker, _)| Action::WorkerEnds { worker }));
        // Idle workers are alike, so the first of them stands for all.
        if let Some(worker) = state.workers.iter().position(|worker| *worker == Worker::Idle) {
            arrivals(state, worker, actions);
        }
        for (worker, doing) in busy() {
            match doing {
                Worker::Idle => {}
                Worker::Attempting(attempt) => self.steps(state, worker, attempt, actions),
                Worker::Answering(_) => actions.push(Action::Tell { worker }),
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Request { worker } => self.request(&mut next, worker),
            Action::Claim { worker } => self.claim(&mut next, worker),
            Action::Statement { worker, reply } => self.statement(&mut next, worker, reply),
            Action::LookUp { worker, listing } => self.look_up(&mut next, worker, listing),
            Action::Charge { worker, outcome } => self.charge(&mut next, worker, outcome),
            Action::GiveUp { worker } | Action::WorkerEnds { worker } => next.workers[worker] = Worker::Idle,
            Action::Tell { worker } => next.tell(worker),
            Action::DatabaseCrashes { kept } => next.database.crash(kept),
            Action::HandBack => {
                let row = next.database.row().copied()?;
                next.write(Row { lease: None, ..row }, Durability::Later);
            }
            Action::RetentionPasses => next.database.change_versions(|row| {
                if row.intent == Intent::Recent {
                    row.intent = Intent::PastRetention;
                }
            }),
            Action::StripeForgets => self.stripe_forgets(&mut next),
            Action::Reap => self.reap(&mut next),
            Action::RetryParked => {
                let row = next.database.row().copied()?;
                next.write(Row { parked: false, completer_attempts: 0, ..row }, Durability::Flushed);
            }
        }
        let crash = matches!(action, Action::DatabaseCrashes { .. });
        next.broken.recovery_point_moved_back |=
            !crash && next.database.recovery_point() < state.database.recovery_point();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// Adds what may arrive at an idle worker. A lease keeps nothing away: it may have run out, and the protocol must be
/// right even if every lease has.
fn arrivals(state: &State, worker: usize, actions: &mut Vec<Action>) {
    match &state.database.current().key {
        Key::Absent => actions.push(Action::Request { worker }),
        Key::Present(row) if row.response.is_some() => actions.push(Action::Request { worker }),
        Key::Present(row) if !row.parked => {
            actions.push(Action::Claim { worker });
            actions.push(Action::Request { worker });
        }
        // A client that returns after the key's retention makes a new request.
        Key::Present(_) | Key::Removed(_) => {}
    }
}

impl Protocol {
    pub(crate) fn has(&self, change: Change) -> bool {
        self.change == Some(change)
    }

    /// Adds the worker's next step, with each of its possible results.
    fn steps(&self, state: &State, worker: usize, attempt: &Attempt, actions: &mut Vec<Action>) {
        let late = attempt.clock == Clock::RanOut && !self.has(Change::ClockNotChecked);
        match attempt.step {
            Step::Charge if late => actions.push(Action::GiveUp { worker }),
            Step::LookUp if late && self.has(Change::ClockCheckedBeforeLookUpOnly) => {
                actions.push(Action::GiveUp { worker });
            }
            Step::LookUp => {
                actions.extend(
                    [Listing::Undecidable, Listing::Failed, Listing::Complete]
                        .map(|listing| Action::LookUp { worker, listing }),
                );
            }
            Step::Charge => {
                actions.push(Action::Charge { worker, outcome: Outcome::NotMade });
                let remembered = state.stripe.remembered(attempt.foreign_call_key);
                for answer in
                    Answer::ALL.into_iter().filter(|answer| remembered.is_none_or(|known| known == *answer))
                {
                    actions.push(Action::Charge { worker, outcome: Outcome::ReplyLost(answer) });
                    actions.push(Action::Charge { worker, outcome: Outcome::Answered(answer) });
                }
            }
            // If these fail the lease is not released, as if the worker had ended before.
            Step::Release | Step::Park => actions.push(Action::Statement { worker, reply: Reply::Arrives }),
            Step::Advance | Step::Close(_) => {
                actions.extend(
                    [Reply::Failed, Reply::Lost, Reply::Arrives].map(|reply| Action::Statement { worker, reply }),
                );
            }
        }
    }
}
