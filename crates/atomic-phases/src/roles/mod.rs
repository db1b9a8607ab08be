//! The roles: loops that run beside the requests, over one database. Any number of processes may run any of them.
//!
//! - [`periodic`]: the loop under those that poll.
//! - [`completer`]: finishes what clients abandoned.
//! - [`enqueuer`]: from the outbox to the queue.
//! - [`heart`]: says that its process lives, and looks after those that do not.
//! - [`worker`]: does the jobs of the default queue.
//! - [`reaper`]: removes what is old.
//!
//! No role contains code for a particular operation or job: it is given those that its process has registered.

pub mod completer;
pub mod enqueuer;
pub mod heart;
mod observer;
pub mod periodic;
pub mod reaper;
pub mod worker;

pub use observer::{Observer, Outcome};
