//! Defines how clients request an operation over HTTP.

use atomic_phases::idempotency::Operation;

/// An operation that has a path of its own, which takes `POST`.
pub trait Endpoint: Operation {
    /// The path. `{id}` in it stands for a number from 1.
    const PATH: &'static str;
    /// The body's fields that mean something, in the order in which they are reported when wrong. Others are ignored, as
    /// they may mean something to a later version.
    const FIELDS: &'static [&'static str];
    /// The text for a client whose request is not finished yet.
    const UNFINISHED: &'static str;

    /// Reads the parameters. `id` is the number in the path, and `find` gives the text of a field, or `None` if it was not
    /// sent.
    fn params(id: Option<i64>, find: &dyn Fn(&str) -> Option<String>) -> Result<Self::Params, ParamError>;

    /// Returns the answer for a request that the operation's SQL has refused with this word.
    fn refusal(word: &str) -> Option<Refusal>;
}

/// Which parameter is wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct ParamError {
    /// The parameter's name.
    pub field: &'static str,
    /// The rest of the sentence.
    pub problem: String,
}

/// Why a request is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// For the client.
    pub text: &'static str,
}
