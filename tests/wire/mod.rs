//! Proxies between the program and its servers, which cut the traffic into messages.
//!
//! To Postgres a message is a flight (all up to a `Sync`, or a simple query), to Stripe a request. A [`Carrier`]
//! decides what happens to each: `chaos` breaks one at a chosen place, `model` lets one through at a time.

pub mod bug;
mod postgres;
mod stripe;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub use bug::{Bug, Bugs};

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Postgres,
    Stripe,
}

/// A message at a proxy, with its name for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary {
    pub target: Target,
    pub label: String,
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.target, self.label)
    }
}

/// Decides what happens to the messages of some proxies. Clones share their state.
pub trait Carrier: Clone + Send + Sync + 'static {
    /// Is kept for as long as a connection to Stripe is open.
    type Call: Send;

    /// Called when a connection to Stripe opens.
    fn call(&self) -> Self::Call;

    /// Returns the bugs that are planted in the messages.
    fn bugs(&self) -> &Bugs;

    /// Returns whether a backend of Postgres whose connection was broken on purpose serves the next one, which spares
    /// Postgres a process. The program cannot notice that.
    fn keeps_backends(&self) -> bool {
        false
    }

    /// Carries one message across and returns the reply. `None`: it breaks here, and both sides must be closed.
    fn carry(
        &self,
        boundary: Boundary,
        message: &[u8],
        upstream: &mut impl Upstream,
    ) -> impl Future<Output = io::Result<Option<Vec<u8>>>> + Send;
}

/// The server's side of a connection.
pub trait Upstream: Send {
    /// Sends a message and reads all of its answer.
    fn exchange(&mut self, message: &[u8]) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
    /// Makes the server end this connection, and reads its last messages.
    fn terminate(&mut self) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
}

/// A listening proxy; when it is dropped, its connections break.
pub struct Proxy {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy between the process and this Postgres, which must trust its user.
    pub async fn postgres(carrier: &impl Carrier, upstream: &tokio_postgres::Config) -> Self {
        let (carrier, upstream, spares) = (carrier.clone(), upstream.clone(), postgres::Spares::default());
        Self::serve(move |client| postgres::relay(client, carrier.clone(), upstream.clone(), Arc::clone(&spares)))
            .await
    }

    /// Starts a proxy between the process and this sandbox of Stripe.
    pub async fn stripe(carrier: &impl Carrier, upstream: SocketAddr) -> Self {
        let carrier = carrier.clone();
        Self::serve(move |client| stripe::relay(client, carrier.clone(), upstream)).await
    }

    async fn serve<F>(relay: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                client.set_nodelay(true).expect("nodelay");
                connections.spawn(relay(client));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }

    /// Returns the connection string of this database through the proxy.
    pub fn postgres_url(&self, database: &tokio_postgres::Config) -> String {
        let (user, dbname) = (database.get_user().expect("a user"), database.get_dbname().expect("a database"));
        format!("host=127.0.0.1 port={} user={user} dbname={dbname} sslmode=disable", self.address.port())
    }

    /// Returns the base URL of Stripe's API through the proxy.
    pub fn stripe_url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
