//! One connection for a long task, such as a migration.

use tokio_postgres::SimpleQueryMessage;

use super::{Connection, Database, DatabaseError};

/// A connection beside the pool, for a task that would keep one from it for long, or whose settings and advisory locks must
/// not reach it. These end with the connection, however the process ends. Code that serves requests must not open one.
#[derive(Debug)]
pub struct Session(Connection);

impl Session {
    /// Opens a connection as the pool does.
    pub async fn open(database: &Database) -> Result<Self, DatabaseError> {
        Ok(Self(bb8::ManageConnection::connect(&*database.manager).await?))
    }

    /// Runs statements as one transaction, without a statement timeout, and returns the first column of the last row.
    pub async fn run(&self, sql: &str) -> Result<Option<String>, DatabaseError> {
        let messages = self.0.client.simple_query(sql).await.map_err(|error| self.0.classify(error))?;
        Ok(messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }
}
