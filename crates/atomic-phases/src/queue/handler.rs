//! What jobs do: a handler for each name that a job may have.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::leases::Held;
use super::work::{Claimed, FinishStatement};
use crate::errors::BoxError;

/// Does the jobs of one name.
///
/// A job is done at least once: it is done again if the process is lost before its end is recorded. So the system that
/// a handler acts on must be able to recognise a repetition; [`JobLease::job_id`](super::work::JobLease::job_id) is the
/// same each time.
pub trait Handler: Send + Sync {
    /// The name of the jobs, as they are staged.
    fn name(&self) -> &'static str;

    /// What the statement that finishes a job writes in addition: nothing, or `, name AS (…)`, CTEs that take their
    /// rows from `finished`, with the columns `job_id` and `data`.
    fn effects(&self) -> &'static str {
        ""
    }

    /// Does a job, and returns the `data` for [`Handler::effects`]. It must ask [`Held::outlasts`] right before an
    /// action that cannot be undone, because no fence protects that action.
    fn work<'a>(&'a self, job: &'a Claimed, held: &'a Held) -> BoxFuture<'a, Result<Value, HandlerError>>;
}

/// Why an attempt did not do the job.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The lease has run out, or too little of it is left.
    #[error("the lease was lost")]
    LeaseLost,
    /// A later attempt may succeed.
    #[error(transparent)]
    Transient(BoxError),
    /// No attempt will ever succeed: the job becomes a dead letter.
    #[error(transparent)]
    Permanent(BoxError),
}

/// The handlers of a process, by the names of their jobs.
#[derive(Clone, Default)]
pub struct Handlers(BTreeMap<&'static str, Registered>);

/// A handler, and the statement that finishes its jobs.
#[derive(Clone)]
pub struct Registered {
    /// Does the jobs.
    pub handler: Arc<dyn Handler>,
    /// Finishes them.
    pub finish: FinishStatement,
}

impl Handlers {
    /// Adds a handler.
    ///
    /// # Panics
    ///
    /// If a handler for jobs of that name is registered already.
    pub fn register(&mut self, handler: impl Handler + 'static) {
        let (name, finish) = (handler.name(), FinishStatement::with(handler.effects()));
        let known = self.0.insert(name, Registered { handler: Arc::new(handler), finish });
        assert!(known.is_none(), "two handlers for jobs called {name}");
    }

    /// Returns the handler for jobs of this name.
    pub fn get(&self, name: &str) -> Option<&Registered> {
        self.0.get(name)
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
