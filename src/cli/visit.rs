//! Gives a command its database and its Stripe, whether or not another process runs them just now.

use std::sync::Arc;
use std::time::Duration;

use atomic_phases::database::Database;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::database::embedded::EmbeddedPostgres;
use crate::database::{self, Opened, Other, schema};
use crate::http::Listener;
use crate::role::Role;
use crate::stripe;
use crate::stripe::sandbox::{self, FaultControl, Faults, Ledger, LedgerError};
use crate::supervisor::StartError;

/// How long the private Postgres may take to end, if it was started for this command.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The database, and what was started to reach it.
pub(super) struct Visit {
    pub(super) database: Database,
    embedded: Option<EmbeddedPostgres>,
    sandbox: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Visit {
    /// Opens the database that the config names, if it has our version. Uses the private Postgres of another process if
    /// one runs it, and otherwise starts it for the time of the command.
    pub(super) async fn begin(config: &Config) -> Result<Self, StartError> {
        let visit = Self::without_check(config).await?;
        schema::check(&visit.database).await.map_err(StartError::Schema)?;
        Ok(visit)
    }

    /// Does the same, whatever the database holds.
    pub(super) async fn without_check(config: &Config) -> Result<Self, StartError> {
        let Opened { embedded, database, .. } = database::open(&config.database, Other::Join).await?;
        Ok(Self { database, embedded, sandbox: None })
    }

    /// Returns a client of the Stripe that the config names. If that is the sandbox, the client calls the one that
    /// runs; if none runs, its ledger is served for the time of the command.
    pub(super) async fn stripe(&mut self, config: &Config) -> Result<stripe::Client, StartError> {
        let settings = &config.stripe_sandbox;
        if !config.runs(Role::StripeSandbox) || config.stripe.api_base.is_some() {
            return Ok(config.stripe.client(None)?);
        }
        let ledger = match Ledger::open(&settings.ledger, settings.key_retention) {
            Ok(ledger) => Arc::new(ledger),
            Err(LedgerError::InUse(_)) => return Ok(config.stripe.client(Some(settings.listen))?),
            Err(error) => return Err(error.into()),
        };
        let key = "stripe_sandbox.listen";
        let address = ([127, 0, 0, 1], 0).into();
        let listener =
            Listener::bind(address).await.map_err(|source| StartError::Listen { key, address, source })?;
        let client = config.stripe.client(Some(listener.address()))?;
        let stop = CancellationToken::new();
        let faults = Arc::new(FaultControl::new(Faults::default()));
        let served = tokio::spawn(sandbox::serve(Arc::new(listener), ledger, faults, stop.clone()));
        self.sandbox = Some((stop, served));
        Ok(client)
    }

    /// Ends what was started for the command.
    pub(super) async fn end(self) {
        if let Some((stop, served)) = self.sandbox {
            stop.cancel();
            // It only served; a panic in it has been printed.
            let _ = served.await;
        }
        drop(self.database);
        if let Some(embedded) = self.embedded {
            embedded.stop(STOP_GRACE).await;
        }
    }
}
