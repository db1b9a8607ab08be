//! Keeps connections to a queue between two pushes.

use std::sync::{Mutex, PoisonError};

/// Connections whose last push was answered in full.
///
/// A push takes one out and puts it back when it was answered. One that failed, or whose push was given up in the
/// middle, is not put back: it may hang on a dead network, or still send jobs that the queue has got from a later push.
#[derive(Debug)]
pub(super) struct Spare<C>(Mutex<Vec<C>>);

impl<C> Spare<C> {
    pub(super) fn take(&self) -> Option<C> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(super) fn put(&self, connection: C) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

impl<C> Default for Spare<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}
