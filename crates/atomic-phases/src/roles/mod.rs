//! What runs beside the requests, each a loop over one database: as many processes as you like may run any of them.
//!
//! - [`periodic`]: the loop under those that poll.
//! - [`completer`]: finishes what clients abandoned.
//! - [`enqueuer`]: from the outbox to the queue.
//! - [`worker`]: does the jobs of the default queue.
//! - [`reaper`]: removes what is old.
//!
//! None of them knows an operation or a job: they are handed those that a process has registered.

pub mod completer;
pub mod enqueuer;
mod observer;
pub mod periodic;
pub mod reaper;
pub mod worker;

pub use observer::{Observer, Outcome};
