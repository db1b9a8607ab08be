//! The one place that names the operations.

use std::sync::Arc;
use std::time::Duration;

use atomic_phases::idempotency::{Engine, Executor, Operations};
use atomic_phases::rules::{self, Rule};

use crate::api::Serves;
use crate::endpoint::Endpoint;
use crate::receipts;
use crate::refunds::Refunds;
use crate::rides::{self, Rides};
use crate::stripe;

/// Every operation of the program, in the forms that the completer and the API use.
#[derive(Clone)]
pub struct Registry {
    /// For the completer.
    pub operations: Operations,
    /// For the API.
    pub endpoints: Vec<Arc<dyn Serves>>,
}

impl Registry {
    fn add<O: Endpoint>(&mut self, operation: Executor<O>) {
        self.operations.register(operation.clone());
        self.endpoints.push(Arc::new(operation));
    }

    /// Returns the rules: what must always hold.
    pub fn rules(&self) -> Vec<Rule> {
        [rules::engine(), rules::queue(), self.operations.rules(), receipts::rules()].concat()
    }
}

/// Registers every operation.
pub fn register(engine: &Engine, stripe: stripe::Client, key_retention: Duration) -> Registry {
    let mut registry = Registry { operations: Operations::default(), endpoints: Vec::new() };
    let rides = Rides { stripe: stripe.clone(), key_retention, price: rides::PRICE };
    registry.add(Executor::new(engine.clone(), rides));
    registry.add(Executor::new(engine.clone(), Refunds { stripe, key_retention }));
    registry
}
