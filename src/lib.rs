//! Rocket Rides Atomic: an HTTP API that books a ride and charges a card exactly once.
//!
//! The map of the modules, in reading order. Each module uses those below it and none above. Below all of them is the
//! library [`atomic_phases`]: the engine, the queue, and the roles that work for both; it knows nothing of rides, cards
//! or HTTP.
//!
//! - [`cli`]: the command line.
//! - [`supervisor`]: starts every role, watches it, and ends all in order.
//! - [`config`]: one config for one process, put together from the settings of the modules below.
//! - [`operations`]: the one place that names every operation.
//! - [`api`]: HTTP, with the one mapping from errors to statuses.
//! - [`demo`]: what only a demonstration has, the simulator among it.
//! - [`rides`], [`refunds`]: the operations: a ride is booked, a ride is refunded.
//! - [`endpoint`]: how clients request an operation over HTTP.
//! - [`metrics`]: what Prometheus reads.
//! - [`receipts`]: does the jobs of receipts, which are e-mails.
//! - [`users`], [`stripe`], [`queues`]: the users; the client of Stripe, and a sandbox of Stripe; queues outside this
//!   database.
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
