//! Shortens a walk that ended in a disagreement as far as possible.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use stateright::Model;

use super::Disagreement;
use super::moves::Move;
use super::operation::Walked;
use super::stage::Stage;
use super::walk::Walk;
use crate::protocol::{Action, State};
use crate::worker::Worker;

/// The shortest walk that is found by then is reported.
const PATIENCE: Duration = Duration::from_secs(20);

/// A repeated walk, and what disagreed in it.
struct Failure {
    moves: Vec<Move>,
    lines: Vec<String>,
    why: String,
}

/// Leaves moves out for as long as the rest still disagrees, and reports the rest: first whole attempts are left out,
/// then single moves, then pairs.
pub(super) async fn report<O: Walked>(stage: &mut Stage<O>, found: Disagreement) -> String {
    let deadline = Instant::now() + PATIENCE;
    let Some(mut shortest) = make_again(stage, &found.moves, found.max_attempts).await else {
        let Disagreement { moves, why, .. } = found;
        return format!("a walk disagreed, and does not when it is made again: {why}\n{moves:#?}");
    };
    loop {
        let mut shorter = None;
        for leave_out in [attempts, single_moves, pairs] {
            if shorter.is_none() {
                let candidates = leave_out(&shortest.moves);
                shorter = first_that_fails(stage, &shortest.moves, candidates, found.max_attempts, deadline).await;
            }
        }
        match shorter {
            Some(shorter) => shortest = shorter,
            None => break,
        }
    }
    let Failure { moves, lines, why } = shortest;
    format!("model and program disagree after {} moves: {why}\n{}", moves.len(), lines.join("\n"))
}

/// Indexes of moves to leave out, the last first.
type LeftOut = Vec<Vec<usize>>;

/// Returns the moves of each attempt, from its lease to its end, and the time that passes just before.
fn attempts(moves: &[Move]) -> LeftOut {
    let begins = |mv: &Move| matches!(mv, Move::Act(Action::Request { .. } | Action::Claim { .. }, _));
    let of = |mv: &Move| if let Move::Act(action, _) = mv { action.worker() } else { None };
    let attempt = |begin: usize| {
        let worker = of(&moves[begin]);
        let before = begin.checked_sub(1).filter(|before| matches!(moves[*before], Move::Pass(_)));
        let rest = (begin + 1..moves.len()).take_while(|at| !(begins(&moves[*at]) && of(&moves[*at]) == worker));
        before.into_iter().chain([begin]).chain(rest.filter(|at| of(&moves[*at]) == worker)).collect()
    };
    (0..moves.len()).rev().filter(|at| begins(&moves[*at])).map(attempt).collect()
}

fn single_moves(moves: &[Move]) -> LeftOut {
    (0..moves.len()).rev().map(|at| vec![at]).collect()
}

fn pairs(moves: &[Move]) -> LeftOut {
    (0..moves.len()).rev().flat_map(|two| (0..two).rev().map(move |one| vec![one, two])).collect()
}

async fn first_that_fails<O: Walked>(
    stage: &mut Stage<O>,
    moves: &[Move],
    left_out: LeftOut,
    max_attempts: u8,
    deadline: Instant,
) -> Option<Failure> {
    for left_out in left_out {
        let rest = moves.iter().enumerate().filter(|(at, _)| !left_out.contains(at));
        let rest: Vec<Move> = rest.map(|(_, mv)| *mv).collect();
        // The model finds out quickly that a walk is impossible.
        if Instant::now() < deadline
            && makes_sense(&rest, max_attempts)
            && let Some(failure) = make_again(stage, &rest, max_attempts).await
            // The repeated walk may have got more moves, in which time passes.
            && failure.moves.len() < moves.len()
        {
            return Some(failure);
        }
    }
    None
}

/// Returns whether these moves are possible in the model, if their times are ignored.
fn makes_sense(moves: &[Move], max_attempts: u8) -> bool {
    let protocol = super::protocol(max_attempts);
    let mut state = protocol.init_states().remove(0);
    let mut workers = HashMap::new();
    for mv in moves {
        let mut actions = Vec::new();
        protocol.actions(&state, &mut actions);
        let action = match renamed(*mv, &state, &mut workers) {
            None => return false,
            Some(Move::Act(action, _)) if actions.contains(&action) => action,
            Some(Move::Act(..)) => return false,
            Some(Move::TakeUp) => match actions.iter().find(|action| matches!(action, Action::Request { .. })) {
                Some(request) => *request,
                None => continue,
            },
            Some(Move::Tried(times)) => {
                state.database.change_versions(|row| row.completer_attempts = times);
                continue;
            }
            Some(Move::Look | Move::Pass(_) | Move::Probe(_)) => continue,
        };
        let Some(after) = protocol.next_state(&state, action) else { return false };
        state = after;
    }
    true
}

/// Makes these moves with a new key, and lets time pass where an action needs it. `None` if they cannot all be made, or
/// if nothing disagrees.
async fn make_again<O: Walked>(stage: &mut Stage<O>, moves: &[Move], max_attempts: u8) -> Option<Failure> {
    let mut walk = Walk::open(stage, super::protocol(max_attempts)).await;
    let mut workers = HashMap::new();
    let mut made = Vec::new();
    for mv in moves {
        let mv = renamed(*mv, &walk.state, &mut workers)?;
        let wait = if let Move::Act(action, _) = mv { walk.possible_at(action) - walk.now } else { 0.0 };
        for mv in (wait > 0.0).then_some(Move::Pass(wait)).into_iter().chain([mv]) {
            if !walk.is_possible(mv) {
                return None;
            }
            made.push(mv);
            if let Err(why) = walk.make(mv).await {
                return Some(Failure { moves: made, lines: walk.lines, why });
            }
        }
    }
    None
}

/// Returns the same move of the worker that has replaced the original one.
fn renamed(mv: Move, state: &State, workers: &mut HashMap<usize, usize>) -> Option<Move> {
    let Move::Act(action, manner) = mv else { return Some(mv) };
    let mut idle = |old: usize| {
        let new = state.workers.iter().position(|worker| *worker == Worker::Idle)?;
        workers.insert(old, new);
        Some(new)
    };
    let action = match action {
        Action::Request { worker } => Action::Request { worker: idle(worker)? },
        Action::Claim { worker } => Action::Claim { worker: idle(worker)? },
        Action::Statement { worker, reply } => Action::Statement { worker: *workers.get(&worker)?, reply },
        Action::LookUp { worker, listing } => Action::LookUp { worker: *workers.get(&worker)?, listing },
        Action::Charge { worker, outcome } => Action::Charge { worker: *workers.get(&worker)?, outcome },
        Action::GiveUp { worker } => Action::GiveUp { worker: *workers.get(&worker)? },
        Action::Tell { worker } => Action::Tell { worker: *workers.get(&worker)? },
        Action::WorkerEnds { worker } => Action::WorkerEnds { worker: *workers.get(&worker)? },
        Action::DatabaseCrashes { .. }
        | Action::HandBack
        | Action::RetentionPasses
        | Action::StripeForgets
        | Action::Reap
        | Action::RetryParked => action,
    };
    Some(Move::Act(action, manner))
}
