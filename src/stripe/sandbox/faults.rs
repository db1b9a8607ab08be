//! What goes wrong on purpose: how often, and what comes next.
//!
//! Each request for a charge or a refund gets at most one fault. A script, if there is one, decides which; otherwise
//! one draw from a seeded generator does. The same seed and the same order of requests give the same faults.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How long a held request waits if it is not released.
const HOLD_LIMIT: Duration = Duration::from_secs(60);

/// What can go wrong with one request for a charge or a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection is dropped before anything has happened.
    Reset,
    /// 500, and nothing was charged or stored.
    ServerError,
    /// 429, and nothing was charged or stored: Stripe's limits come before its idempotency.
    RateLimited,
    /// 409, as if a request with the same key were in flight.
    Conflict,
    /// 400, as if the request made no sense.
    BadRequest,
    /// 401, as if the API key had been revoked.
    Unauthorized,
    /// 403, as if the API key lacked the permission.
    Forbidden,
    /// The card is declined although it is good. Stored, as any decline.
    Declined,
    /// The charge waits, before it is executed, until [`FaultControl::release`] (a minute at most).
    Hold,
    /// Charged, then 500. What is stored is the success.
    ChargedThenServerError,
    /// 500, nothing was charged, and the 500 is stored.
    StoredServerError,
    /// Charged, then 500, and the 500 is stored.
    ChargedThenStoredServerError,
    /// Charged, then the connection is dropped.
    ReplyLost,
    /// Charged, then half of the reply and the connection is dropped.
    Truncated,
    /// Charged, and the reply comes after `slow_reply_delay`.
    SlowReply,
    /// Charged, and the reply lacks the charge's id.
    NoId,
    /// The charge is recorded as pending, and the reply says so. It has no probability, because it lasts until a test
    /// settles it.
    Pending,
}

/// How often each fault occurs: probabilities from 0 to 1, which together must not exceed 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Makes the faults repeatable; if absent, one is drawn and logged.
    pub seed: Option<u64>,
    /// How long every charge or refund waits before it is executed, with or without a fault.
    #[serde(with = "humantime_serde")]
    pub latency: Duration,
    /// How long `slow_reply` delays the reply after the charge. The default is longer than any sensible client waits.
    #[serde(with = "humantime_serde")]
    pub slow_reply_delay: Duration,
    /// See [`Fault::Reset`].
    pub reset: f64,
    /// See [`Fault::ServerError`].
    pub server_error: f64,
    /// See [`Fault::RateLimited`].
    pub rate_limited: f64,
    /// See [`Fault::Conflict`].
    pub conflict: f64,
    /// See [`Fault::BadRequest`].
    pub bad_request: f64,
    /// See [`Fault::Unauthorized`].
    pub unauthorized: f64,
    /// See [`Fault::Forbidden`].
    pub forbidden: f64,
    /// See [`Fault::Declined`].
    pub declined: f64,
    /// See [`Fault::Hold`].
    pub hold: f64,
    /// See [`Fault::ChargedThenServerError`].
    pub charged_then_server_error: f64,
    /// See [`Fault::StoredServerError`].
    pub stored_server_error: f64,
    /// See [`Fault::ChargedThenStoredServerError`].
    pub charged_then_stored_server_error: f64,
    /// See [`Fault::ReplyLost`].
    pub reply_lost: f64,
    /// See [`Fault::Truncated`].
    pub truncated: f64,
    /// See [`Fault::SlowReply`].
    pub slow_reply: f64,
    /// See [`Fault::NoId`].
    pub no_id: f64,
}

impl Default for Faults {
    /// A Stripe that always works.
    fn default() -> Self {
        Self {
            seed: None,
            latency: Duration::ZERO,
            slow_reply_delay: Duration::from_secs(90),
            reset: 0.0,
            server_error: 0.0,
            rate_limited: 0.0,
            conflict: 0.0,
            bad_request: 0.0,
            unauthorized: 0.0,
            forbidden: 0.0,
            declined: 0.0,
            hold: 0.0,
            charged_then_server_error: 0.0,
            stored_server_error: 0.0,
            charged_then_stored_server_error: 0.0,
            reply_lost: 0.0,
            truncated: 0.0,
            slow_reply: 0.0,
            no_id: 0.0,
        }
    }
}

impl Faults {
    /// Checks the probabilities; the message names the field that is out of range.
    pub fn validate(&self) -> Result<(), String> {
        for (name, _, probability) in self.table() {
            // NaN is in no range.
            if !(0.0..=1.0).contains(&probability) {
                return Err(format!("{name} must be a probability from 0 to 1, not {probability}"));
            }
        }
        let sum: f64 = self.table().iter().map(|(_, _, probability)| probability).sum();
        // A sum of fractions may be a little more than one, because it is rounded.
        if sum > 1.0 + 1e-9 {
            return Err(format!("the probabilities of all faults together must not exceed 1, but are {sum}"));
        }
        Ok(())
    }

    fn table(&self) -> [(&'static str, Fault, f64); 16] {
        [
            ("reset", Fault::Reset, self.reset),
            ("server_error", Fault::ServerError, self.server_error),
            ("rate_limited", Fault::RateLimited, self.rate_limited),
            ("conflict", Fault::Conflict, self.conflict),
            ("bad_request", Fault::BadRequest, self.bad_request),
            ("unauthorized", Fault::Unauthorized, self.unauthorized),
            ("forbidden", Fault::Forbidden, self.forbidden),
            ("declined", Fault::Declined, self.declined),
            ("hold", Fault::Hold, self.hold),
            ("charged_then_server_error", Fault::ChargedThenServerError, self.charged_then_server_error),
            ("stored_server_error", Fault::StoredServerError, self.stored_server_error),
            (
                "charged_then_stored_server_error",
                Fault::ChargedThenStoredServerError,
                self.charged_then_stored_server_error,
            ),
            ("reply_lost", Fault::ReplyLost, self.reply_lost),
            ("truncated", Fault::Truncated, self.truncated),
            ("slow_reply", Fault::SlowReply, self.slow_reply),
            ("no_id", Fault::NoId, self.no_id),
        ]
    }

    /// Returns the fault at `point`, a number from 0 to 1.
    fn at(&self, mut point: f64) -> Fault {
        for (_, fault, probability) in self.table() {
            if point < probability {
                return fault;
            }
            point -= probability;
        }
        Fault::None
    }
}

/// The faults in force, changeable while the sandbox runs.
#[derive(Debug)]
pub struct FaultControl {
    state: Mutex<State>,
    /// Counts the releases; a held request waits for the next one.
    releases: watch::Sender<u64>,
    held: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    faults: Faults,
    generator: StdRng,
    script: VecDeque<Fault>,
}

/// The fault and the delays for one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub(super) fault: Fault,
    pub(super) latency: Duration,
    pub(super) slow_reply_delay: Duration,
}

impl FaultControl {
    /// Puts these faults, which are valid, in force.
    pub fn new(faults: Faults) -> Self {
        let state = State { generator: seeded(&faults), faults, script: VecDeque::new() };
        Self { state: Mutex::new(state), releases: watch::Sender::new(0), held: watch::Sender::new(0) }
    }

    /// Returns the faults in force.
    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// Puts these faults, which are valid, in force, starting from their seed. A script stays.
    pub fn set(&self, faults: Faults) {
        let mut state = self.lock();
        state.generator = seeded(&faults);
        state.faults = faults;
    }

    /// Scripts the next requests for charges and refunds, one fault each in this order, after what is scripted already.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().script.extend(faults);
    }

    /// Lets all held requests go on.
    pub fn release(&self) {
        self.releases.send_modify(|releases| *releases += 1);
    }

    /// Returns how many requests are held now.
    pub fn held(&self) -> usize {
        *self.held.borrow()
    }

    /// Waits until at least `charges` requests are held at once.
    pub async fn wait_until_held(&self, charges: usize) {
        let waited = self.held.subscribe().wait_for(|held| *held >= charges).await.map(drop);
        waited.expect("the sender is a field of ours");
    }

    pub(super) fn draw(&self) -> Draw {
        let state = &mut *self.lock();
        let fault = match state.script.pop_front() {
            Some(scripted) => scripted,
            None => state.faults.at(state.generator.random()),
        };
        Draw { fault, latency: state.faults.latency, slow_reply_delay: state.faults.slow_reply_delay }
    }

    /// Waits for a release, [`HOLD_LIMIT`] at most.
    pub(super) async fn hold(&self) {
        let mut releases = self.releases.subscribe();
        self.held.send_modify(|held| *held += 1);
        let _ = tokio::time::timeout(HOLD_LIMIT, releases.changed()).await;
        self.held.send_modify(|held| *held -= 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the faults")
    }
}

fn seeded(faults: &Faults) -> StdRng {
    let seed = faults.seed.unwrap_or_else(rand::random);
    if faults.table().iter().any(|(_, _, probability)| *probability > 0.0) {
        tracing::info!(seed, "the Stripe sandbox misbehaves at random");
    }
    StdRng::seed_from_u64(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probability_out_of_range_is_named() {
        let faults = |text: &str| serde_json::from_str::<Faults>(text).expect("valid JSON");
        assert_eq!(faults(r#"{"truncated": 1, "latency": "5ms"}"#).validate(), Ok(()));
        assert!(faults(r#"{"no_id": 1.5}"#).validate().expect_err("too much").starts_with("no_id "));
        assert!(faults(r#"{"reset": -0.1}"#).validate().expect_err("negative").starts_with("reset "));
        assert!(Faults { hold: f64::NAN, ..Faults::default() }.validate().is_err());
        let sum = faults(r#"{"reset": 0.6, "no_id": 0.6}"#).validate().expect_err("too much together");
        assert!(sum.contains("together"), "{sum}");
        assert!(serde_json::from_str::<Faults>(r#"{"rest": 0.1}"#).is_err(), "unknown fields are errors");
    }

    #[test]
    fn every_fault_has_a_field_of_its_name() {
        for (name, fault, _) in Faults::default().table() {
            assert_eq!(serde_json::to_value(fault).expect("a name"), name);
            let only: Faults = serde_json::from_value(serde_json::json!({ name: 1 })).expect("a field");
            assert_eq!(only.at(0.999), fault);
        }
    }

    #[test]
    fn a_seed_repeats_its_faults_and_a_script_precedes_them() {
        let faults = Faults { seed: Some(7), reset: 0.3, no_id: 0.3, ..Faults::default() };
        let draws = |control: &FaultControl| (0..64).map(|_| control.draw().fault).collect::<Vec<_>>();
        let (one, other) = (FaultControl::new(faults.clone()), FaultControl::new(faults.clone()));
        let first = draws(&one);
        assert_eq!(first, draws(&other));
        for fault in [Fault::None, Fault::Reset, Fault::NoId] {
            assert!(first.contains(&fault), "{fault:?} is likely enough");
        }

        one.set(faults);
        one.script([Fault::Hold, Fault::None]);
        assert_eq!((one.draw().fault, one.draw().fault), (Fault::Hold, Fault::None));
        assert_eq!(first, draws(&one));
    }
}
