//! The moves of a walk: the model's actions, the passing of time, and probes, which must change nothing.

use std::collections::{BTreeSet, HashSet};
use std::fmt::{self, Display, Formatter};
use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::Model;

use crate::protocol::{Action, Listing, Protocol, Reply, State};
use crate::stripe::Outcome;
use crate::trace;
use crate::worker::{Step, Worker};

/// One move of a walk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Move {
    /// An action of the model. The number picks one of the ways to carry it out that make no difference to the model.
    Act(Action, usize),
    /// A client looks its key up, finds that it may take the lease, and is held up before it does.
    Look,
    /// That client goes on, whatever has happened to the key in the meantime.
    TakeUp,
    /// This many seconds pass.
    Pass(f64),
    /// From now on, this is the number of the completer's attempts.
    Tried(u8),
    /// A visit that must change nothing.
    Probe(Probe),
}

/// A visit that must change nothing, and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// A client repeats its request while the lease holds.
    RepeatedUnderLease,
    /// A client repeats its request while it is parked.
    RepeatedParked,
    /// A client sends other parameters with the same key.
    OtherParameters,
    /// A client uses the same key on another path.
    OtherPath,
    /// The completer looks for work, and the key is absent, finished, parked, under lease or not due.
    Claim,
    /// The completer looks for work while another session has the row locked.
    ClaimLocked,
    /// The reaper looks for old keys, and the key is absent, parked, under lease, young, or was taken up lately.
    Reap,
    /// The reaper looks for old keys while another session has the row locked.
    ReapLocked,
    /// The process is taken for dead, and the key is absent, finished, parked or free.
    HandBack,
    /// The process is taken for dead while another session has the row locked.
    HandBackLocked,
    /// Another process is taken for dead.
    HandBackOfOthers,
    /// The process has beaten a moment ago.
    HandBackAlive,
}

impl Probe {
    pub(super) const ALL: [Self; 12] = [
        Self::RepeatedUnderLease,
        Self::RepeatedParked,
        Self::OtherParameters,
        Self::OtherPath,
        Self::Claim,
        Self::ClaimLocked,
        Self::Reap,
        Self::ReapLocked,
        Self::HandBack,
        Self::HandBackLocked,
        Self::HandBackOfOthers,
        Self::HandBackAlive,
    ];
}

impl Display for Probe {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RepeatedUnderLease => "a repetition is told that the request is in progress",
            Self::RepeatedParked => "a repetition is told that the request is parked",
            Self::OtherParameters => "other parameters are told that they do not match",
            Self::OtherPath => "another path is told that it does not match",
            Self::Claim => "the completer leaves it alone",
            Self::ClaimLocked => "the completer passes over a row that is locked",
            Self::Reap => "the reaper leaves it alone",
            Self::ReapLocked => "the reaper passes over a row that is locked",
            Self::HandBack => "nothing is handed back",
            Self::HandBackLocked => "a row that is locked is not handed back",
            Self::HandBackOfOthers => "what another process holds is all that is handed back",
            Self::HandBackAlive => "a process that lives keeps its lease",
        })
    }
}

impl Move {
    /// Returns its description in a trace.
    pub(super) fn describe(self, before: &State) -> String {
        match self {
            Self::Act(action, _) => trace::describe(&action, before),
            Self::Look => "a client looks its key up and is held up".to_owned(),
            Self::TakeUp => "the client that was held up goes on".to_owned(),
            Self::Pass(seconds) => format!("{seconds:.3} s pass"),
            Self::Tried(times) => format!("the completer has tried it {times} times by now"),
            Self::Probe(probe) => probe.to_string(),
        }
    }
}

/// The name of [`Action::GiveUp`] in [`Kind::action`].
pub(super) const GIVES_UP: &str = "gives up, its lease has run out";

/// The kind of an edge in the model's graph.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// The action, with its variant and the worker's step: what every run must take often.
    pub(super) action: String,
    /// What else made a difference.
    pub(super) detail: String,
}

/// Returns the kind of the edge along which this action leads from `before` to `after`.
pub(super) fn kind(before: &State, action: Action, after: &State) -> Kind {
    let step = |state: &State, worker: usize| state.workers[worker].attempt().map(|attempt| attempt.step);
    let (action, detail) = match action {
        Action::Request { worker } | Action::Claim { worker } => {
            let who = if matches!(action, Action::Request { .. }) { "request" } else { "claim" };
            match (before.database.row(), step(after, worker)) {
                (None, _) => (format!("{who}: a new key"), ""),
                (Some(_), Some(step)) => (format!("{who}: takes the lease"), name(step)),
                (Some(row), None) if row.response.is_some() => (format!("{who}: finished"), ""),
                (Some(_), None) => (format!("{who}: parks"), ""),
            }
        }
        Action::Statement { worker, reply } => {
            let changed = before.database.current() != after.database.current();
            let reply_is = match reply {
                Reply::Arrives => "done",
                Reply::Lost => "reply lost",
                Reply::Failed => "failed",
            };
            let fence = if changed || reply == Reply::Failed { "" } else { "fence shut" };
            (format!("{}: {reply_is}", step(before, worker).map_or("", name)), fence)
        }
        Action::LookUp { worker, listing } => {
            let what = match listing {
                Listing::Complete if step(after, worker) != Some(Step::Charge) => "finds it",
                Listing::Complete => "there is none",
                Listing::Failed => "failed",
                Listing::Undecidable => "undecidable",
            };
            (format!("look-up: {what}"), "")
        }
        Action::Charge { worker, outcome } => {
            let key = before.workers[worker].attempt().map_or(0, |attempt| attempt.foreign_call_key);
            let memory = if before.stripe.remembered(key).is_some() { "from memory" } else { "" };
            match outcome {
                Outcome::Answered(answer) => (format!("charge: {answer}"), memory),
                Outcome::ReplyLost(answer) => (format!("charge: {answer}, reply lost"), memory),
                Outcome::NotMade => ("charge: not made".to_owned(), ""),
            }
        }
        Action::GiveUp { .. } => (GIVES_UP.to_owned(), ""),
        Action::Tell { worker } => match before.workers[worker] {
            Worker::Answering(response) => (format!("tells the client: {response:?}"), ""),
            Worker::Idle | Worker::Attempting(_) => (String::new(), ""),
        },
        Action::WorkerEnds { worker } => {
            ("a worker ends".to_owned(), step(before, worker).map_or("the answer", name))
        }
        Action::DatabaseCrashes { kept: 0 } => ("crash".to_owned(), "all is lost that can be"),
        Action::DatabaseCrashes { .. } => ("crash".to_owned(), "some is lost"),
        Action::HandBack => {
            let alive = before.workers.iter().any(|worker| {
                worker.attempt().map(|attempt| Some(attempt.acquisition))
                    == before.database.row().map(|row| row.lease.map(|lease| lease.acquisition))
            });
            ("the lease is handed back".to_owned(), if alive { "by mistake" } else { "of a worker that has ended" })
        }
        Action::RetentionPasses => ("23 hours pass".to_owned(), ""),
        Action::StripeForgets => ("Stripe forgets".to_owned(), ""),
        Action::Reap if before.database.response().is_some() => ("reap: removes".to_owned(), ""),
        Action::Reap => ("reap: parks".to_owned(), ""),
        Action::RetryParked => ("a parked key is tried again".to_owned(), ""),
    };
    Kind { action, detail: detail.to_owned() }
}

/// Returns every [`Kind::action`] that the model has: of every edge from every state that can be reached.
pub(super) fn all_actions(protocol: &Protocol) -> BTreeSet<String> {
    let mut reached: HashSet<u64> = HashSet::new();
    let mut found = BTreeSet::new();
    let mut open = protocol.init_states();
    while let Some(state) = open.pop() {
        let mut actions = Vec::new();
        protocol.actions(&state, &mut actions);
        for action in actions {
            let Some(after) = protocol.next_state(&state, action) else { continue };
            found.insert(kind(&state, action, &after).action);
            let mut hasher = DefaultHasher::new();
            after.hash(&mut hasher);
            if reached.insert(hasher.finish()) {
                open.push(after);
            }
        }
    }
    found
}

fn name(step: Step) -> &'static str {
    match step {
        Step::LookUp => "look-up",
        Step::Charge => "charge",
        Step::Advance => "advance",
        Step::Close(crate::database::Response::Paid) => "close paid",
        Step::Close(_) => "close declined",
        Step::Release => "release",
        Step::Park => "park",
    }
}
