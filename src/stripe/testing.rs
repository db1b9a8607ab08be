//! A sandbox on a port of its own with a client of it, for the tests of both.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::sandbox::{self, FaultControl, Faults, Ledger};
use super::{ChargeRequest, Client};
use crate::http::Listener;

/// Long enough that it never passes in a test that does not wait for it.
pub(super) const LONG_TIMEOUT: Duration = Duration::from_secs(30);
/// Short, for tests that do wait for it.
pub(super) const SHORT_TIMEOUT: Duration = Duration::from_millis(400);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A new directory that goes away with this value.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        Self(std::env::temp_dir().join(format!("stripe-sandbox-{}", Uuid::new_v4())))
    }

    pub(super) fn ledger(&self) -> PathBuf {
        self.0.join("below").join("ledger.jsonl")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running sandbox.
pub(super) struct Rig {
    pub(super) ledger: Arc<Ledger>,
    pub(super) faults: Arc<FaultControl>,
    pub(super) client: Client,
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
    /// Keeps the ledger's directory; `None` if that belongs to the test.
    _scratch: Option<Scratch>,
}

impl Rig {
    pub(super) async fn start() -> Self {
        let scratch = Scratch::new();
        let rig = Self::start_on(&scratch.ledger(), DAY).await;
        Self { _scratch: Some(scratch), ..rig }
    }

    pub(super) async fn start_on(ledger: &Path, key_retention: Duration) -> Self {
        let listener = Arc::new(free_port().await);
        let address = listener.address();
        let ledger = Arc::new(Ledger::open(ledger, key_retention).expect("a ledger"));
        let faults = Arc::new(FaultControl::new(Faults::default()));
        let stop = CancellationToken::new();
        let serving = sandbox::serve(listener, Arc::clone(&ledger), Arc::clone(&faults), stop.clone());
        let served = tokio::spawn(serving);
        let client = client(&format!("http://{address}"), LONG_TIMEOUT);
        Self { ledger, faults, client, address, stop, served, _scratch: None }
    }

    /// Returns a client of this sandbox that gives up early.
    pub(super) fn hasty_client(&self) -> Client {
        client(&format!("http://{}", self.address), SHORT_TIMEOUT)
    }

    /// Stops the sandbox and waits until it has drained and let go of its ledger.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.served.await.expect("the sandbox does not panic");
    }

    /// Tells it to stop, and does not wait.
    pub(super) fn begin_to_stop(&self) {
        self.stop.cancel();
    }

    pub(super) async fn customer(&self) -> String {
        self.client.create_customer("user@example.com", "tok_visa", Uuid::new_v4()).await.expect("a customer")
    }

    /// Sends an authorized request as written, and returns the whole response as text.
    pub(super) async fn send(&self, line: &str, headers: &str, body: &str) -> String {
        send(self.address, line, &format!("Authorization: Bearer sk_test_1\r\n{headers}"), body).await
    }
}

/// Sends one request on a connection of its own.
pub(super) async fn send(address: SocketAddr, line: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("a whole response");
    response
}

pub(super) async fn free_port() -> Listener {
    Listener::bind(([127, 0, 0, 1], 0).into()).await.expect("a free port")
}

pub(super) fn client(base: &str, timeout: Duration) -> Client {
    Client::new(base, &"sk_test_hidden".into(), timeout).expect("valid settings")
}

pub(super) fn charge_of(customer: &str) -> ChargeRequest {
    ChargeRequest {
        ride_id: 1,
        amount: 2000,
        currency: "usd".to_owned(),
        customer: customer.to_owned(),
        description: "Charge for a ride".to_owned(),
        idempotency_key: Uuid::new_v4(),
    }
}
