//! The HTTP side: one resource, `POST /rides`, two questions an orchestrator asks, and one that Prometheus asks.
//!
//! A client that hangs up cancels nothing: hyper drops the handler's future then, so the handler only reads
//! the request and waits, and the work runs as a task of its own that shutdown waits for.

mod auth;
mod book;
mod decode;
mod error;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;
use crate::database::{Database, schema};
use crate::http::{self, Body, HangUp, Limits, Listener};
use crate::jobs::health::QueueHealth;
use crate::metrics::{self, Metrics};
use crate::rides::Rides;
pub use auth::Seen;
use error::ApiError;

/// Marks an answer that was stored earlier.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// `/readyz` says "not ready" rather than wait longer than this for the database.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// What the API works with.
#[derive(Debug)]
pub struct Api {
    /// Where users and keys are.
    pub database: Database,
    /// What books rides.
    pub rides: Rides,
    /// `[api]`.
    pub config: config::Api,
    /// `idempotency.lock_timeout`.
    pub lock_timeout: Duration,
    /// `completer.grace`.
    pub grace: Duration,
    /// `demo.enabled`: whether clients may ask for a failure.
    pub demo: bool,
    /// The queue that this process delivers to, if it does.
    pub queue: Option<Arc<QueueHealth>>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the process begins to leave, some time before the listener closes.
    pub leaving: CancellationToken,
    /// Who asked a moment ago.
    pub seen: Seen,
    /// Requests under way, with or without their client.
    pub under_way: TaskTracker,
}

/// An answer, before it is a response.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    body: String,
    replayed: bool,
    header: Option<(HeaderName, HeaderValue)>,
}

/// What the one log line of a request says besides method, path, status and time.
#[derive(Debug, Default)]
struct Trail {
    key_id: Option<i64>,
    attempt: Option<i32>,
    reached: Option<&'static str>,
    replayed: bool,
    error: Option<String>,
}

/// Answers requests until `stop`, then finishes those under way.
pub async fn run(api: Arc<Api>, listener: Arc<Listener>, stop: CancellationToken) {
    let limits = Limits { connections: api.config.connections, head_timeout: api.config.head_timeout };
    let under_way = api.under_way.clone();
    let handler = move |request, peer| {
        let api = Arc::clone(&api);
        async move { Ok::<_, HangUp>(handle(api, request, peer).await.into_response()) }
    };
    http::serve(&listener, limits, stop, handler).await;
    under_way.close();
    under_way.wait().await;
    // A role that is restarted takes requests again.
    under_way.reopen();
}

async fn handle(api: Arc<Api>, request: Request<Incoming>, peer: SocketAddr) -> Reply {
    let (began, method, path) = (Instant::now(), request.method().clone(), request.uri().path().to_owned());
    if (&method, path.as_str()) == (&Method::POST, "/rides") {
        return post_ride(api, request, peer, began).await;
    }
    let reply = answer(&api, &method, &path).await;
    api.tell(&Trail::default(), &method, &path, &reply, began);
    reply
}

async fn answer(api: &Api, method: &Method, path: &str) -> Reply {
    match (method, path) {
        (&Method::GET | &Method::HEAD, "/healthz") => Reply::ok(r#"{"message":"alive"}"#),
        (&Method::GET | &Method::HEAD, "/readyz") => match readiness(api).await {
            Ok(()) => Reply::ok(ready(api.queue.as_deref())),
            Err(error) => error.into(),
        },
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let text = api.metrics.render(&api.database, api.queue.as_deref()).await;
            let header = Some((CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE)));
            Reply { header, ..Reply::ok(text) }
        }
        (_, "/rides") => ApiError::Method { allow: "POST" }.into(),
        (_, "/healthz" | "/readyz" | "/metrics") => ApiError::Method { allow: "GET, HEAD" }.into(),
        (_, path) => ApiError::Path(path.to_owned()).into(),
    }
}

/// Reads the request here, where the connection is, and works on it in a task of its own.
async fn post_ride(api: Arc<Api>, request: Request<Incoming>, peer: SocketAddr, began: Instant) -> Reply {
    let (head, body) = request.into_parts();
    let fields = decode::read(&head, body, api.config.body_timeout).await;
    let under_way = api.under_way.clone();
    let work = under_way.spawn(async move {
        let mut trail = Trail::default();
        // Clients that hang up free their connections, not their rides, so these have a bound of their own.
        let answer = if api.under_way.len() > api.config.connections {
            Err(ApiError::Overloaded)
        } else {
            let booked = book::book(&api, &head.headers, fields, peer.ip(), &mut trail);
            AssertUnwindSafe(booked).catch_unwind().await.unwrap_or(Err(ApiError::Internal))
        };
        let reply = answer.unwrap_or_else(|error| {
            trail.error = Some(error.for_log());
            error.into()
        });
        api.tell(&trail, &Method::POST, "/rides", &reply, began);
        reply
    });
    // The runtime is going down when a task that catches its panics does not end.
    work.await.unwrap_or_else(|_| ApiError::Internal.into())
}

async fn readiness(api: &Api) -> Result<(), ApiError> {
    if api.leaving.is_cancelled() {
        return Err(ApiError::Leaving);
    }
    match tokio::time::timeout(READY_TIMEOUT, schema::is_usable(&api.database)).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false) | Err(_)) | Err(_) => Err(ApiError::NotReady),
    }
}

/// A queue that is down does not make the API unready: rides are booked, and their jobs wait in the outbox. But
/// whoever looks should see it.
fn ready(queue: Option<&QueueHealth>) -> String {
    match queue {
        Some(queue) => json!({ "message": "ready", "queue": queue.to_string() }).to_string(),
        None => json!({ "message": "ready" }).to_string(),
    }
}

impl Api {
    /// Counts and logs a request once it is answered.
    fn tell(&self, trail: &Trail, method: &Method, path: &str, reply: &Reply, began: Instant) {
        self.metrics.count_request(method, path, reply.status, began.elapsed());
        trail.log(method.as_str(), path, reply, began);
    }
}

impl Trail {
    /// Probes and strays are many and say little, so they are for those who ask for details.
    fn log(&self, method: &str, path: &str, reply: &Reply, began: Instant) {
        let Self { key_id, attempt, reached, replayed, error } = self;
        let (status, error) = (reply.status.as_u16(), error.as_deref());
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(method, path, status, key_id, attempt, reached, replayed, ms, error, "request")
            };
        }
        match (path, status) {
            ("/rides", 500..) => line!(warn),
            ("/rides", _) => line!(info),
            _ => line!(debug),
        }
    }
}

impl Reply {
    fn ok(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, body: body.into(), replayed: false, header: None }
    }

    fn into_response(self) -> Response<Body> {
        let mut response = http::json(self.status, self.body);
        if self.replayed {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        let header = if let Some(seconds) = error.retry_after() {
            Some((RETRY_AFTER, HeaderValue::from(seconds)))
        } else {
            match error {
                ApiError::Method { allow } => Some((ALLOW, HeaderValue::from_static(allow))),
                ApiError::Unauthenticated(_) => {
                    Some((WWW_AUTHENTICATE, HeaderValue::from_static(r#"Email realm="rides""#)))
                }
                _ => None,
            }
        };
        Self { status: error.status(), body: error.body(), replayed: false, header }
    }
}
