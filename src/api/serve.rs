//! Serves the requests of any operation.

use std::net::IpAddr;
use std::sync::Arc;

use atomic_phases::idempotency::{Executed, Executor, IdempotencyKey, Request};
use futures_util::future::BoxFuture;

use crate::demo::raise_error::RaiseError;
use crate::endpoint::{Endpoint, ParamError, Refusal};

/// What comes with a request besides its parameters.
#[derive(Debug)]
pub struct Asked {
    pub(super) user_id: i64,
    pub(super) key: IdempotencyKey,
    pub(super) path: String,
    pub(super) origin_ip: IpAddr,
    /// The attempt is to fail before its foreign call.
    pub(super) raise_error: bool,
}

/// Carries out a request whose parameters are known.
pub(super) type CarryOut<'a> = Box<dyn FnOnce(Asked) -> BoxFuture<'a, Executed> + Send + 'a>;

/// An [`Endpoint`] of any kind, with its executor.
pub trait Serves: Send + Sync {
    /// [`Endpoint::PATH`].
    fn path(&self) -> &'static str;

    /// [`Endpoint::FIELDS`].
    fn fields(&self) -> &'static [&'static str];

    /// [`Endpoint::UNFINISHED`].
    fn unfinished(&self) -> &'static str;

    /// [`Endpoint::refusal`].
    fn refusal(&self, word: &str) -> Option<Refusal>;

    /// Reads the parameters, as [`Endpoint::params`].
    fn prepare(&self, id: Option<i64>, find: &dyn Fn(&str) -> Option<String>) -> Result<CarryOut<'_>, ParamError>;
}

impl<O: Endpoint> Serves for Executor<O> {
    fn path(&self) -> &'static str {
        O::PATH
    }

    fn fields(&self) -> &'static [&'static str] {
        O::FIELDS
    }

    fn unfinished(&self) -> &'static str {
        O::UNFINISHED
    }

    fn refusal(&self, word: &str) -> Option<Refusal> {
        O::refusal(word)
    }

    fn prepare(&self, id: Option<i64>, find: &dyn Fn(&str) -> Option<String>) -> Result<CarryOut<'_>, ParamError> {
        let params = O::params(id, find)?;
        Ok(Box::new(move |asked| {
            let Asked { user_id, key, path, origin_ip, raise_error } = asked;
            let request = Request { user_id, key, method: "POST".to_owned(), path, params, origin_ip };
            if raise_error {
                let failing = self.with(RaiseError(Arc::clone(self.operation())));
                Box::pin(async move { failing.execute(request).await })
            } else {
                Box::pin(self.execute(request))
            }
        }))
    }
}
