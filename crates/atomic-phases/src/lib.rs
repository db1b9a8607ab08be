#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! Each module uses those below it in this list and none above.
//!
//! - [`roles`]: the tasks that run beside the requests: completer, enqueuer, worker, reaper.
//! - [`queue`]: the outbox, and the queue that it leads to: one in the same database, or one outside it.
//! - [`idempotency`]: the engine: operations, leases, phases, recovery points.
//! - [`processes`]: which processes there are, and what becomes of a dead one's leases.
//! - [`rules`]: what must always hold, and how it is checked on a live system.
//! - [`database`]: one pool, single statements only.
//! - [`errors`], [`clock`]: how errors are printed; the host's clock.

/// The tables, triggers and indexes of the library, for your migrations.
pub const SCHEMA: &str = include_str!("../schema.sql");

pub mod clock;
pub mod database;
pub mod errors;
pub mod idempotency;
pub mod processes;
pub mod queue;
pub mod roles;
pub mod rules;
