#![doc = include_str!("../README.md")]
//!
//! # The house
//!
//! Each module knows those below it and none above.
//!
//! - [`roles`]: what runs beside the requests: completer, enqueuer, worker, reaper.
//! - [`queue`]: the outbox and its other end, a job queue in the same database or outside.
//! - [`idempotency`]: the engine: operations, leases, phases, recovery points.
//! - [`rules`]: what must always hold, and whoever asks.
//! - [`database`]: one pool, single statements only.
//! - [`errors`], [`clock`]: how errors are told; the host's clock.

/// The tables, triggers and indexes of the library, for your migrations.
pub const SCHEMA: &str = include_str!("../schema.sql");

pub mod clock;
pub mod database;
pub mod errors;
pub mod idempotency;
pub mod queue;
pub mod roles;
pub mod rules;
