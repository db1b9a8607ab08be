//! The database that a config names: a private Postgres or yours, with our schema in it.
//!
//! - [`embedded`]: the private Postgres; [`keeper`]: the role that keeps it running.
//! - [`schema`]: applies, recognises and migrates the schema.

pub mod embedded;
pub mod keeper;
pub mod schema;

use std::path::PathBuf;
use std::time::Duration;

use atomic_phases::database::tls::{self, UrlError};
use atomic_phases::database::{Database, DatabaseError, PoolSettings};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use embedded::{EmbeddedError, EmbeddedPostgres};
use schema::Older;

/// The name of our sessions in `pg_stat_activity`.
const APPLICATION_NAME: &str = "rocket-rides-atomic";

/// `[database]`: one pool over one Postgres, ours or yours.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Start a private Postgres as a child of this process, unless `url` is given.
    pub embedded: bool,
    /// A libpq connection string or URL; `sslmode` up to `verify-full` is honoured.
    pub url: Option<SecretString>,
    /// Where the private Postgres keeps its files.
    pub data_dir: PathBuf,
    /// Connections in the pool. Two per core of the database server is plenty: no connection is held during a call to
    /// Stripe, so few connections serve many requests.
    pub pool_size: u32,
    /// How long a request waits for a free connection before it is answered 503.
    #[serde(with = "humantime_serde")]
    pub pool_timeout: Duration,
    /// How long a statement may take before its connection is given up as one that hangs on a dead network. Our
    /// statements run for tens of milliseconds at most, but one may wait 3 s for a row, and a disk may be slow.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// Bring a database of an earlier version to this one at the start. A private Postgres is always migrated, whatever
    /// the value.
    pub migrate: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            embedded: false,
            url: None,
            data_dir: PathBuf::from("var/postgres"),
            pool_size: 16,
            pool_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            migrate: false,
        }
    }
}

impl Settings {
    /// Returns what to do with a database of an earlier version.
    pub fn older(&self) -> Older {
        if self.migrate || self.url.is_none() { Older::Migrate } else { Older::Refuse }
    }

    /// Returns the settings of the pool.
    pub fn pool_settings(&self) -> PoolSettings {
        let Self { pool_size: size, pool_timeout: checkout_timeout, statement_timeout, .. } = *self;
        PoolSettings { size, checkout_timeout, statement_timeout, application_name: APPLICATION_NAME }
    }
}

/// A database that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The server, if it is ours and this process has started it.
    pub embedded: Option<EmbeddedPostgres>,
    /// How to reach it.
    pub address: tokio_postgres::Config,
    /// The pool.
    pub database: Database,
}

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The private Postgres did not start.
    #[error("cannot start the private Postgres")]
    Embedded(#[from] EmbeddedError),
    /// `database.url` cannot be used.
    #[error("database.url")]
    Url(#[from] UrlError),
    /// The database does not answer.
    #[error("the database is unavailable")]
    Database(#[from] DatabaseError),
}

/// What to do if another process runs the private Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// Connect to it.
    Join,
    /// Return an error.
    Refuse,
}

/// Opens the database that the settings name: the private one, started first if need be, or yours.
pub async fn open(settings: &Settings, other: Other) -> Result<Opened, OpenError> {
    let (embedded, address, tls) = match &settings.url {
        Some(url) => {
            let (address, tls) = tls::parse(url.expose_secret())?;
            (None, address, tls)
        }
        None => match EmbeddedPostgres::start(&settings.data_dir).await {
            Ok(embedded) => {
                let address = embedded.config();
                (Some(embedded), address, tls::none())
            }
            Err(EmbeddedError::Owned { url, .. }) if other == Other::Join => {
                let (address, tls) = tls::parse(&url)?;
                (None, address, tls)
            }
            Err(error) => return Err(error.into()),
        },
    };
    let database = Database::connect(address.clone(), tls, settings.pool_settings()).await?;
    Ok(Opened { embedded, address, database })
}
