//! Rocket Rides Atomic: an HTTP API that books a ride and charges a card exactly once.
//!
//! The map of the house, in reading order. Each module knows those below it and none above.
//!
//! - [`cli`]: what the command line asks for.
//! - [`supervisor`]: starts every role, watches it, and ends all in order.
//! - [`operations`]: the one place that names every operation.
//! - [`api`]: HTTP, with the one mapping from errors to statuses.
//! - [`roles`]: completer, enqueuer, worker, reaper, simulator, and the keeper of the private Postgres.
//! - [`telemetry`], [`config`]: logs; one config for one process.
//! - [`invariants`]: what must always hold, over the database and Stripe's ledger.
//! - [`demo`]: what only a demonstration has.
//! - [`rides`], [`refunds`]: the operations: a ride is booked, a ride is refunded.
//! - [`endpoint`]: how an operation is asked for over HTTP.
//! - [`metrics`]: what Prometheus is told.
//! - [`receipts`]: does the job of a ride's receipt, as an e-mail.
//! - [`jobs`], [`users`], [`stripe`]: the outbox's other end; who books; who charges, with a sandbox of it.
//! - [`idempotency`]: the engine: operations, leases, phases, recovery points. It knows nothing of rides or HTTP.
//! - [`database`]: the one pool, single statements only; the private Postgres; the schema.
//! - [`http`], [`errors`], [`open_files`], [`clock`]: the server under API and sandbox; how errors are told; a limit; the
//!   host's clock.

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod database;
pub mod demo;
pub mod endpoint;
pub mod errors;
pub mod http;
pub mod idempotency;
pub mod invariants;
pub mod jobs;
pub mod metrics;
pub mod open_files;
pub mod operations;
pub mod receipts;
pub mod refunds;
pub mod rides;
pub mod roles;
pub mod stripe;
pub mod supervisor;
pub mod telemetry;
pub mod users;
