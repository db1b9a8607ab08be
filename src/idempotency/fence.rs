//! The fence: how a phase makes sure, in the statement that does its work, that it still holds the lease.
//!
//! A phase is one statement. It begins with the CTE `fenced`, which advances the key's recovery point where
//! id, lease token and recovery point all match, and it takes everything that it writes *from* that CTE. So if
//! the lease has gone to somebody else, or the phase was done already, `fenced` is empty and nothing is
//! written at all. One statement also means no `BEGIN`: a task that is cancelled leaves nothing half-done, and
//! a phase costs one round trip.
//!
//! A phase takes arrays, one element for each request, because many requests go together: it is
//! [`Batched`](crate::database::Batched). A [`Pass`] says whose an element is.

use std::collections::HashMap;

use tokio_postgres::Row;
use uuid::Uuid;

use super::Lease;

/// When the effects of a phase must have reached the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before the statement returns: what follows cannot be undone, or somebody is told.
    Flushed,
    /// With the next flush. If the database crashes first, the phase is as good as not run, and running it
    /// again does no harm.
    Later,
}

/// What a phase does to its key.
#[derive(Debug, Clone, Copy)]
pub struct Fence {
    /// The recovery point that the phase continues from.
    pub from: &'static str,
    /// The recovery point once it is done.
    pub to: &'static str,
    /// The phase is what makes the foreign call possible: note when that was first so.
    pub intends_foreign_call: bool,
    /// When it must be on disk.
    pub durability: Durability,
}

impl Fence {
    /// The beginning of a phase's statement; `, name AS (…) SELECT …` follows. Its first two parameters are the arrays
    /// of the passes' `key_id` and `token`.
    ///
    /// `columns` are the phase's own arrays from `$3` on, as name and type: `[("charge_id", "text")]`. They are
    /// columns of `fenced`, along with `key_id`, `lease_token`, `user_id` and `origin_ip`.
    ///
    /// Locks the rows of the keys that it advances, in the order of the arrays.
    pub fn with_columns(&self, columns: &[(&str, &str)]) -> String {
        let Self { from, to, .. } = self;
        let arrays: String =
            columns.iter().enumerate().map(|(i, (_, kind))| format!(", ${}::{kind}[]", i + 3)).collect();
        let names: String = columns.iter().map(|(name, _)| format!(", {name}")).collect();
        let returned: String = columns.iter().map(|(name, _)| format!(", i.{name}")).collect();
        let intent = if self.intends_foreign_call {
            ", foreign_call_intended_at = coalesce(k.foreign_call_intended_at, now())"
        } else {
            ""
        };
        let commit = self.durability.column();
        format!(
            "WITH fenced AS (
                UPDATE idempotency_keys k
                SET recovery_point = '{to}'{intent}
                FROM unnest($1::bigint[], $2::uuid[]{arrays}) AS i (key_id, lease_token{names})
                WHERE k.id = i.key_id AND k.lease_token = i.lease_token AND k.recovery_point = '{from}'
                RETURNING k.id AS key_id, i.lease_token, k.user_id, k.origin_ip{returned}{commit}
            )\n"
        )
    }
}

impl Durability {
    /// A last column for the rows that a statement has written, which sets how its own transaction commits.
    ///
    /// The setting is local to the transaction, and a lone statement is one. A sub-select that refers to nothing is
    /// evaluated once, with the first row; without any row there is nothing to flush.
    const fn column(self) -> &'static str {
        match self {
            Self::Flushed => "",
            Self::Later => ", (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later",
        }
    }
}

/// What a phase shows at the fence. Passes are ordered by their keys, and so are the rows of every batch: batches that
/// lock keys in one order are never in a deadlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pass {
    /// [`Lease::key_id`].
    pub key_id: i64,
    /// [`Lease::token`].
    pub token: Uuid,
}

impl From<&Lease> for Pass {
    fn from(lease: &Lease) -> Self {
        Self { key_id: lease.key_id, token: lease.token }
    }
}

/// The rows of a statement by their `lease_token`. Not by key: in one batch there may be its holder and a former one.
pub fn by_token(rows: Vec<Row>) -> HashMap<Uuid, Row> {
    rows.into_iter().map(|row| (row.get("lease_token"), row)).collect()
}
