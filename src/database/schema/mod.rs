//! Applies `schema.sql` to an empty database, and recognises a database that was made from it, now or earlier.

mod migrate;

use atomic_phases::errors::chain;
use uuid::Uuid;

pub use migrate::{Extent, Step, migrate, plan};

use super::{Database, DatabaseError};

const SCHEMA: &str = include_str!("../../../schema.sql");
/// The version that `schema.sql` writes.
const VERSION: i32 = 4;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It holds tables of another program.
    #[error(
        "the database has a table {table:?} that is not ours: give Rocket Rides an empty database of its own \
         (CREATE DATABASE rocket_rides)"
    )]
    Foreign {
        /// One of the tables that are in the way.
        table: String,
    },
    /// It does not have our schema, and the caller does not apply it.
    #[error("the database has no Rocket Rides in it: start the program on it once")]
    Absent,
    /// It was made by another version of this program.
    #[error("the database has schema version {found}, and this program needs {VERSION}: {}", advice(*found))]
    Version {
        /// The version in the database.
        found: i32,
    },
    /// Another session holds a table that a step of the migration needs for a moment.
    #[error(
        "the migration did not get a table in time to {step}: look for long transactions in pg_stat_activity, and begin \
         again; what is done stays done"
    )]
    Blocked {
        /// The step.
        step: &'static str,
        /// The server's error.
        #[source]
        error: DatabaseError,
    },
    /// A query failed.
    #[error("cannot read or apply the schema")]
    Database(#[from] DatabaseError),
}

fn advice(found: i32) -> &'static str {
    if found > VERSION {
        "run a newer program"
    } else {
        "bring it there with `rocket-rides-atomic migrate` (first look: `migrate --plan`), or set database.migrate"
    }
}

/// What to do with an older database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Older {
    /// Bring it to our version.
    Migrate,
    /// Return an error that names its version, and leave it as it is.
    Refuse,
}

/// Ensures that the database has our schema, in our version. What a migration need not have done before it can be used is
/// left to [`complete`].
///
/// Several processes may do this at once: one applies it; Postgres refuses the others, which find it applied.
pub async fn ensure(database: &Database, older: Older) -> Result<(), SchemaError> {
    if !is_ours(database).await? {
        let foreign = foreign_table(database).await?;
        let applied = match foreign {
            Some(table) => Err(SchemaError::Foreign { table }),
            None => database.script(&apply()).await.map_err(SchemaError::from),
        };
        // Another process may have applied it meanwhile; then the tables that are in the way are ours.
        if applied.is_err() && !is_ours(database).await? {
            return applied;
        }
    }
    match older {
        Older::Migrate => migrate(database, Extent::Usable).await,
        Older::Refuse => check(database).await,
    }
}

/// Carries out what [`ensure`] has left of a migration. It may take minutes, in which requests are served.
pub async fn complete(database: &Database) {
    if let Err(error) = migrate(database, Extent::Complete).await {
        tracing::warn!(
            error = chain(&error),
            "the migration is not complete; `migrate` or the next start goes on with it"
        );
    }
}

/// Checks that the database has our schema, in a version that this program can use. Changes nothing.
pub async fn check(database: &Database) -> Result<(), SchemaError> {
    match migrate::version(database).await? {
        VERSION => Ok(()),
        found => Err(SchemaError::Version { found }),
    }
}

/// Returns whether this program can use the database's schema, and the database takes writes. This is one indexed read,
/// cheap enough for `/readyz`.
pub async fn is_usable(database: &Database) -> Result<bool, DatabaseError> {
    const SQL: &str = "SELECT $1 BETWEEN usable_from AND version AS usable FROM rocket_rides_schema
        WHERE singleton AND current_setting('transaction_read_only') = 'off'";
    Ok(database.query_opt(SQL, &[&VERSION]).await?.is_some_and(|row| row.get("usable")))
}

/// Returns the UUID of this database, which is part of identifiers made from row ids.
pub async fn installation(database: &Database) -> Result<Uuid, SchemaError> {
    let row = database.query_opt("SELECT installation FROM rocket_rides_schema WHERE singleton", &[]).await?;
    Ok(row.ok_or(SchemaError::Absent)?.get("installation"))
}

fn apply() -> String {
    // Statements sent together are one transaction. A second process waits in Postgres' catalog until the first has applied
    // the schema, which takes longer than any row stays locked.
    format!("SET LOCAL lock_timeout = '30s'; {SCHEMA}")
}

async fn is_ours(database: &Database) -> Result<bool, DatabaseError> {
    let found = database.query("SELECT to_regclass('rocket_rides_schema') IS NOT NULL AS ours", &[]).await?;
    Ok(found.iter().any(|row| row.get("ours")))
}

async fn foreign_table(database: &Database) -> Result<Option<String>, DatabaseError> {
    // An extension's views hold no data of another program.
    const SQL: &str = "SELECT relname::text AS table FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = pg_class.oid AND d.deptype = 'e')
        ORDER BY relname";
    Ok(database.query_opt(SQL, &[]).await?.map(|row| row.get("table")))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// A changed schema needs a new version, or a program would work on a database that lacks what it needs.
    #[test]
    fn a_changed_schema_is_another_version() {
        let digest: String = Sha256::digest(SCHEMA).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((VERSION, digest.as_str()), (4, "627982fe3dbc3c8e"), "give schema.sql and VERSION a new number");
    }
}
