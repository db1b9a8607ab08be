//! What must always hold, as queries that look for violations.
//!
//! The engine and the queue bring rules of their own ([`engine`], [`queue`]), each operation brings its own, and a
//! [`Check`] asks the rules that it is given.
//!
//! Rules are asked on a live system. A statement sees one moment. A rule that compares two moments reads first the side
//! that cannot exist without the other: a finished request before its job, a recorded charge before the foreign
//! system's list of charges. So work that is merely under way never counts as a violation. Nothing is locked, and no
//! snapshot is held for longer than a page.

mod check;
mod engine;
mod queue;
mod report;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::errors::BoxError;

pub use check::{Check, RuleError, Unasked};
pub use engine::engine;
pub use queue::queue;
pub use report::{Finding, Report};

/// What must always hold.
#[derive(Debug, Clone)]
pub struct Rule {
    /// A sentence in the present tense, whose subject is what the rule is about: "a ride has one charge".
    pub name: &'static str,
    /// How it is asked.
    pub ask: Ask,
}

/// How a rule is asked.
///
/// The SQL returns a page: it takes `$1`, the `id` behind which to go on, and `$2`, the most rows, and is ordered by
/// `id`, a bigint above 0.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Each row by itself: `id`, and `offence`, a text that says what is wrong and with what, or null.
    Rows {
        /// When it can be asked.
        when: When,
        /// The page.
        sql: &'static str,
    },
    /// Two sides: what is expected is found, and what may exist once is not found twice.
    Pairs(Pairs),
}

/// Two sides that must agree.
#[derive(Debug, Clone)]
pub struct Pairs {
    /// Pages of `id` and `item`, a text: what must be found. Read first, when it can be asked.
    pub expected: (When, &'static str),
    /// Where to look for it, in this order.
    pub found: Vec<Found>,
}

/// One place where things are found.
#[derive(Clone)]
pub enum Found {
    /// Pages of `id`; `thing`, a bigint that is the same in each row about the same thing; and the columns that a
    /// [`Found::Ledger`] returns.
    Rows(&'static str),
    /// The entries of a foreign system's ledger.
    Ledger {
        /// Lists them.
        ledger: Arc<dyn Ledger>,
        /// Takes `$1`, a page's entries as `jsonb[]`, and returns a row for each entry that belongs to this system:
        /// `items`, an array of the expected items that the entry stands for; `once`, an array of names that no other
        /// thing may have; and `offence`, as in [`Ask::Rows`]. Nulls in the arrays are ignored.
        sql: &'static str,
    },
}

/// A foreign system's ledger, which lists its entries in pages.
pub trait Ledger: Send + Sync {
    /// Returns one page: the first, or the one at `after`, which is the [`LedgerPage::next`] of the page before.
    fn page(&self, after: Option<String>) -> BoxFuture<'_, Result<LedgerPage, BoxError>>;
}

/// A page of a ledger.
#[derive(Debug)]
pub struct LedgerPage {
    /// The page's entries.
    pub entries: Vec<Value>,
    /// Where the next one begins, if there is one.
    pub next: Option<String>,
}

/// When a rule can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At any time.
    Always,
    /// When all has come to rest: every request has ended, and every job is finished or dead.
    AtRest,
    /// When jobs stay in this database until they are finished: they are not delivered to a queue outside it.
    JobsStay,
}

/// The system as it is when rules are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// All has come to rest.
    pub at_rest: bool,
    /// See [`When::JobsStay`].
    pub jobs_stay: bool,
}

impl When {
    fn is_now(self, circumstances: Circumstances) -> bool {
        match self {
            Self::Always => true,
            Self::AtRest => circumstances.at_rest,
            Self::JobsStay => circumstances.jobs_stay,
        }
    }

    /// Returns a report's note for a rule that cannot be asked.
    fn otherwise(self) -> &'static str {
        match self {
            Self::Always => "asked at any time",
            Self::AtRest => "only asked when all has come to rest",
            Self::JobsStay => "jobs leave this database, so only a second one would be noticed",
        }
    }
}

impl Rule {
    /// Creates a rule that looks at each row by itself, at any time.
    pub const fn rows(name: &'static str, sql: &'static str) -> Self {
        Self { name, ask: Ask::Rows { when: When::Always, sql } }
    }

    /// Creates a rule that compares two sides.
    pub const fn pairs(name: &'static str, expected: (When, &'static str), found: Vec<Found>) -> Self {
        Self { name, ask: Ask::Pairs(Pairs { expected, found }) }
    }

    /// Creates a rule that looks at each row by itself once all has come to rest.
    pub const fn rows_at_rest(name: &'static str, sql: &'static str) -> Self {
        Self { name, ask: Ask::Rows { when: When::AtRest, sql } }
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(sql) => f.debug_tuple("Rows").field(sql).finish(),
            Self::Ledger { sql, .. } => f.debug_struct("Ledger").field("sql", sql).finish_non_exhaustive(),
        }
    }
}
