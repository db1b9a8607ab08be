//! One connection for a long task, such as a migration.

use std::sync::atomic::Ordering;

use tokio_postgres::SimpleQueryMessage;

use super::{Connection, Database, DatabaseError, Manager};

/// A connection with only one user, for what must not stay on a connection of the pool, such as settings and advisory
/// locks. These end with the connection, however the process ends. Code that serves requests must not hold one.
#[derive(Debug)]
pub struct Session<'a>(bb8::PooledConnection<'a, Manager>);

impl<'a> Session<'a> {
    /// Takes a connection from the pool. It does not go back there.
    pub async fn open(database: &'a Database) -> Result<Self, DatabaseError> {
        Ok(Self(database.checkout().await?))
    }

    /// Runs statements as one transaction, without a statement timeout, and returns the first column of the last row.
    pub async fn run(&self, sql: &str) -> Result<Option<String>, DatabaseError> {
        let connection: &Connection = &self.0;
        let messages = connection.client.simple_query(sql).await.map_err(|error| connection.classify(error))?;
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
