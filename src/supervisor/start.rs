//! From a config to running roles: ports, database, schema, Stripe, then the other roles, in that order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atomic_phases::database::{Database, DatabaseError};
use atomic_phases::errors::chain;
use atomic_phases::idempotency::points::PointsError;
use atomic_phases::processes::Process;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::spawn::Shared;
use super::{Addresses, Supervisor};
use crate::config::Config;
use crate::database::schema::{self, Older, SchemaError};
use crate::database::{self, OpenError, Opened, Other};
use crate::demo::seed::{self, SeedError};
use crate::http::Listener;
use crate::queues;
use crate::receipts::{self, Sender};
use crate::role::Role;
use crate::stripe::{self, ClientError, sandbox};

/// Seeding calls Stripe, which may be in another process that is only just starting.
const SEED_TRIES: u32 = 5;
const SEED_PAUSE: Duration = Duration::from_secs(1);

/// Why the process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be bound.
    #[error("{key}: cannot listen on {address}")]
    Listen {
        /// The config key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// There is no database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database went away.
    #[error("the database is unavailable")]
    Database(#[from] DatabaseError),
    /// The schema of the database cannot be used.
    #[error("cannot use this database")]
    Schema(#[source] SchemaError),
    /// Unfinished requests are at recovery points that this release does not have.
    #[error("cannot go on with what is in the database")]
    Points(#[from] PointsError),
    /// The sandbox cannot open its ledger.
    #[error("stripe_sandbox.ledger")]
    Ledger(#[from] sandbox::LedgerError),
    /// The settings for Stripe cannot be used.
    #[error("cannot talk to Stripe")]
    Stripe(#[from] ClientError),
    /// Receipts cannot be sent as configured.
    #[error("the role worker cannot send receipts")]
    Receipts(#[from] receipts::SetupError),
    /// The settings for Redis cannot be used.
    #[error("enqueuer.queue is \"redis\"")]
    Redis(#[from] queues::redis::SettingsError),
    /// The settings for NATS cannot be used.
    #[error("enqueuer.queue is \"nats\"")]
    Nats(#[from] queues::nats::SettingsError),
    /// The demonstration's users could not be made.
    #[error("demo.enabled: cannot seed the users")]
    Seed(#[from] SeedError),
}

/// The database as the roles reach it.
#[derive(Debug)]
pub(super) struct DatabaseAccess {
    pub(super) config: tokio_postgres::Config,
    /// Taken when the last role that uses it has ended.
    pub(super) pool: Option<Database>,
}

pub(super) async fn start(config: Config) -> Result<Supervisor, StartError> {
    // Ports first: they fail fast, and nothing has been started that would have to be ended.
    let api_listener = listen(&config, Role::Api, "api.listen", config.api.listen).await?;
    let sandbox_listener =
        listen(&config, Role::StripeSandbox, "stripe_sandbox.listen", config.stripe_sandbox.listen).await?;
    let addresses = Addresses {
        api: api_listener.as_ref().map(|listener| listener.address()),
        stripe_sandbox: sandbox_listener.as_ref().map(|listener| listener.address()),
    };

    let sender = config.runs(Role::Worker).then(|| Sender::new(&config.receipts)).transpose()?;

    let Opened { embedded, address, database } = database::open(&config.database, Other::Refuse).await?;
    if let Some(embedded) = &embedded {
        tracing::info!(look_inside = embedded.psql_command(), "private Postgres is up");
    }
    let mut supervisor = Supervisor::new(&config, addresses, address, database.clone());
    if let Some(embedded) = embedded {
        supervisor.spawn_postgres(embedded, &config);
    }
    schema::ensure(&database, config.database.older()).await.map_err(|error| match error {
        SchemaError::Database(error) if error.is_transient() => StartError::Database(error),
        error => StartError::Schema(error),
    })?;
    if let Some(listener) = sandbox_listener {
        supervisor.spawn_sandbox(listener, &config).await?;
    }
    let stripe = config.stripe.client(addresses.stripe_sandbox)?;
    let installation = schema::installation(&database).await.map_err(StartError::Schema)?;
    if config.demo.enabled && config.runs(Role::Api) {
        seed(&database, installation, &stripe).await?;
    }
    let process = Process::new(config.processes.name.as_deref(), env!("CARGO_PKG_VERSION"));
    let shared = Shared::new(&config, database.of_process(process.id), stripe, installation);
    if config.runs(Role::Api) || config.runs(Role::Completer) {
        shared.check_points().await?;
    }
    supervisor.start_heart(process, &config, &shared).await?;
    if let Some(listener) = api_listener {
        supervisor.spawn_api(&config, &shared, listener);
    }
    supervisor.spawn_completer(&config, &shared);
    supervisor.spawn_enqueuer(&config, &shared)?;
    if let Some(sender) = sender {
        supervisor.spawn_worker(&config, &shared, sender);
    }
    supervisor.spawn_reaper(&config, &shared);
    supervisor.spawn_simulator(&config);
    if config.database.older() == Older::Migrate {
        supervisor.complete_schema(&shared);
    }
    supervisor.announce(&config);
    Ok(supervisor)
}

async fn listen(
    config: &Config,
    role: Role,
    key: &'static str,
    address: SocketAddr,
) -> Result<Option<Arc<Listener>>, StartError> {
    if !config.runs(role) {
        return Ok(None);
    }
    let listener = Listener::bind(address).await;
    Ok(Some(Arc::new(listener.map_err(|source| StartError::Listen { key, address, source })?)))
}

async fn seed(database: &Database, installation: Uuid, stripe: &stripe::Client) -> Result<(), SeedError> {
    let mut tries = 1;
    loop {
        match seed::seed(database, installation, stripe).await {
            Err(error) if tries < SEED_TRIES => {
                tracing::warn!(error = chain(&error), "cannot seed the users yet; trying again");
                tries += 1;
                tokio::time::sleep(SEED_PAUSE).await;
            }
            seeded => return seeded,
        }
    }
}

impl Supervisor {
    fn new(config: &Config, addresses: Addresses, postgres: tokio_postgres::Config, database: Database) -> Self {
        let (giving_up, gave_up) = mpsc::unbounded_channel();
        let abandoned = CancellationToken::new();
        Self {
            tasks: Vec::new(),
            gave_up,
            giving_up,
            leaving: abandoned.child_token(),
            abandoned,
            addresses,
            database: DatabaseAccess { config: postgres, pool: Some(database) },
            heart: None,
            shutdown: config.shutdown.clone(),
        }
    }

    /// Logs which roles are on, and what to do next.
    fn announce(&self, config: &Config) {
        let (on, off): (Vec<_>, Vec<_>) = Role::ALL.into_iter().partition(|role| config.runs(*role));
        tracing::info!(on = super::names(&on), off = super::names(&off), "roles");
        if let Some(api) = self.addresses.api {
            tracing::info!(api = %format!("http://{api}"), "ready: POST /rides, GET /readyz");
        }
    }
}
