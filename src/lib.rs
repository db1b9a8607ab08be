//! Rocket Rides Atomic: an HTTP API that books a ride and charges a card exactly once.
//!
//! The map of the house, in reading order. Each module knows those below it and none above.
//!
//! - [`cli`]: what the command line asks for.
//! - [`config`]: one config for one process.
//! - [`supervisor`]: starts every role, watches it, and ends all in order.
//! - [`api`]: HTTP, with the one mapping from errors to statuses.
//! - [`roles`]: completer, enqueuer, reaper, simulator, and the keeper of the private Postgres.
//! - [`rides`]: a ride as a state machine on top of the engine.
//! - [`idempotency`]: the engine: leases, fences, recovery points. It knows nothing of rides or HTTP.
//! - [`invariants`]: what must always hold, over the database and Stripe's ledger.
//! - [`jobs`], [`users`], [`stripe`]: the outbox's other end; who books; who charges, with a sandbox of it.
//! - [`database`]: the one pool, single statements only; the private Postgres; the schema.
//! - [`http`], [`telemetry`]: the server under API and sandbox; logs.

pub mod api;
pub mod cli;
pub mod config;
pub mod database;
pub mod http;
pub mod idempotency;
pub mod invariants;
pub mod jobs;
pub mod rides;
pub mod roles;
pub mod stripe;
pub mod supervisor;
pub mod telemetry;
pub mod users;
