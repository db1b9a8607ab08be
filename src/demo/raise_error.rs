//! Lets a client of the demonstration ask for a failure, to see what happens.

use std::sync::Arc;

use atomic_phases::errors::BoxError;
use atomic_phases::idempotency::{Attempt, Next, Operation, Phases, Stop};
use atomic_phases::rules::Rule;
use serde_json::Value;

/// An operation whose attempts fail right before the foreign call. It stores what the operation itself stores, so an
/// attempt that does not ask for a failure finishes the request.
#[derive(Debug)]
pub struct RaiseError<O>(pub Arc<O>);

/// The failure.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the client asked for a failure")]
pub struct Raised;

impl<O: Operation> Operation for RaiseError<O> {
    const NAME: &'static str = O::NAME;
    const PHASES: Phases = O::PHASES;

    type Params = O::Params;
    type State = O::State;

    fn terms(&self) -> Value {
        self.0.terms()
    }

    fn rules(&self) -> Vec<Rule> {
        self.0.rules()
    }

    async fn advance(&self, _: &Attempt<O::Params>, _: O::State) -> Result<Next<O::State>, Stop> {
        Err(Stop::Retry(BoxError::from(Raised)))
    }
}
