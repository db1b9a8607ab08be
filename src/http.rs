//! The HTTP/1 server under the API and the Stripe sandbox: accept, bound, serve, drain.
//!
//! hyper parses and writes; what hyper leaves to its caller is here: a bound on connections, a deadline on reading a
//! request's head and body, and the drain, which lets requests in flight answer while idle connections close at once.
//! Routing and meaning belong to the handler that the caller passes in.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a handler answers with. The body may fail half-way, which is how the sandbox truncates a reply.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A handler's way to drop the connection instead of answering.
#[derive(Debug, thiserror::Error)]
#[error("the handler hung up on purpose")]
pub struct HangUp;

/// Bounds that keep one client from starving the others.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections served at once; further ones wait in the kernel's backlog.
    pub connections: usize,
    /// How long a request's head may take, and how long a kept-alive connection may stay idle: hyper starts
    /// the same timer for both.
    pub head_timeout: Duration,
}

/// A request's head may have this many bytes (431 beyond it).
const HEAD_BYTES: usize = 16 * 1024;
/// And this many header lines (431 beyond it).
const HEAD_LINES: usize = 64;
/// Pause after a failed `accept`, so that a process out of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port. It stays bound while a role that serves it is restarted, and closes when the role drains, so that
/// clients are refused at once and do not wait in the backlog of a process that is leaving.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    socket: Mutex<Option<Arc<TcpListener>>>,
}

impl Listener {
    /// Binds; port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self { address: socket.local_addr()?, socket: Mutex::new(Some(Arc::new(socket))) })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn socket(&self) -> Option<Arc<TcpListener>> {
        self.socket.lock().expect("no panic while locked").clone()
    }

    fn close(&self) {
        self.socket.lock().expect("no panic while locked").take();
    }
}

/// Serves `handler` on `listener` until `stop`, then drains: the port closes, requests in flight are answered, and
/// the call returns when the last connection has closed.
pub async fn serve<H, F>(listener: &Listener, limits: Limits, stop: CancellationToken, handler: H)
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Body>, HangUp>> + Send + 'static,
{
    let Some(socket) = listener.socket() else { return };
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot.expect("the semaphore is never closed"),
        };
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = socket.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        // Small answers must not wait for Nagle; a socket that refuses the option still works.
        let _ = stream.set_nodelay(true);

        let (handler, stop) = (handler.clone(), stop.clone());
        connections.spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request| handler(request, peer));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.head_timeout)
                .max_buf_size(HEAD_BYTES)
                .max_headers(HEAD_LINES)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "connection ended early");
            }
        });
    }
    listener.close();
    drop(socket);
    connections.close();
    connections.wait().await;
}

/// Why a request's body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It has more bytes than allowed.
    #[error("the body is longer than {limit} bytes")]
    TooLong {
        /// The bound that it broke, in bytes.
        limit: usize,
    },
    /// It did not arrive in time.
    #[error("the body did not arrive within {} s", .0.as_secs())]
    TooSlow(Duration),
    /// The connection broke, or its framing is invalid.
    #[error("the body could not be read")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Reads a whole body of at most `limit` bytes within `timeout`.
pub async fn read_body(body: Incoming, limit: usize, timeout: Duration) -> Result<Bytes, BodyError> {
    match tokio::time::timeout(timeout, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyError::TooLong { limit }),
        Ok(Err(error)) => Err(BodyError::Broken(error)),
        Err(_) => Err(BodyError::TooSlow(timeout)),
    }
}

/// Returns a response of `status` whose body is the given JSON text, byte for byte.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
