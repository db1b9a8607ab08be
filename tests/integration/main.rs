//! Each test boots the whole supervisor on free ports with a database of its own.
//!
//! `contract` tests the API's behaviour row by row; `recovery` resumes from every recovery point and meets every
//! outcome at Stripe; then there is one module per role; `differences` tests what this program does differently from
//! the Ruby original, on purpose; `shutdown` and `process` end it in every way there is.

#![expect(unreachable_pub, reason = "the support modules are the library of this crate, which has no outside")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed, helper or not")]

#[path = "../support/mod.rs"]
mod support;

mod attempts;
mod batched;
mod batches;
mod books;
mod completer;
mod constraints;
mod contract;
mod differences;
mod engine;
mod enqueuer;
mod flushes;
mod foreign;
mod hand_backs;
mod handlers;
mod house;
mod jobs;
mod key_leases;
mod leases;
mod limits;
mod load;
mod lookups;
mod metrics;
mod migrations;
mod nats;
mod plans;
mod points;
mod pool;
mod private_postgres;
mod process;
mod processes;
mod queues;
mod races;
mod reaper;
mod receipts;
mod recovery;
mod redis;
mod refunds;
mod schema;
mod shutdown;
mod sidekiq;
mod simulator;
mod worker;
