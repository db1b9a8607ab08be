//! The other programs that a run needs.

pub(crate) mod pgbench;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod queue;
pub(crate) mod usage;
