//! What must hold in every state, and which states must be reachable so that this means something.

use stateright::{Model, Property};

use crate::database::{Key, RecoveryPoint, Response};
use crate::protocol::{Action, Listing, Protocol, Reply, State};
use crate::stripe::{Answer, Outcome};
use crate::worker::{Step, Worker};

pub(crate) const ONE_CHARGE: &str = "Stripe makes at most one charge for a call of a key";
pub(crate) const PAID_MEANS_PAID: &str =
    "201 means one charge for each call and one receipt, and nothing else stages a receipt";
pub(crate) const FAILED_MEANS_FREE: &str = "any other final answer means that a call made no charge";
pub(crate) const NEVER_BACK: &str = "a recovery point never moves back, but in a crash";
pub(crate) const NEVER_FORGOTTEN: &str = "a crash never takes away what a charge was asked for";
pub(crate) const ANSWER_STAYS: &str = "what a client was told is stored, and never changes";
pub(crate) const STALE_WRITES_NOTHING: &str = "a stale lease writes nothing";
pub(crate) const FINISHED_REMOVED: &str = "the reaper removes finished keys only";
pub(crate) const NEVER_STUCK: &str = "whatever happened, an undisturbed request ends the key, unless it is parked";

pub(crate) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ONE_CHARGE, |protocol: &Protocol, state: &State| {
            (1..=protocol.calls).all(|call| state.stripe.charges_of(call) <= 1)
        }),
        Property::always(PAID_MEANS_PAID, |protocol: &Protocol, state: &State| {
            let paid = state.database.response() == Some(Response::Paid);
            let receipts = state.database.current().receipts;
            let each_once = (1..=protocol.calls).all(|call| state.stripe.charges_of(call) == 1);
            receipts == u8::from(paid) && (!paid || each_once)
        }),
        Property::always(FAILED_MEANS_FREE, |protocol: &Protocol, state: &State| {
            let failed = matches!(state.database.response(), Some(Response::Declined | Response::Failed));
            !failed || (1..=protocol.calls).any(|call| state.stripe.charges_of(call) == 0)
        }),
        Property::always(NEVER_BACK, |_, state: &State| !state.broken.recovery_point_moved_back),
        Property::always(NEVER_FORGOTTEN, |_, state: &State| {
            state.charge_asked_for == 0
                || state.database.recovery_point() >= Some(RecoveryPoint::Call(state.charge_asked_for))
        }),
        Property::always(ANSWER_STAYS, |_, state: &State| {
            let kept = state.told.is_none() || state.database.response() == state.told;
            kept && !state.broken.answer_changed
        }),
        Property::always(STALE_WRITES_NOTHING, |_, state: &State| !state.broken.stale_lease_wrote),
        Property::always(FINISHED_REMOVED, |_, state: &State| state.database.current().key != Key::Removed(None)),
        Property::always(NEVER_STUCK, can_end),
        Property::sometimes("a client is told 201", |_, state: &State| state.told == Some(Response::Paid)),
        Property::sometimes("a client is told 402", |_, state: &State| state.told == Some(Response::Declined)),
        Property::sometimes("a key is parked after its charge", |_, state: &State| {
            state.database.row().is_some_and(|row| row.parked) && state.stripe.charges() > 0
        }),
        Property::sometimes("a finished key is removed", |_, state: &State| {
            matches!(state.database.current().key, Key::Removed(Some(_)))
        }),
        Property::sometimes(
            "a charge that Stripe answered with a 500 is looked up and paid",
            |_, state: &State| {
                let row = state.database.row();
                let remembered = row.and_then(|row| state.stripe.remembered(row.foreign_call_key));
                state.told == Some(Response::Paid) && remembered == Some(Answer::Failed { charged: true })
            },
        ),
        Property::sometimes("a zombie would close a finished key", |_, state: &State| {
            state.database.response().is_some() && some_step(state, Step::Close(Response::Paid))
        }),
    ]
}

fn some_step(state: &State, step: Step) -> bool {
    state.workers.iter().filter_map(Worker::attempt).any(|attempt| attempt.step == step)
}

/// Returns whether the key can still be finished. All workers end and nothing more fails; then a client makes its
/// request, and again after Stripe has forgotten a failure that it may have stored. So every key can be finished
/// without a person, unless it is parked already.
fn can_end(protocol: &Protocol, state: &State) -> bool {
    let mut state = State { workers: vec![Worker::Idle; protocol.workers], ..state.clone() };
    for _ in 0..=protocol.calls {
        state = undisturbed(protocol, state);
        if state.database.response().is_some() || state.database.row().is_some_and(|row| row.parked) {
            return true;
        }
        for action in [Action::RetentionPasses, Action::StripeForgets] {
            state = protocol.next_state(&state, action).unwrap_or(state);
        }
    }
    false
}

/// Runs a request in which every call succeeds, until it ends.
fn undisturbed(protocol: &Protocol, mut state: State) -> State {
    let may_come = match &state.database.current().key {
        Key::Absent => true,
        Key::Present(row) => row.response.is_none() && !row.parked,
        Key::Removed(_) => false,
    };
    let mut next = may_come.then_some(Action::Request { worker: 0 });
    while let Some(action) = next {
        let Some(after) = protocol.next_state(&state, action) else { break };
        state = after;
        next = state.workers.iter().enumerate().find_map(|(worker, doing)| {
            let attempt = doing.attempt()?;
            Some(match attempt.step {
                Step::LookUp => Action::LookUp { worker, listing: Listing::Complete },
                Step::Charge => {
                    let answer = state.stripe.remembered(attempt.foreign_call_key).unwrap_or(Answer::Charged);
                    Action::Charge { worker, outcome: Outcome::Answered(answer) }
                }
                Step::Advance | Step::Close(_) | Step::Release | Step::Park => {
                    Action::Statement { worker, reply: Reply::Arrives }
                }
            })
        });
    }
    state
}
