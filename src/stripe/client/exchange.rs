//! One HTTP exchange with Stripe, and what its failure proves.

use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use super::super::{CallError, NotSent, Unknown};

/// Idle connections are dropped well before common proxies and Stripe itself drop them: a request on a connection that
/// is just being closed ends as [`Unknown`], and the customer has to wait for a retry.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Idle connections kept. Those in use are bounded by the requests that the API takes at once.
const IDLE_CONNECTIONS: usize = 1024;
/// The longest answer, in bytes; a page of a hundred real charges takes a tenth of it.
const BODY_BYTES: usize = 4 * 1024 * 1024;

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) request_id: String,
    pub(super) body: Bytes,
}

/// A pool of kept-alive connections.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Transport {
    pub(super) fn new() -> Result<Self, rustls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        // The provider is named here because a process-wide default would be global state, and a second
        // provider in the dependency tree would make it a panic.
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            // hyper hands a request back only if its connection closed before the first byte was written, so
            // this repeats nothing that Stripe could have seen. Without it, a connection that went stale in the
            // pool would fail a ride for no reason.
            .retry_canceled_requests(true)
            .build(tls);
        Ok(Self { pool })
    }

    /// Sends `request` and reads the whole answer, by `deadline`; `timeout` is the same limit as a duration, for the
    /// error's text. Redirects are answers like any other.
    pub(super) async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Reply, CallError> {
        // The pool sets this as soon as it picks the connection to write to: as long as it is empty, nothing was sent.
        let connection = capture_connection(&mut request);
        let exchange = async {
            let response = self.pool.request(request).await.map_err(|error| {
                if error.is_connect() || connection.connection_metadata().is_none() {
                    CallError::NotSent(NotSent::Connect(error.into()))
                } else {
                    CallError::Unknown(Unknown::NoAnswer(error.into()))
                }
            })?;
            let status = response.status();
            let request_id = response.headers().get("request-id").and_then(|value| value.to_str().ok());
            let request_id = request_id.unwrap_or_default().to_owned();
            let body = match Limited::new(response.into_body(), BODY_BYTES).collect().await {
                Ok(collected) => collected.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() => {
                    return Err(Unknown::TooLong { status, limit: BODY_BYTES }.into());
                }
                Err(source) => return Err(Unknown::Truncated { status, source }.into()),
            };
            Ok(Reply { status, request_id, body })
        };
        match tokio::time::timeout_at(deadline, exchange).await {
            Ok(reply) => reply,
            Err(_) if connection.connection_metadata().is_none() => Err(NotSent::TimedOut(timeout).into()),
            Err(_) => Err(Unknown::TimedOut(timeout).into()),
        }
    }
}
