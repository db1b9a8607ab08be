//! The program's rules, checked on a database and a sandbox.

use std::time::Duration;

use atomic_phases::database::Database;
use atomic_phases::idempotency::Engine;
use atomic_phases::rules::{Check, Circumstances, Report, Rule};
use rocket_rides_atomic::{operations, stripe};

/// Everything is running.
pub const LIVE: Circumstances = Circumstances { at_rest: false, jobs_stay: true };
/// Nothing is under way.
pub const AT_REST: Circumstances = Circumstances { at_rest: true, jobs_stay: true };

/// Returns all rules that the program has registered.
pub fn rules(database: &Database, stripe: stripe::Client) -> Vec<Rule> {
    let engine = Engine::new(database.clone(), Duration::from_secs(90), Duration::from_secs(300));
    operations::register(&engine, stripe, Duration::from_secs(23 * 3600)).rules()
}

/// Checks all of them.
pub async fn verify(database: &Database, stripe: stripe::Client, circumstances: Circumstances) -> Report {
    Check { database, circumstances }.ask(&rules(database, stripe)).await.expect("an answer")
}
