//! One walk: the model's state beside the real one, and when each move is possible.

use std::time::{Duration, Instant};

use stateright::Model;

use super::compare::Names;
use super::moves::{Move, Probe};
use super::operation::{AttemptResult, Walked};
use super::seat::Next;
use super::stage::{Opening, Stage};
use super::times::{KEY_RETENTION, Known, LEASE, REAL_TIME, STRIPE_TIMEOUT, Times, come};
use crate::database::{Intent, Response};
use crate::protocol::{Action, Protocol, State};
use crate::trace;

pub(super) struct Walk<'a, O> {
    pub(super) stage: &'a mut Stage<O>,
    pub(super) protocol: Protocol,
    pub(super) state: State,
    pub(super) opening: Opening,
    /// The walk's clock, in seconds.
    pub(super) now: f64,
    began: Instant,
    /// What a crash may restore: the state on disk, and one for each commit that is not on disk.
    pub(super) versions: Vec<Version>,
    pub(super) last_commit: i64,
    pub(super) names: Names,
    /// The request, which stays the same for as long as there is a row, and the final answer.
    pub(super) request: Option<String>,
    pub(super) answer: Option<String>,
    pub(super) key_id: Option<i64>,
    /// Whether each worker works for a client, which gets an answer.
    pub(super) for_client: Vec<bool>,
    /// Whether a client is held up between its look and its take-over; it has the last seat.
    pub(super) is_looking: bool,
    /// The moves so far, a line each.
    pub(super) lines: Vec<String>,
}

/// The database after one commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    pub(super) commit: i64,
    /// When, by the walk's clock.
    pub(super) at: f64,
    pub(super) times: Option<Times>,
}

impl<'a, O: Walked> Walk<'a, O> {
    pub(super) async fn open(stage: &'a mut Stage<O>, protocol: Protocol) -> Self {
        let opening = stage.open().await;
        let workers = protocol.workers;
        let empty = Version { commit: opening.empty, at: 0.0, times: None };
        Self {
            stage,
            protocol,
            state: protocol.init_states().remove(0),
            now: 0.0,
            began: Instant::now(),
            versions: vec![empty],
            last_commit: opening.empty,
            names: Names::default(),
            request: None,
            answer: None,
            key_id: None,
            for_client: vec![false; workers + 1],
            is_looking: false,
            lines: Vec::new(),
            opening,
        }
    }

    /// Returns the times of the current row, if there is one.
    pub(super) fn times(&self) -> Option<Times> {
        self.versions.last().and_then(|version| version.times)
    }

    /// Returns whether a moment of the walk's clock has come.
    pub(super) fn come(&self, moment: f64) -> Known {
        come(moment, self.now, self.real())
    }

    /// Returns the real seconds that have passed.
    pub(super) fn real(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Returns whether the walk took so long that it proves nothing any more.
    pub(super) fn is_stale(&self) -> bool {
        self.began.elapsed() > REAL_TIME
    }

    /// Returns how many seconds may pass without an action of the model, because only such an action ends Stripe's
    /// memory.
    pub(super) fn may_pass(&self) -> f64 {
        let recent = self.state.database.row().is_some_and(|row| row.intent == Intent::Recent);
        match self.times().filter(|_| recent) {
            Some(times) => times.intended + KEY_RETENTION.as_secs_f64() - 2.0 * REAL_TIME.as_secs_f64() - self.now,
            None => f64::INFINITY,
        }
    }

    /// Returns when, by the walk's clock, an action of the model becomes possible.
    pub(super) fn possible_at(&self, action: Action) -> f64 {
        let unfinished = self.state.database.row().is_some_and(|row| row.response.is_none());
        match (action, self.times()) {
            (Action::Request { .. }, Some(times)) if unfinished => times.free_at(),
            (Action::Claim { .. }, Some(times)) => times.claimable_at(),
            (Action::Reap, Some(times)) => times.reapable_at(),
            _ => f64::NEG_INFINITY,
        }
    }

    /// Returns whether a visit now must certainly change nothing.
    pub(super) fn holds(&self, probe: Probe) -> bool {
        let row = self.state.database.row();
        let open = row.is_some_and(|row| row.response.is_none() && !row.parked);
        let certain =
            |moment: fn(&Times) -> f64, known| self.times().is_some_and(|times| self.come(moment(&times)) == known);
        match probe {
            Probe::RepeatedUnderLease => open && certain(Times::free_at, Known::No),
            Probe::RepeatedParked => row.is_some_and(|row| row.parked),
            Probe::OtherParameters | Probe::OtherPath => row.is_some(),
            Probe::Claim => !open || certain(Times::claimable_at, Known::No),
            Probe::ClaimLocked => open && certain(Times::claimable_at, Known::Yes),
            Probe::Reap => row.is_none_or(|row| row.parked) || certain(Times::reapable_at, Known::No),
            Probe::ReapLocked => row.is_some_and(|row| !row.parked) && certain(Times::reapable_at, Known::Yes),
            Probe::HandBack => row.is_none_or(|row| row.lease.is_none()),
            Probe::HandBackLocked | Probe::HandBackOfOthers | Probe::HandBackAlive => {
                row.is_some_and(|row| row.lease.is_some())
            }
        }
    }

    /// Returns whether the move can be made now.
    pub(super) fn is_possible(&self, mv: Move) -> bool {
        match mv {
            Move::Act(action, _) => {
                let mut actions = Vec::new();
                self.protocol.actions(&self.state, &mut actions);
                actions.contains(&action) && self.come(self.possible_at(action)) == Known::Yes
            }
            Move::Pass(seconds) => seconds <= self.may_pass(),
            Move::Look => self.may_look(),
            Move::TakeUp => self.take_up_action().is_some() || self.takes_up_in_vain(),
            Move::Tried(times) => {
                times <= self.protocol.max_attempts && self.state.database.row().is_some_and(|row| !row.parked)
            }
            Move::Probe(probe) => self.holds(probe),
        }
    }

    /// Makes a move, in the model and with the program, and returns where the two disagree.
    pub(super) async fn make(&mut self, mv: Move) -> Result<(), String> {
        let before = self.state.clone();
        let description = mv.describe(&before);
        let action = self.action(mv);
        let after = action.and_then(|action| self.protocol.next_state(&before, action)).unwrap_or(before.clone());
        let made = match mv {
            Move::Act(action, manner) => self.act(action, manner, &before, &after).await,
            Move::Look => self.look().await,
            Move::TakeUp => self.take_up(&before).await,
            Move::Pass(seconds) => {
                self.pass(seconds).await;
                Ok(())
            }
            Move::Tried(times) => {
                self.tried(times).await;
                Ok(())
            }
            Move::Probe(probe) => self.probe(probe).await,
        };
        if action.is_some() {
            self.state = after;
        }
        self.lines.push(trace::line(self.lines.len() + 1, &description, &self.state));
        made?;
        self.compare(action, &before).await
    }

    /// Returns the model's action for the move, if it has one.
    fn action(&self, mv: Move) -> Option<Action> {
        match mv {
            Move::Act(action, _) => Some(action),
            Move::TakeUp => self.take_up_action(),
            Move::Look | Move::Pass(_) | Move::Tried(_) | Move::Probe(_) => None,
        }
    }

    /// Returns whether a client may look its key up and find that the lease may be taken.
    pub(super) fn may_look(&self) -> bool {
        let open = self.state.database.row().is_some_and(|row| row.response.is_none() && !row.parked);
        !self.is_looking && open && self.times().is_some_and(|times| self.come(times.free_at()) == Known::Yes)
    }

    /// Returns the model's action if the client that was held up goes on now: a request, if the key permits one.
    pub(super) fn take_up_action(&self) -> Option<Action> {
        let mut actions = Vec::new();
        self.protocol.actions(&self.state, &mut actions);
        actions.into_iter().find(|action| {
            self.is_looking
                && matches!(action, Action::Request { .. })
                && self.come(self.possible_at(*action)) == Known::Yes
        })
    }

    /// Returns whether the key refuses that client.
    pub(super) fn takes_up_in_vain(&self) -> bool {
        self.is_looking && (self.holds(Probe::RepeatedUnderLease) || self.holds(Probe::RepeatedParked))
    }

    pub(super) async fn pass(&mut self, seconds: f64) {
        self.stage.observer.execute("SELECT lockstep.pass($1)", &[&seconds]).await.unwrap();
        self.now += seconds;
    }

    async fn tried(&mut self, times: u8) {
        let sql = "UPDATE idempotency_keys SET completer_attempts = $1";
        self.stage.observer.execute(sql, &[&i32::from(times)]).await.unwrap();
        let sql = "UPDATE lockstep.commits SET key.completer_attempts = $1 WHERE (key).id IS NOT NULL";
        self.stage.observer.execute(sql, &[&i32::from(times)]).await.unwrap();
        self.state.database.change_versions(|row| row.completer_attempts = times);
    }

    /// Restores the state that is left if the first `kept` of the unflushed commits have reached the disk.
    pub(super) async fn crash(&mut self, kept: usize) {
        self.versions.truncate(kept + 1);
        let last = self.versions[kept];
        let passed = self.now - last.at;
        self.stage.observer.execute("SELECT lockstep.crash($1, $2)", &[&last.commit, &passed]).await.unwrap();
        self.versions = vec![last];
    }

    /// Checks that the worker ends now, with this result.
    pub(super) async fn ends(&mut self, worker: usize, expected: AttemptResult) -> Result<(), String> {
        let expected = if self.for_client[worker] { expected } else { AttemptResult::Nothing };
        match self.stage.seats[worker].next().await {
            Next::Ends(told) if told == expected => Ok(()),
            Next::Ends(told) => Err(format!("the worker was told {told:?}, and not {expected:?}")),
            Next::Asks(knock) => Err(format!("the worker should end, and asks {}", knock.boundary)),
            Next::Hangs => Err("the worker should end, and does not".to_owned()),
        }
    }

    /// Checks that the worker ends with this final answer; its bytes are always the same.
    pub(super) async fn answers(&mut self, worker: usize, response: Response) -> Result<(), String> {
        let body = self.answer.clone().unwrap_or_default();
        self.ends(worker, AttemptResult::Final(response, body)).await
    }
}

/// Returns how far a worker's clock can be ahead while its call still just fits into the lease.
pub(super) fn just_fits() -> Duration {
    LEASE - STRIPE_TIMEOUT - REAL_TIME
}
