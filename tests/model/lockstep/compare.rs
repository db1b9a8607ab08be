//! Compares the model's state with the rows, the flushes, Stripe's ledger and the audit records.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::operation::Walked;
use super::stage::{Seen, SeenKey};
use super::times::{Cause, KEY_RETENTION, Times};
use super::walk::{Version, Walk};
use crate::database::{Intent, Lease, Response, Row, Token};
use crate::protocol::{Action, State};

/// How far a row's times may differ from what is expected because of rounding, in seconds.
const ROUNDING: f64 = 0.001;

/// The model's names for what is random in the program.
#[derive(Default)]
pub(super) struct Names {
    tokens: HashMap<u8, Uuid>,
    /// The processes that took these leases.
    pub(super) processes: HashMap<u8, Uuid>,
    foreign_call_keys: HashMap<u8, Uuid>,
    seen: HashSet<Uuid>,
}

impl<O: Walked> Walk<'_, O> {
    pub(super) async fn compare(&mut self, action: Option<Action>, before: &State) -> Result<(), String> {
        let seen = self.stage.look(self.last_commit).await?;
        self.compare_commits(action, before, &seen)?;
        self.compare_key(action, before, &seen)?;
        self.compare_books(&seen)?;
        if matches!(action, Some(Action::Charge { .. })) {
            self.compare_charges()?;
        }
        Ok(())
    }

    /// Checks that a step that changes the database is one commit, flushed or not as in the model.
    fn compare_commits(&mut self, action: Option<Action>, before: &State, seen: &Seen) -> Result<(), String> {
        let commits = &seen.commits;
        let by_the_program = action
            .is_some_and(|action| !matches!(action, Action::DatabaseCrashes { .. } | Action::RetentionPasses));
        let changed = by_the_program && self.state.database.current() != before.database.current();
        if commits.len() != usize::from(changed) {
            return Err(format!("{} commits, and not {}", commits.len(), usize::from(changed)));
        }
        if let [(commit, flushed)] = commits[..] {
            self.last_commit = commit;
            let cause = match action {
                Some(Action::Request { .. }) => Cause::Client,
                Some(Action::Claim { .. }) => Cause::Completer,
                Some(Action::RetryParked) => Cause::Person,
                Some(Action::HandBack) => Cause::HandBack,
                _ => Cause::Other,
            };
            let row = self.state.database.row();
            let times = row.map(|row| Times::next(self.times(), before.database.row(), row, cause, self.now));
            if flushed {
                self.versions.clear();
            }
            self.versions.push(Version { commit, at: self.now, times });
        }
        let unflushed = self.versions.len() - 1;
        if unflushed != self.state.database.unflushed() {
            return Err(format!(
                "{unflushed} commits are not on disk, and not {}",
                self.state.database.unflushed()
            ));
        }
        Ok(())
    }

    fn compare_key(&mut self, action: Option<Action>, before: &State, seen: &Seen) -> Result<(), String> {
        let (key, row) = match (&seen.key, self.state.database.row().copied()) {
            (None, None) => return Ok(()),
            (Some(_), None) => return Err("there is a key".to_owned()),
            (None, Some(_)) => return Err("there is no key".to_owned()),
            (Some(key), Some(row)) => (key, row),
        };
        let worker = action.and_then(Action::worker);
        self.learn(before.database.row(), &row, key, worker.map(|worker| self.stage.seats[worker].process));
        let found = self.row(key)?;
        if found != row {
            return Err(format!("the row says {found:?}, and not {row:?}"));
        }
        let holder = row.lease.and_then(|lease| self.names.processes.get(&lease.acquisition).copied());
        if row.lease.is_some() && key.process_id != holder {
            return Err(format!("the lease is said to be held by {:?}, and not {holder:?}", key.process_id));
        }
        self.compare_times(key)?;
        if self.key_id != Some(key.id) {
            (self.key_id, self.request) = (Some(key.id), Some(key.request.clone()));
        }
        if self.request.as_ref() != Some(&key.request) {
            return Err(format!("the request has become {}", key.request));
        }
        if let Some((_, body)) = &key.response
            && self.answer.get_or_insert_with(|| body.clone()) != body
        {
            return Err(format!("the answer has become {body}"));
        }
        if self.state.database.response().is_none() {
            self.answer = None;
        }
        Ok(())
    }

    /// Records which random values the model's new names stand for. A value that was seen before is not new.
    fn learn(&mut self, before: Option<&Row>, after: &Row, key: &SeenKey, process: Option<Uuid>) {
        if let Some(lease) = after.lease
            && before.and_then(|row| row.lease) != Some(lease)
            && let Some(token) = key.lease_token
            && self.names.seen.insert(token)
        {
            self.names.tokens.insert(lease.acquisition, token);
            self.names.processes.extend(process.map(|process| (lease.acquisition, process)));
        }
        if before.is_none() && self.names.seen.insert(key.foreign_call_key) {
            self.names.foreign_call_keys.insert(after.foreign_call_key, key.foreign_call_key);
        }
    }

    /// Returns the row in the model's terms.
    fn row(&self, key: &SeenKey) -> Result<Row, String> {
        let name = |names: &HashMap<u8, Uuid>, id: Uuid| {
            names.iter().find(|(_, known)| **known == id).map(|(name, _)| *name).ok_or(format!("{id} is a locker"))
        };
        let lease = match key.lease_token {
            Some(token) => {
                let acquisition = name(&self.names.tokens, token)?;
                Some(Lease { token: Token::Random(acquisition), acquisition })
            }
            None => None,
        };
        let operation = self.stage.operation;
        let response = match &key.response {
            Some((code, _)) => Some(operation.response(*code).ok_or(format!("status {code}"))?),
            None => None,
        };
        let point = operation.recovery_point(&key.recovery_point, key.step);
        Ok(Row {
            recovery_point: point.ok_or(format!("recovery point {}, step {}", key.recovery_point, key.step))?,
            response,
            lease,
            attempts: 0,
            completer_attempts: u8::try_from(key.completer_attempts).map_err(|error| error.to_string())?,
            parked: key.parked,
            foreign_call_key: name(&self.names.foreign_call_keys, key.foreign_call_key)?,
            intent: match key.intended {
                age if age < KEY_RETENTION.as_secs_f64() => Intent::Recent,
                _ => Intent::PastRetention,
            },
        })
    }

    fn compare_times(&mut self, key: &SeenKey) -> Result<(), String> {
        let (now, real) = (self.now, self.real());
        let Some(times) = self.versions.last_mut().and_then(|version| version.times.as_mut()) else {
            return Err("times of no row".to_owned());
        };
        if key.attempts != times.attempts {
            return Err(format!("{} attempts, and not {}", key.attempts, times.attempts));
        }
        // Real time makes what was written look older, and what is due look nearer.
        let within = |what: &str, moment: f64, (from, to): (f64, f64)| {
            if (from - real - ROUNDING..=to + ROUNDING).contains(&moment) {
                return Ok(());
            }
            Err(format!("{what} is {:.3} s ago, and not {:.3} s", now - moment, now - to))
        };
        let at = |moment: f64| (moment, moment);
        within("its creation", now - key.created, at(times.created))?;
        within("its last run", now - key.last_run, at(times.last_run))?;
        match (key.locked, times.locked) {
            (Some(age), Some(locked)) => within("its lease", now - age, at(locked))?,
            (None, None) => {}
            (found, expected) => return Err(format!("locked at {found:?}, and not {expected:?}")),
        }
        within("the first intent to charge", now - key.intended, at(times.intended))?;
        let due = now - key.due;
        within("when the completer may come", due, times.due)?;
        if times.due.0 < times.due.1 {
            times.due = (due, due + real);
        }
        Ok(())
    }

    /// Checks that rides, audit records, charges on rides and receipts agree with the key's state.
    fn compare_books(&self, seen: &Seen) -> Result<(), String> {
        let rides = i64::from(self.state.database.recovery_point().is_some());
        let paid = self.state.database.response() == Some(Response::Paid);
        let receipts = i64::from(self.state.database.current().receipts);
        let found = (seen.rides, seen.audit_records, seen.charge.is_some(), seen.jobs);
        if found != (rides, rides, paid, receipts) {
            return Err(format!(
                "rides, audit records, charge, receipts: {found:?}, and not {:?}",
                (rides, rides, paid, receipts)
            ));
        }
        if let Some(charge) = &seen.charge
            && !self.stage.charges(&self.opening.user.stripe_customer_id).iter().any(|(id, _)| id == charge)
        {
            return Err(format!("the ride has a charge that Stripe does not know: {charge}"));
        }
        Ok(())
    }

    fn compare_charges(&self) -> Result<(), String> {
        let charges = self.stage.charges(&self.opening.user.stripe_customer_id);
        if charges.len() != usize::from(self.state.stripe.charges()) {
            return Err(format!("{} charges, and not {}", charges.len(), self.state.stripe.charges()));
        }
        for (name, id) in &self.names.foreign_call_keys {
            if self.state.stripe.has_charge(*name) != charges.iter().any(|(_, key)| key == id) {
                return Err(format!("charges {charges:?} do not go with the key {id}"));
            }
        }
        Ok(())
    }
}
