//! `jobs`: lists, retries and removes dead letters.

use atomic_phases::database::{Database, DatabaseError};
use atomic_phases::queue::dead;
use clap::Subcommand;

use super::print;

/// Dead letters handled by one statement of `--all`.
const PAGE: i64 = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum Jobs {
    /// List dead letters, those that were staged first before others.
    List {
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: i64,
    },
    /// Put dead letters back to where they died: into the outbox or into the queue `jobs`.
    Retry(Which),
    /// Forget dead letters for good.
    Purge(Which),
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Their ids, as `jobs list` lists them.
    #[arg(required_unless_present = "all")]
    ids: Vec<i64>,
    /// Every one.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

impl Jobs {
    pub(super) async fn run(self, database: &Database) -> Result<(), DatabaseError> {
        match self {
            Self::List { limit } => list(database, limit).await,
            Self::Retry(which) => {
                each(database, which, async |ids| dead::retry(database, ids).await, "will be tried again").await
            }
            Self::Purge(which) => {
                each(database, which, async |ids| dead::purge(database, ids).await, "is gone").await
            }
        }
    }
}

async fn list(database: &Database, limit: i64) -> Result<(), DatabaseError> {
    let jobs = dead::list(database, limit).await?;
    print(&format!("{} dead", jobs.len()));
    for job in jobs {
        print(&format!(
            "{}  {}  died in the {} after {} attempts, {} s ago: {}",
            job.id,
            job.name,
            job.died_in,
            job.attempts,
            job.dead_for.as_secs(),
            job.error,
        ));
    }
    Ok(())
}

/// Applies `act` to the dead letters that were named, or to all, page by page, and prints what became of each.
async fn each(
    database: &Database,
    which: Which,
    act: impl AsyncFn(&[i64]) -> Result<Vec<i64>, DatabaseError>,
    done: &str,
) -> Result<(), DatabaseError> {
    let mut ids = if which.all { dead::ids(database, i64::MIN, PAGE).await? } else { which.ids };
    while let Some(last) = ids.last().copied() {
        let acted = act(&ids).await?;
        for id in &ids {
            print(&format!("{id}  {}", if acted.contains(id) { done } else { "is not dead" }));
        }
        ids = if which.all { dead::ids(database, last, PAGE).await? } else { Vec::new() };
    }
    Ok(())
}
