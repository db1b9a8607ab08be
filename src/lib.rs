//! Rocket Rides Atomic: an HTTP API that books a ride and charges a card exactly once.
//!
//! The map of the house, in reading order. Each module knows those below it and none above. Below all of them is the library
//! [`atomic_phases`]: the engine, the queue, and the roles that work for both; it knows nothing of rides, cards or HTTP.
//!
//! - [`cli`]: what the command line asks for.
//! - [`supervisor`]: starts every role, watches it, and ends all in order.
//! - [`config`]: one config for one process, put together from the settings of the modules below.
//! - [`operations`]: the one place that names every operation.
//! - [`api`]: HTTP, with the one mapping from errors to statuses.
//! - [`demo`]: what only a demonstration has, the simulator among it.
//! - [`rides`], [`refunds`]: the operations: a ride is booked, a ride is refunded.
//! - [`endpoint`]: how an operation is asked for over HTTP.
//! - [`metrics`]: what Prometheus is told.
//! - [`receipts`]: does the job of a receipt, as an e-mail.
//! - [`users`], [`stripe`], [`queues`]: who books; who charges, with a sandbox of it; queues outside this database.
//! - [`database`]: the private Postgres or yours, and its schema.
//! - [`http`], [`open_files`], [`telemetry`], [`role`]: the server under API and sandbox; a limit; logs; the parts of the
//!   process.

pub mod api;
pub mod cli;
pub mod config;
pub mod database;
pub mod demo;
pub mod endpoint;
pub mod http;
pub mod metrics;
pub mod open_files;
pub mod operations;
pub mod queues;
pub mod receipts;
pub mod refunds;
pub mod rides;
pub mod role;
pub mod stripe;
pub mod supervisor;
pub mod telemetry;
pub mod users;
