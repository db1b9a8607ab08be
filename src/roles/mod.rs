//! The roles that work by themselves, beside the API: three that poll, one that works the queue,
//! one that plays the clients, and the keeper of the private Postgres.

pub mod completer;
pub mod enqueuer;
pub mod periodic;
pub mod postgres;
pub mod reaper;
pub mod simulator;
pub mod worker;
