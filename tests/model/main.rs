//! The protocol as a model: every state that the request's life can come to, whatever fails, and in whatever order.
//!
//! The other tests run the program and break what their authors thought of. Here stateright takes every step that is
//! possible from every state that it has reached, until there is no new one. It sees nothing of the program, only the
//! same rules written down once more, so it says whether the *rules* are right. That the program follows them is for
//! [lockstep] to say, where the two go side by side.
//!
//! **What is modelled.** One key, from a client's first request to its removal, of an operation that makes one foreign call,
//! or two. Its row with lease, recovery point,
//! attempts, answer and key for the foreign call; commits that a crash of the [database] loses because they were not
//! flushed; [workers](worker) that end or are paused between any two steps; leases that run out at any moment;
//! statements that fail, or whose reply is lost; [Stripe](stripe) with every outcome of a charge, and with keys that
//! it forgets; clients who repeat, the completer, the reaper, and a person who retries what is parked.
//!
//! **What is left out, and why.**
//! - A second key: two keys share nothing that a statement or Stripe's idempotency could mix up.
//! - Requests that do not match their key: they execute nothing.
//! - Time, but for three events: `stripe.key_retention` passes, Stripe forgets, a worker's clock tells it that its
//!   lease is over. Lock timeout, grace, backoff and the reaper's 72 hours only decide *when* somebody comes, and here
//!   they come whenever they like.
//! - The schema's constraints and triggers: they are a net, and the model asks whether the protocol would fall.
//! - The enqueuer, whose one statement cannot be in the middle of anything.
//! - That something happens at all. The model says what may never happen, and that from anywhere one undisturbed
//!   request gets the key finished; it does not say that anybody comes.
//!
//! **Bounds.** Three workers at once, zombies included, and one attempt of the completer before it parks. Nothing else
//! is bounded, neither steps nor crashes nor retries: the states are finitely many because a [name](names) that nobody
//! remembers is given again.
//!
//! A model that finds nothing may just be blind, so each rule that the protocol needs has a test that breaks it, and
//! must find where that leads. They print the shortest way there:
//!
//! ```text
//! cargo test --test model -- --nocapture --test-threads 1
//! ```

#![expect(unreachable_pub, reason = "the support modules are the library of this crate, which has no outside")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed, helper or not")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "they serve the other tests too")]
mod support;
#[path = "../wire/mod.rs"]
#[expect(dead_code, reason = "they serve the other tests too")]
mod wire;

mod change;
mod database;
mod lockstep;
mod names;
mod phases;
mod properties;
mod protocol;
mod stripe;
mod trace;
mod worker;

use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use change::Change;
use protocol::Protocol;

#[test]
fn the_protocol_keeps_every_promise() {
    keeps_every_promise(Protocol { change: None, workers: 3, max_attempts: 1, calls: 1 });
}

/// An operation may make one foreign call after the other.
#[test]
fn so_it_does_with_two_calls() {
    keeps_every_promise(Protocol { change: None, workers: 2, max_attempts: 1, calls: 2 });
}

fn keeps_every_promise(protocol: Protocol) {
    let started = Instant::now();
    let checker = protocol.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    report(&checker, started, &format!("{protocol:?}, checked exhaustively"));
    for promise in protocol.properties().iter().filter(|property| property.expectation == Expectation::Always) {
        if let Some(path) = checker.discovery(promise.name) {
            panic!("broken: {}\n{}", promise.name, trace::trace(path));
        }
    }
    checker.assert_properties();
}

#[test]
fn without_the_fence_stale_leases_write() {
    breaks(Change::FenceRemoved, properties::STALE_WRITES_NOTHING);
}

#[test]
fn without_the_fence_two_receipts_are_staged() {
    breaks(Change::FenceRemoved, properties::PAID_MEANS_PAID);
}

#[test]
fn without_the_fence_recovery_points_move_back() {
    breaks_with(2, Change::FenceRemoved, properties::NEVER_BACK);
}

#[test]
fn a_counter_hands_out_a_token_twice() {
    breaks(Change::TokenFromCounter, properties::STALE_WRITES_NOTHING);
}

#[test]
fn a_new_foreign_call_key_for_each_attempt_charges_twice() {
    breaks(Change::ForeignCallKeyPerAttempt, properties::ONE_CHARGE);
}

#[test]
fn a_final_answer_to_a_transient_error_hides_a_charge() {
    breaks(Change::TransientErrorFinal, properties::FAILED_MEANS_FREE);
}

#[test]
fn a_request_that_is_not_flushed_is_forgotten_and_charged_again() {
    breaks(Change::OpenNotFlushed, properties::NEVER_FORGOTTEN);
    breaks(Change::OpenNotFlushed, properties::ONE_CHARGE);
}

#[test]
fn an_answer_that_is_not_flushed_is_taken_back() {
    breaks(Change::CloseNotFlushed, properties::ANSWER_STAYS);
}

/// Once Stripe has forgotten what it told the last holder, it may tell the next one something else.
#[test]
fn a_take_over_that_is_not_flushed_lets_a_stale_holder_finish() {
    breaks(Change::TakeOverNotFlushed, properties::FAILED_MEANS_FREE);
}

#[test]
fn without_the_look_up_a_forgotten_charge_is_made_again() {
    breaks(Change::LookUpRemoved, properties::ONE_CHARGE);
}

#[test]
fn a_worker_that_slept_for_a_day_charges_again() {
    breaks(Change::ClockNotChecked, properties::ONE_CHARGE);
}

#[test]
fn so_does_one_that_slept_between_look_up_and_charge() {
    breaks(Change::ClockCheckedBeforeLookUpOnly, properties::ONE_CHARGE);
}

/// What no rule of ours can exclude, and what a lease that is longer than a call to Stripe keeps improbable.
#[test]
fn a_loser_that_charges_just_when_stripe_forgets_is_the_limit() {
    breaks(Change::LoserChargesWhenStripeForgets, properties::FAILED_MEANS_FREE);
}

#[test]
fn a_reaper_that_asks_only_for_age_removes_what_may_be_charged() {
    breaks(Change::ReaperRemovesUnfinished, properties::FINISHED_REMOVED);
}

/// The change must break the property. The checker keeps the last counterexample it meets, so its depth is bounded
/// from below upwards: the first one found is a shortest.
#[track_caller]
fn breaks(change: Change, property: &'static str) {
    breaks_with(1, change, property);
}

/// The same, for an operation of so many foreign calls.
#[track_caller]
fn breaks_with(calls: u8, change: Change, property: &'static str) {
    /// Far deeper than any of them is.
    const TOO_DEEP: usize = 30;
    let started = Instant::now();
    let protocol = Protocol { change: Some(change), workers: 2, max_attempts: 1, calls };
    let found = (2..TOO_DEEP).find_map(|depth| {
        let only = HasDiscoveries::AnyOf([property].into());
        let checker = protocol.checker().target_max_depth(depth).finish_when(only).spawn_bfs().join();
        checker.discovery(property).map(|path| (checker, path))
    });
    let (checker, path) = found.unwrap_or_else(|| panic!("{change:?} went unnoticed: {property}"));
    report(&checker, started, &format!("{change:?} breaks: {property}\n{}", trace::trace(path)));
}

#[expect(clippy::print_stdout, reason = "what was checked, and how a promise breaks, is what one runs this for")]
fn report(checker: &impl Checker<Protocol>, started: Instant, result: &str) {
    let (states, ms) = (checker.unique_state_count(), started.elapsed().as_millis());
    println!("model: {states} states, {ms} ms\n{result}");
}
