//! Processes that exist as rows only.

use std::time::Duration;

use atomic_phases::database::Database;
use atomic_phases::processes::{self, Place, Process, Verdict};
use uuid::Uuid;

use super::app::{TestApp, hold_the_heart};

/// `completer.crash_grace`.
pub const CRASH_GRACE: Duration = Duration::from_secs(1);

/// Describes a process that no other can check, so that its beats decide.
pub fn far_away() -> Process {
    Process { place: Place { host: "far away".to_owned(), ..Place::default() }, ..Process::new(None, "1") }
}

/// Puts a process that is far away into the table, and returns a pool with which leases are its own.
pub async fn other(database: &Database) -> (Process, Database) {
    let process = far_away();
    processes::beat(database, &process).await.expect("a beat");
    let its = database.of_process(process.id);
    (process, its)
}

/// Moves what a process has said so far into the past.
pub async fn silence(app: &TestApp, process: Uuid, seconds: f64) {
    let sql = "UPDATE processes SET last_beat_at = now() - make_interval(secs => $2) WHERE id = $1";
    app.query(sql, &[&process, &seconds]).await;
}

/// Returns whether the process is marked as ended.
pub async fn has_ended(app: &TestApp, process: Uuid) -> bool {
    let rows = app.query("SELECT ended_at IS NOT NULL FROM processes WHERE id = $1", &[&process]).await;
    rows[0].get(0)
}

/// Takes a process for dead that has been silent for this long.
pub fn verdict(process: Uuid, silent_for: Duration) -> Verdict<'static> {
    Verdict { process, silent_for, ended_after: Duration::ZERO, crash_grace: CRASH_GRACE, why: "for a test" }
}

/// Starts an app whose heart neither beats nor judges other processes while a test lasts.
pub async fn quiet() -> TestApp {
    TestApp::with(hold_the_heart).await
}
