//! One connection for a long task, such as a migration.

use std::sync::atomic::Ordering;

use tokio_postgres::SimpleQueryMessage;

use super::{Connection, Database, DatabaseError, Manager};

/// A connection that is its holder's alone: for what a pool's must not keep, such as settings and advisory locks, which end
/// with it, however the process ends. Nothing that serves requests may hold one.
#[derive(Debug)]
pub struct Session<'a>(bb8::PooledConnection<'a, Manager>);

impl<'a> Session<'a> {
    /// Takes one from the pool.
    pub async fn open(database: &'a Database) -> Result<Self, DatabaseError> {
        Ok(Self(database.checkout().await?))
    }

    /// Runs statements as one transaction, without a limit of time, and returns the first column of the last row.
    pub async fn run(&self, sql: &str) -> Result<Option<String>, DatabaseError> {
        let connection: &Connection = &self.0;
        let messages = connection.client.simple_query(sql).await.map_err(|error| connection.judge(error))?;
        Ok(messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.0.unusable.store(true, Ordering::Relaxed);
    }
}
