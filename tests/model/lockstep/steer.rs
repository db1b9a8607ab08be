//! Steers a walk: every way is possible, and ways that were taken rarely are preferred.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;
use stateright::Model;

use super::moves::{GIVES_UP, Kind, Move, Probe, kind};
use super::operation::Walked;
use super::walk::Walk;
use crate::database::RecoveryPoint;
use crate::protocol::{Action, State};
use crate::worker::{Clock, Step, Worker};

/// The worth of what a way leads to, compared with the worth of the way itself.
const FORESIGHT: f64 = 0.99;
/// How strongly a way of greater worth is preferred: the weight is the worth to this power.
const DETERMINATION: i32 = 8;
/// The worth of a detail of an edge, compared with its action.
const DETAIL: f64 = 0.05;
/// The weight of a probe, compared with an edge of the model that was taken as often.
const IN_VAIN: f64 = 0.3;
/// How often a walk goes on with the worker that moved last: an attempt needs many moves to its end.
const SAME_WORKER: f64 = 0.85;
/// How long before a limit a probe comes, in seconds: more than the real time that a walk has taken by then.
const SHORT: f64 = 1.0;

/// How often each kind of step was taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Edges of the model.
    pub(super) edges: BTreeMap<Kind, usize>,
    /// The same by their actions.
    pub(super) actions: BTreeMap<String, usize>,
    /// Steps that the model leaves out.
    pub(super) besides: BTreeMap<String, usize>,
}

/// Steers a walk, and learns from the steps that were taken.
pub(super) struct Pilot {
    pub(super) rng: StdRng,
    pub(super) tally: Tally,
    /// The worth of a worker whose next step is this one.
    worth: BTreeMap<Option<Step>, f64>,
    /// The worker that moved last.
    worker: Option<usize>,
}

/// What may happen to a client that is held up between its look-up and its take-over.
const OVERTAKEN: [&str; 4] = [
    "the client that was held up is told that the request is parked",
    "the client that was held up is told that the request is in progress",
    "the client that was held up finds the answer",
    "the client that was held up finds no key",
];

/// One way to go on, and what it is counted as, inside and outside the model.
struct Way {
    moves: Vec<Move>,
    worker: Option<usize>,
    edge: Option<Kind>,
    besides: Option<String>,
    weight: f64,
}

impl Tally {
    /// Returns the number of edges that were taken.
    pub(super) fn steps(&self) -> usize {
        self.actions.values().sum()
    }

    pub(super) fn add(&mut self, other: &Self) {
        fn add<K: Ord + Clone>(own: &mut BTreeMap<K, usize>, others: &BTreeMap<K, usize>) {
            for (kind, count) in others {
                *own.entry(kind.clone()).or_default() += count;
            }
        }
        add(&mut self.edges, &other.edges);
        add(&mut self.actions, &other.actions);
        add(&mut self.besides, &other.besides);
    }

    fn take(&mut self, way: &Way) {
        if let Some(kind) = &way.edge {
            *self.actions.entry(kind.action.clone()).or_default() += 1;
            *self.edges.entry(kind.clone()).or_default() += 1;
        }
        if let Some(besides) = &way.besides {
            *self.besides.entry(besides.clone()).or_default() += 1;
        }
    }

    /// Returns the worth of an edge by itself.
    fn worth(&self, kind: &Kind) -> f64 {
        rarity(self.actions.get(&kind.action)) + DETAIL * rarity(self.edges.get(kind))
    }
}

impl Pilot {
    pub(super) fn new(rng: StdRng) -> Self {
        Self { rng, tally: Tally::default(), worth: BTreeMap::new(), worker: None }
    }

    /// Returns the next moves, which are counted as taken, or `None` where the walk ends.
    pub(super) fn next<O: Walked>(&mut self, walk: &Walk<'_, O>) -> Option<Vec<Move>> {
        let mut ways = self.actions(walk);
        let enough = match how_much_is_left(&walk.state) {
            Left::Attempts => 0.0,
            Left::Zombies => 0.2,
            Left::Nothing if walk.is_looking => 0.0,
            Left::Nothing => 0.8,
        };
        if ways.is_empty() || self.rng.random_bool(enough) {
            return None;
        }
        let goes_on = |way: &Way| way.worker.is_some() && way.worker == self.worker;
        if ways.iter().any(goes_on) && self.rng.random_bool(SAME_WORKER) {
            ways.retain(|way| way.worker == self.worker);
        } else {
            ways.extend(self.probes(walk));
            ways.extend(self.race(walk));
        }
        let sum: f64 = ways.iter().map(|way| way.weight).sum();
        let mut point = self.rng.random_range(0.0..sum);
        let chosen = ways.iter().position(|way| {
            point -= way.weight;
            point < 0.0
        });
        let way = ways.swap_remove(chosen.unwrap_or(0));
        self.tally.take(&way);
        self.worker = way.worker;
        Some(way.moves)
    }

    /// Returns the model's actions, each after the time that it needs.
    fn actions<O: Walked>(&mut self, walk: &Walk<'_, O>) -> Vec<Way> {
        let mut actions = Vec::new();
        walk.protocol.actions(&walk.state, &mut actions);
        let mut ways = Vec::new();
        let mut best = BTreeMap::<Option<Step>, f64>::new();
        for action in actions {
            let wait = walk.possible_at(action) - walk.now;
            let Some(after) = walk.protocol.next_state(&walk.state, action).filter(|_| wait <= walk.may_pass())
            else {
                continue;
            };
            let kind = kind(&walk.state, action, &after);
            let worker = action.worker();
            let leads_to = worker.and_then(|worker| place(&after, worker));
            let worth = self.tally.worth(&kind) + leads_to.map_or(0.0, |place| FORESIGHT * self.worth_of(place));
            if let Some(place) = worker.and_then(|worker| place(&walk.state, worker)) {
                let best = best.entry(place).or_default();
                *best = best.max(worth);
            }
            let promise = self.promise(&walk.state, action, &after);
            let weight = (worth + promise).powi(DETERMINATION);
            // Such an event concerns the worker that moved last, too.
            let worker = if promise > 0.0 { self.worker } else { worker };
            let moves = self.moves(walk, action, wait);
            ways.push(Way { moves, worker, edge: Some(kind), besides: None, weight });
        }
        self.worth.extend(best);
        ways
    }

    fn moves<O: Walked>(&mut self, walk: &Walk<'_, O>, action: Action, wait: f64) -> Vec<Move> {
        let mut moves = Vec::new();
        if wait > 0.0 {
            moves.push(Move::Pass(wait));
        }
        if walk.protocol.max_attempts > 1 && matches!(action, Action::Claim { .. }) && self.rng.random_bool(0.5) {
            // Before the first backoff, and around the longest.
            moves.push(Move::Tried([0, 1, 5, 6, 7, 8][self.rng.random_range(0..6)]));
        }
        moves.push(Move::Act(action, self.rng.random_range(0..1000)));
        moves
    }

    /// Returns the worth of an event for what workers do after it: workers that are about to charge give up, and the
    /// next one looks the charge up.
    fn promise(&self, before: &State, action: Action, after: &State) -> f64 {
        let charging = |state: &State, clock: fn(Clock) -> bool| {
            let mut attempts = state.workers.iter().filter_map(Worker::attempt);
            attempts.any(|attempt| attempt.step == Step::Charge && clock(attempt.clock))
        };
        let gives_up = || FORESIGHT * rarity(self.tally.actions.get(GIVES_UP));
        match action {
            Action::StripeForgets if charging(after, |clock| clock == Clock::RanOut) => gives_up(),
            Action::RetentionPasses if before.stripe.remembers() && charging(before, |_| true) => gives_up(),
            Action::RetentionPasses if before.database.recovery_point() == Some(RecoveryPoint::Call(1)) => {
                self.worth_of(Some(Step::LookUp)) / 2.0
            }
            _ => 0.0,
        }
    }

    fn worth_of(&self, place: Option<Step>) -> f64 {
        self.worth.get(&place).copied().unwrap_or(1.0)
    }

    /// Returns the probes, each at a time when only one reason keeps it from changing anything: all other limits have
    /// passed.
    fn probes<O: Walked>(&self, walk: &Walk<'_, O>) -> Vec<Way> {
        let mut ways = Vec::new();
        for probe in Probe::ALL {
            for Reason { wait, why } in reasons(walk, probe) {
                if wait > walk.may_pass() {
                    continue;
                }
                let pass = (wait > 0.0).then_some(Move::Pass(wait));
                let moves = pass.into_iter().chain([Move::Probe(probe)]).collect();
                ways.push(self.way_besides(moves, None, &format!("{probe}{why}")));
            }
        }
        ways
    }

    /// Returns the next move of a client that may be overtaken between its look-up and its take-over.
    fn race<O: Walked>(&self, walk: &Walk<'_, O>) -> Option<Way> {
        if walk.may_look() {
            let rarest = OVERTAKEN.iter().map(|meanwhile| rarity(self.tally.besides.get(*meanwhile)));
            let worth = rarest.fold(0.0, f64::max);
            let way = self.way_besides(vec![Move::Look], None, "a client looks and is held up");
            return Some(Way { weight: IN_VAIN * worth.powi(DETERMINATION), ..way });
        }
        let row = walk.state.database.row();
        let meanwhile = match row {
            _ if walk.takes_up_in_vain() && row.is_some_and(|row| row.parked) => OVERTAKEN[0],
            _ if walk.takes_up_in_vain() => OVERTAKEN[1],
            Some(row) if row.response.is_some() => OVERTAKEN[2],
            None => OVERTAKEN[3],
            Some(_) => "the client that was held up takes the lease",
        };
        let edge = match walk.take_up_action() {
            Some(action) => Some(kind(&walk.state, action, &walk.protocol.next_state(&walk.state, action)?)),
            None if walk.takes_up_in_vain() => None,
            None => return None,
        };
        let way = self.way_besides(vec![Move::TakeUp], edge, meanwhile);
        // The client should be overtaken, so going on before that has less weight.
        let weight = if OVERTAKEN.contains(&meanwhile) { way.weight / IN_VAIN } else { way.weight };
        Some(Way { weight, ..way })
    }

    fn way_besides(&self, moves: Vec<Move>, edge: Option<Kind>, besides: &str) -> Way {
        let worth = rarity(self.tally.besides.get(besides));
        Way {
            moves,
            worker: None,
            edge,
            besides: Some(besides.to_owned()),
            weight: IN_VAIN * worth.powi(DETERMINATION),
        }
    }
}

/// What is left to test with a key.
enum Left {
    Attempts,
    /// The key has its answer, but a worker does not know it yet.
    Zombies,
    Nothing,
}

fn how_much_is_left(state: &State) -> Left {
    match state.database.response() {
        None => Left::Attempts,
        Some(_) if state.workers.iter().any(|worker| worker.attempt().is_some()) => Left::Zombies,
        Some(_) => Left::Nothing,
    }
}

/// Why a visit after this many seconds must change nothing.
struct Reason {
    wait: f64,
    why: &'static str,
}

fn reasons<O: Walked>(walk: &Walk<'_, O>, probe: Probe) -> Vec<Reason> {
    let until = |moment: f64| (moment - walk.now).max(0.0);
    let at_once = |why| Reason { wait: 0.0, why };
    let short_of = |moment: f64, why| Reason { wait: until(moment - SHORT), why };
    // Only while so little real time has passed that it does not reach the limit before the probe is made.
    let in_time = walk.real() < SHORT / 2.0;
    let (Some(row), Some(times)) = (walk.state.database.row(), walk.times()) else {
        return if walk.holds(probe) { vec![at_once(": there is none")] } else { Vec::new() };
    };
    match probe {
        Probe::OtherParameters | Probe::OtherPath => vec![at_once("")],
        Probe::HandBack if row.lease.is_none() => {
            vec![at_once(if row.parked {
                ": it is parked"
            } else if row.response.is_some() {
                ": it is finished"
            } else {
                ": it is free"
            })]
        }
        Probe::HandBackLocked | Probe::HandBackOfOthers | Probe::HandBackAlive if row.lease.is_some() => {
            vec![at_once("")]
        }
        Probe::RepeatedParked if row.parked => vec![at_once("")],
        Probe::ClaimLocked if row.response.is_none() && !row.parked => {
            vec![Reason { wait: until(times.claimable_at()), why: "" }]
        }
        Probe::ReapLocked if !row.parked => vec![Reason { wait: until(times.reapable_at()), why: "" }],
        Probe::RepeatedUnderLease if row.response.is_none() && row.lease.is_some() && in_time => {
            vec![short_of(times.free_at(), "")]
        }
        Probe::Claim if row.response.is_some() => {
            vec![Reason { wait: until(times.claimable_at()), why: ": it is finished" }]
        }
        Probe::Claim if row.parked => vec![Reason { wait: until(times.claimable_at()), why: ": it is parked" }],
        Probe::Claim if in_time && times.free_at() > times.due.1 => {
            vec![short_of(times.free_at(), ": it is under lease")]
        }
        Probe::Claim if in_time => vec![short_of(times.due.0, ": it is not due")],
        Probe::Reap if row.parked => vec![Reason { wait: until(times.reapable_at()), why: ": it is parked" }],
        Probe::Reap if in_time && times.created < times.last_run => {
            vec![short_of(times.reapable_at(), ": it was taken up lately")]
        }
        Probe::Reap if in_time => vec![short_of(times.reapable_at(), ": it is young")],
        _ => Vec::new(),
    }
}

/// Returns where a worker is: before one of its steps, before its answer (`None` within), or nowhere.
#[expect(clippy::option_option, reason = "a worker without a step is about to answer, or it is idle")]
fn place(state: &State, worker: usize) -> Option<Option<Step>> {
    match state.workers[worker] {
        Worker::Idle => None,
        Worker::Answering(_) => Some(None),
        Worker::Attempting(attempt) => Some(Some(attempt.step)),
    }
}

fn rarity(taken: Option<&usize>) -> f64 {
    let taken = taken.copied().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a weight need not be exact")]
    let weight = 1.0 / (1.0 + taken as f64);
    weight
}
