//! One process: starts every role over one pool, watches them, and ends all in order.
//!
//! Nothing is global: two supervisors live side by side in one test process.

mod drain;
mod keep_running;
mod signals;
mod spawn;
mod start;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atomic_phases::roles::heart::Heart;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use keep_running::GaveUp;
pub use signals::Signals;
pub use start::StartError;

use crate::config::Config;
use crate::role::Role;
use keep_running::keep_running;

/// Everything that runs, and how to end it.
#[derive(Debug)]
pub struct Supervisor {
    tasks: Vec<RoleTask>,
    gave_up: mpsc::UnboundedReceiver<GaveUp>,
    /// Sends which role failed too often; kept so that the channel stays open.
    giving_up: mpsc::UnboundedSender<GaveUp>,
    /// Cancelled first of all: `/readyz` then answers 503.
    leaving: CancellationToken,
    /// Cancelled when the supervisor is dropped, so that no role outlives it.
    abandoned: CancellationToken,
    addresses: Addresses,
    database: start::DatabaseAccess,
    heart: Option<HeartTask>,
    shutdown: crate::config::Shutdown,
}

/// The addresses on which this process listens.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the names are the roles'")]
pub struct Addresses {
    pub api: Option<SocketAddr>,
    pub stripe_sandbox: Option<SocketAddr>,
}

/// A role that runs.
#[derive(Debug)]
struct RoleTask {
    role: Role,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What says to other processes that this one lives.
#[derive(Debug)]
struct HeartTask {
    heart: Arc<Heart>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Why the process ended with a failure.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A role kept failing.
    #[error(transparent)]
    GaveUp(#[from] GaveUp),
    /// The drain took longer than it may.
    #[error("the shutdown deadline of {deadline:?} passed with these still running: {}", names(late))]
    DeadlinePassed {
        /// `shutdown.deadline`.
        deadline: Duration,
        /// The roles that were late.
        late: Vec<Role>,
    },
}

fn names(roles: &[Role]) -> String {
    roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ")
}

impl Supervisor {
    /// Binds the ports, brings up the database, and starts every role that `config` turns on. When this returns, the
    /// API answers.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        start::start(config).await
    }

    /// Returns the addresses on which this process listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns how to reach the database that the roles work on.
    pub fn database_config(&self) -> tokio_postgres::Config {
        self.database.config.clone()
    }

    /// Runs until `shutdown` or until a role gives up, then drains in order.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let failure = tokio::select! {
            () = shutdown => None,
            gave_up = self.gave_up.recv() => gave_up,
        };
        let drained = drain::drain(&mut self).await;
        match failure {
            Some(gave_up) => Err(gave_up.into()),
            None => drained,
        }
    }

    /// Runs `run` as `role`, again and again if it fails.
    fn spawn<F, R>(&mut self, role: Role, run: F)
    where
        F: Fn(CancellationToken) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), keep_running::Failure>> + Send + 'static,
    {
        let (stop, task) = self.keep_running(role.name(), run);
        self.tasks.push(RoleTask { role, stop, task });
    }

    fn keep_running<F, R>(&self, name: &'static str, run: F) -> (CancellationToken, JoinHandle<()>)
    where
        F: Fn(CancellationToken) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), keep_running::Failure>> + Send + 'static,
    {
        let stop = self.abandoned.child_token();
        let giving_up = self.giving_up.clone();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move {
                if let Err(gave_up) = keep_running(name, &stop, run).await {
                    // Sending fails only when the supervisor is gone.
                    let _ = giving_up.send(gave_up);
                }
            }
        });
        (stop, task)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.abandoned.cancel();
    }
}

/// Runs a role that only ends when it is told to.
async fn never_fails(role: impl Future<Output = ()>) -> Result<(), keep_running::Failure> {
    role.await;
    Ok(())
}
