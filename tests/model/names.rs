//! Names whose only meaning is whether two are the same: workers, lease tokens, keys for the foreign call.
//!
//! A fresh name is one that neither a worker nor a version of the row nor Stripe holds. For a protocol that only
//! compares names this is the same as a random one, and it keeps the states finite, however often leases are taken.

use std::hash::{Hash, Hasher};

use crate::database::{Row, Token};
use crate::protocol::State;
use crate::worker::{Attempt, Clock, Worker};

impl State {
    pub(crate) fn fresh_acquisition(&self) -> u8 {
        let leases = self.database.versions().filter_map(|row| row.lease).map(|lease| lease.acquisition);
        let held = self.attempts().map(|attempt| attempt.acquisition);
        unused(leases.chain(held))
    }

    pub(crate) fn fresh_foreign_call_key(&self) -> u8 {
        let stored = self.database.versions().map(|row| row.foreign_call_key);
        let held = self.attempts().map(|attempt| attempt.foreign_call_key);
        unused(stored.chain(held).chain(self.stripe.keys()))
    }

    fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.workers.iter().filter_map(Worker::attempt)
    }

    /// Returns this state with names given in the order in which they occur, and without differences that have no
    /// effect any more: a lease whose random token no worker holds is the same as none, and a worker past the charge
    /// does not use its clock.
    fn canonical(&self) -> Self {
        let mut state = self.clone();
        state.forget();
        state.sort_workers();
        state.rename();
        state
    }

    fn forget(&mut self) {
        let held: Vec<u8> = self.attempts().map(|attempt| attempt.acquisition).collect();
        self.database.change_versions(|row| {
            row.lease = row.lease.filter(|lease| match lease.token {
                Token::Random(_) => held.contains(&lease.acquisition),
                Token::Counted(_) => true,
            });
        });
        self.database.drop_idle_commits();
        for attempt in self.workers.iter_mut().filter_map(Worker::attempt_mut) {
            if !attempt.step.is_before_charge() {
                attempt.clock = Clock::FallsShort;
            }
        }
    }

    /// Sorts the workers by what they do, and then by which versions of the row hold their names.
    fn sort_workers(&mut self) {
        let versions: Vec<Row> = self.database.versions().copied().collect();
        self.workers.sort_by_cached_key(|worker| {
            let known = worker.attempt().map(|attempt| {
                let holds = |row: &Row| row.lease.is_some_and(|lease| lease.acquisition == attempt.acquisition);
                let agrees = |row: &Row| row.foreign_call_key == attempt.foreign_call_key;
                versions
                    .iter()
                    .fold(1_u64, |bits, row| bits << 2 | u64::from(holds(row)) << 1 | u64::from(agrees(row)))
            });
            (without_names(*worker), known)
        });
    }

    fn rename(&mut self) {
        let mut acquisitions = Names::default();
        let mut keys = Names::default();
        self.stripe.rename_keys(|key| keys.of(key));
        self.database.change_versions(|row| {
            row.foreign_call_key = keys.of(row.foreign_call_key);
            if let Some(lease) = &mut row.lease {
                acquisitions.rename(&mut lease.acquisition, &mut lease.token);
            }
        });
        for attempt in self.workers.iter_mut().filter_map(Worker::attempt_mut) {
            attempt.foreign_call_key = keys.of(attempt.foreign_call_key);
            acquisitions.rename(&mut attempt.acquisition, &mut attempt.token);
        }
    }
}

/// The checker distinguishes states by this hash. It goes on from the state as it is, so that names stay the same in a
/// trace.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { database, stripe, workers, told, charge_asked_for, broken } = self.canonical();
        (database, stripe, workers, told, charge_asked_for, broken).hash(hasher);
    }
}

fn unused(names: impl Iterator<Item = u8>) -> u8 {
    let used: Vec<u8> = names.collect();
    (1..=u8::MAX).find(|name| !used.contains(name)).expect("there are a few workers and commits")
}

fn without_names(worker: Worker) -> Worker {
    match worker {
        Worker::Attempting(attempt) => {
            let token = match attempt.token {
                Token::Random(_) => Token::Random(0),
                counted @ Token::Counted(_) => counted,
            };
            Worker::Attempting(Attempt { token, acquisition: 0, foreign_call_key: 0, ..attempt })
        }
        Worker::Idle | Worker::Answering(_) => worker,
    }
}

/// Old names in the order in which they occurred; a new name is the place in that order, from 1.
#[derive(Default)]
struct Names(Vec<u8>);

impl Names {
    fn of(&mut self, old: u8) -> u8 {
        let place = self.0.iter().position(|known| *known == old).unwrap_or_else(|| {
            self.0.push(old);
            self.0.len() - 1
        });
        u8::try_from(place + 1).expect("there are a few workers and commits")
    }

    fn rename(&mut self, acquisition: &mut u8, token: &mut Token) {
        *acquisition = self.of(*acquisition);
        if let Token::Random(number) = token {
            *number = *acquisition;
        }
    }
}
