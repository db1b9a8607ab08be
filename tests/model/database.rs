//! Postgres, as far as one idempotency key goes: its row, the receipts staged for it, and what a crash loses.
//!
//! A statement is atomic and sees what was committed before it, on disk or not. A commit is a snapshot. Commits that
//! are not flushed yet are in the order of the write-ahead log, so a crash keeps the first few of them and loses the
//! rest, and a flushed commit flushes all before it. The background writer needs no model, because a crash may keep any
//! number of commits.
//!
//! The constraints and triggers of `schema.sql` are left out. They are a second guard, and the model checks whether the
//! protocol is correct without it.

/// Where a request resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RecoveryPoint {
    /// Before the foreign call of this number, from 1.
    Call(u8),
    Finished,
}

/// A final answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Response {
    /// 201: every call was made.
    Paid,
    /// 402: a call was declined.
    Declined,
    /// A final 503, which only [`Change::TransientErrorFinal`](crate::change::Change::TransientErrorFinal) gives.
    Failed,
}

/// What the fence compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Token {
    /// Stands for a random one; the number is the acquisition's.
    Random(u8),
    /// The mistake of [`Change::TokenFromCounter`](crate::change::Change::TokenFromCounter).
    Counted(u8),
}

/// Who may work on the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lease {
    pub(crate) token: Token,
    /// What the token should identify: no two acquisitions share one. The protocol never reads it.
    pub(crate) acquisition: u8,
}

/// When the next call first became possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Intent {
    Recent,
    /// Longer ago than `stripe.key_retention`.
    PastRetention,
}

/// A row of `idempotency_keys`. What request it belongs to is left out: a mismatch executes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Row {
    pub(crate) recovery_point: RecoveryPoint,
    pub(crate) response: Option<Response>,
    pub(crate) lease: Option<Lease>,
    /// How often the lease was taken. Counted only where something depends on it, which is
    /// [`Change::TokenFromCounter`](crate::change::Change::TokenFromCounter).
    pub(crate) attempts: u8,
    pub(crate) completer_attempts: u8,
    pub(crate) parked: bool,
    pub(crate) foreign_call_key: u8,
    pub(crate) intent: Intent,
}

/// The row, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// Never inserted, as far as the database knows.
    Absent,
    Present(Row),
    /// Removed by the reaper; it had this answer.
    Removed(Option<Response>),
}

/// All that is in the database at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Snapshot {
    pub(crate) key: Key,
    /// Receipt jobs that were ever staged.
    pub(crate) receipts: u8,
}

/// When a commit reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    Flushed,
    Later,
}

/// The database: what is on disk, and the commits that are not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    on_disk: Snapshot,
    unflushed: Vec<Snapshot>,
}

impl Database {
    pub(crate) fn empty() -> Self {
        Self { on_disk: Snapshot { key: Key::Absent, receipts: 0 }, unflushed: Vec::new() }
    }

    /// Returns what a statement sees.
    pub(crate) fn current(&self) -> &Snapshot {
        self.unflushed.last().unwrap_or(&self.on_disk)
    }

    /// Returns the row, if there is one.
    pub(crate) fn row(&self) -> Option<&Row> {
        match &self.current().key {
            Key::Present(row) => Some(row),
            Key::Absent | Key::Removed(_) => None,
        }
    }

    /// Returns the key's recovery point; a key that the reaper removed counts as finished.
    pub(crate) fn recovery_point(&self) -> Option<RecoveryPoint> {
        match &self.current().key {
            Key::Absent => None,
            Key::Present(row) => Some(row.recovery_point),
            Key::Removed(_) => Some(RecoveryPoint::Finished),
        }
    }

    /// Returns the final answer, stored or removed.
    pub(crate) fn response(&self) -> Option<Response> {
        match &self.current().key {
            Key::Absent => None,
            Key::Present(row) => row.response,
            Key::Removed(response) => *response,
        }
    }

    pub(crate) fn commit(&mut self, snapshot: Snapshot, durability: Durability) {
        if durability == Durability::Flushed {
            self.on_disk = snapshot;
            self.unflushed.clear();
        } else if snapshot != *self.current() {
            self.unflushed.push(snapshot);
        }
    }

    /// Returns how many commits a crash may lose.
    pub(crate) fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// Crashes and recovers. The first `kept` of the unflushed commits had reached the disk.
    pub(crate) fn crash(&mut self, kept: usize) {
        self.unflushed.truncate(kept);
        let recovered = *self.current();
        self.commit(recovered, Durability::Flushed);
    }

    /// Returns every version of the row that may be the current one after a crash, oldest first.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Row> {
        std::iter::once(&self.on_disk).chain(&self.unflushed).filter_map(|snapshot| match &snapshot.key {
            Key::Present(row) => Some(row),
            Key::Absent | Key::Removed(_) => None,
        })
    }

    /// Removes commits that changed nothing.
    pub(crate) fn drop_idle_commits(&mut self) {
        let mut previous = self.on_disk;
        self.unflushed.retain(|snapshot| std::mem::replace(&mut previous, *snapshot) != *snapshot);
    }

    /// Changes every version in the same way: time passes, or names are replaced by others with the same meaning.
    pub(crate) fn change_versions(&mut self, mut change: impl FnMut(&mut Row)) {
        for snapshot in std::iter::once(&mut self.on_disk).chain(&mut self.unflushed) {
            if let Key::Present(row) = &mut snapshot.key {
                change(row);
            }
        }
    }
}
