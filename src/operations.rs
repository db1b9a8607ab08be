//! The one place that names the operations.

use std::sync::Arc;
use std::time::Duration;

use crate::api::Serves;
use crate::idempotency::{Engine, Executor, Operations};
use crate::rides::{self, Rides};
use crate::stripe;

/// Every operation of the program, as those know it who carry operations out.
#[derive(Clone)]
pub struct Registry {
    /// For the completer.
    pub operations: Operations,
    /// For the API.
    pub endpoints: Vec<Arc<dyn Serves>>,
}

/// Registers every operation.
pub fn register(engine: &Engine, stripe: stripe::Client, key_retention: Duration) -> Registry {
    let rides = Executor::new(engine.clone(), Rides { stripe, key_retention, price: rides::PRICE });
    let mut operations = Operations::default();
    operations.register(rides.clone());
    Registry { operations, endpoints: vec![Arc::new(rides)] }
}
