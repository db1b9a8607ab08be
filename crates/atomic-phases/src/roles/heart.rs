//! Says that this process lives, and hands back the leases of processes that have died.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use super::periodic::{Periodic, Progress};
use crate::database::{Database, DatabaseError};
use crate::processes::{self, HandedBack, Other, Process, Settings, Verdict};

/// Beats, and looks after the other processes. Every process has one, whatever its roles.
#[derive(Debug)]
pub struct Heart {
    /// See [`Database::beside`]: a pool that is exhausted must not stop the heart.
    pub database: Database,
    /// Whose heart it is.
    pub process: Process,
    /// `[processes]`.
    pub settings: Settings,
    /// `completer.crash_grace`.
    pub crash_grace: Duration,
    /// Notified when leases have been handed back.
    pub handed_back: Vec<Arc<Notify>>,
    /// The other processes, as this one saw them when it beat last itself.
    pub seen: Mutex<HashMap<Uuid, Seen>>,
}

/// Another process, as it was seen last.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    last_beat_at: SystemTime,
    is_dead: bool,
}

/// How long a statement may take, at most, that a process had sent before it died.
const LAST_STATEMENT: Duration = Duration::from_secs(60);

impl Heart {
    /// Creates the heart of a process, with no role to notify of leases that it hands back.
    pub fn new(database: &Database, process: Process, settings: Settings, crash_grace: Duration) -> Self {
        let database = database.beside(settings.dead_after);
        Self { database, process, settings, crash_grace, handed_back: Vec::new(), seen: Mutex::default() }
    }

    /// Hands back what this process still holds, after its last beat. Without `under_way`, none of its statements is still
    /// being carried out, and its row is marked as ended at once.
    pub async fn end(&self, under_way: bool) -> Result<(), DatabaseError> {
        let ended_after = if under_way { LAST_STATEMENT } else { Duration::ZERO };
        let (process, why) = (self.process.id, "its process was ended");
        self.hand_back(Verdict { ended_after, ..self.verdict(process, Duration::ZERO, why) }).await
    }

    /// Returns for how long a process that is taken for dead must have been silent, or `None` for one that lives.
    ///
    /// Its host shows that it has ended, or it has not beaten for `dead_after`. While the database is away, no process can
    /// beat; so a silent process also gets the time between two of our own beats.
    fn required_silence(&self, other: &Other, seen: Option<&Seen>) -> Option<Duration> {
        let dead_after = self.settings.dead_after;
        if self.process.place.shows_gone(&other.place) {
            Some(Duration::ZERO)
        } else if other.silent >= dead_after && seen.is_some_and(|seen| seen.last_beat_at == other.last_beat_at) {
            Some(dead_after)
        } else {
            None
        }
    }

    fn verdict<'a>(&self, process: Uuid, silent_for: Duration, why: &'a str) -> Verdict<'a> {
        Verdict { process, silent_for, ended_after: LAST_STATEMENT, crash_grace: self.crash_grace, why }
    }

    async fn hand_back(&self, verdict: Verdict<'_>) -> Result<(), DatabaseError> {
        let back = processes::hand_back(&self.database, verdict).await?;
        if back.total() > 0 {
            let HandedBack { requests, queued, staged, .. } = back;
            tracing::info!(process = %verdict.process, requests, queued, staged, "handed leases back");
            self.handed_back.iter().for_each(|waiting| waiting.notify_one());
        }
        Ok(())
    }
}

impl Periodic for Heart {
    const NAME: &'static str = "heart";

    fn interval(&self) -> Duration {
        self.settings.beat
    }

    async fn run_once(&self) -> Result<Progress, DatabaseError> {
        let beat = processes::beat(&self.database, &self.process).await?;
        if beat.silent >= self.settings.dead_after {
            let silent_ms = beat.silent.as_millis() as u64;
            tracing::warn!(silent_ms, "this process has not beaten for long; others may have taken it for dead");
        }
        let mut seen = self.seen.lock().await;
        let mut now = HashMap::new();
        for other in &beat.others {
            let before = seen.get(&other.id);
            let dead = self.required_silence(other, before);
            if let Some(silent_for) = dead {
                if !before.is_some_and(|before| before.is_dead) {
                    let silent_ms = other.silent.as_millis() as u64;
                    tracing::warn!(process = %other.id, name = other.name, silent_ms, "a process has died");
                }
                self.hand_back(self.verdict(other.id, silent_for, "its process died")).await?;
            }
            now.insert(other.id, Seen { last_beat_at: other.last_beat_at, is_dead: dead.is_some() });
        }
        *seen = now;
        Ok(Progress::Idle)
    }
}
