//! The protocol as a model: every state that a request can reach, whatever fails, and in whatever order.
//!
//! The other tests run the program and make the failures that their authors thought of. Here stateright takes every
//! possible step from every state that it has reached, until there is no new one. The model contains nothing of the
//! program, only the same rules written down once more, so it checks whether the *rules* are right. [lockstep] checks
//! that the program follows them: there the two run side by side.
//!
//! **What is modelled.** One key, from a client's first request to its removal, of an operation that makes one foreign
//! call, or two. Its row with lease, recovery point, attempts, answer and key for the foreign call; commits that a
//! crash of the [database] loses because they were not flushed; [workers](worker) that end or are paused between any
//! two steps; leases that run out, or are handed back, at any moment; statements that fail, or whose reply is lost; [Stripe](stripe) with
//! every outcome of a charge, and with keys that it forgets; clients that repeat their requests, the completer, the
//! reaper, and a person who retries parked keys.
//!
//! **What is left out, and why.**
//! - A second key: two keys share nothing that a statement or Stripe's idempotency could mix up.
//! - Requests that do not match their key: they execute nothing.
//! - Time, except for three events: `stripe.key_retention` passes, Stripe forgets, a worker's clock shows that its
//!   lease is over. Lock timeout, grace, backoff and the reaper's 72 hours only decide *when* an action happens, and
//!   here it may happen at any time.
//! - The schema's constraints and triggers: they are a second guard, and the model checks whether the protocol is
//!   correct without it.
//! - The enqueuer, whose single statement cannot be interrupted half-way.
//! - That something happens at all. The model checks what must never happen, and that from every state one undisturbed
//!   request finishes the key; it does not check that a request comes.
//!
//! **Bounds.** Three workers at once, zombies included, and one attempt of the completer before it parks. Nothing else
//! is bounded, neither steps nor crashes nor retries: the number of states is finite because a [name](names) that is
//! stored nowhere any more is used again.
//!
//! A model that finds nothing may be unable to find anything. So each rule that the protocol needs has a test that
//! breaks it, and must find a violation. These tests print the shortest way to it:
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

/// Once Stripe has forgotten its answer to the last holder, its answer to the next one may be different.
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

/// No rule of the protocol can exclude this; a lease that is longer than a call to Stripe makes it improbable.
#[test]
fn a_loser_that_charges_just_when_stripe_forgets_is_the_limit() {
    breaks(Change::LoserChargesWhenStripeForgets, properties::FAILED_MEANS_FREE);
}

#[test]
fn a_reaper_that_asks_only_for_age_removes_what_may_be_charged() {
    breaks(Change::ReaperRemovesUnfinished, properties::FINISHED_REMOVED);
}

/// Asserts that the change breaks the property. The checker keeps the last counterexample that it finds, so its depth
/// is limited, and the limit increased one by one: the first counterexample is a shortest one.
#[track_caller]
fn breaks(change: Change, property: &'static str) {
    breaks_with(1, change, property);
}

/// The same, for an operation of this many foreign calls.
#[track_caller]
fn breaks_with(calls: u8, change: Change, property: &'static str) {
    /// Far deeper than any counterexample.
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
