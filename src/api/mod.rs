//! The HTTP side: the operations, each with a path of its own, two probes for an orchestrator, and the metrics for
//! Prometheus.
//!
//! A client that hangs up cancels nothing: hyper drops the handler's future then, so the handler only reads
//! the request and waits, and the work runs as a task of its own that shutdown waits for.

mod auth;
mod decode;
mod error;
mod operate;
mod route;
mod serve;
mod settings;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atomic_phases::database::Database;
use atomic_phases::queue::health::QueueHealth;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::database::schema;
use crate::http::{self, Body, HangUp, Limits, Listener};
use crate::metrics::{self, Metrics};
pub use auth::Seen;
use error::ApiError;
use operate::{Addressed, operate};
use route::{Route, Service};
pub use serve::Serves;
pub use settings::{Auth, Settings};

/// Marks an answer that was stored earlier.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// How long `/readyz` waits for the database before it answers "not ready".
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// What the API works with.
pub struct Api {
    /// Where users and keys are.
    pub database: Database,
    /// The operations, each served at a path of its own.
    pub operations: Vec<Arc<dyn Serves>>,
    /// `[api]`.
    pub settings: Settings,
    /// `demo.enabled`: whether clients may ask for a failure.
    pub demo: bool,
    /// The queue that this process delivers to, if it does.
    pub queue: Option<Arc<QueueHealth>>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the shutdown begins, some time before the listener closes.
    pub leaving: CancellationToken,
    /// The users who sent a request a moment ago.
    pub seen: Seen,
    /// Requests under way, also those whose client has hung up.
    pub under_way: TaskTracker,
}

/// An answer, before it is a response.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    body: String,
    replayed: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a request's log line holds besides method, path, status and time.
#[derive(Debug, Default)]
struct Trail {
    key_id: Option<i64>,
    attempt: Option<i32>,
    reached: Option<String>,
    replayed: bool,
    error: Option<String>,
}

/// Answers requests until `stop`, then finishes those under way.
pub async fn run(api: Arc<Api>, listener: Arc<Listener>, stop: CancellationToken) {
    let limits = Limits { connections: api.settings.connections, head_timeout: api.settings.head_timeout };
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
    let route = route::find(&api.operations, &path);
    if let Some(Route::Operation { place, id }) = route
        && method == Method::POST
    {
        return post(api, place, id, request, peer, began).await;
    }
    let reply = answer(&api, route, &method, &path).await;
    api.tell(&Trail::default(), &method, &path, &reply, began);
    reply
}

async fn answer(api: &Api, route: Option<Route>, method: &Method, path: &str) -> Reply {
    let service = match route {
        None => return ApiError::Path(path.to_owned()).into(),
        Some(Route::Operation { .. }) => return ApiError::Method { allow: "POST" }.into(),
        Some(Route::Service(_)) if !matches!(*method, Method::GET | Method::HEAD) => {
            return ApiError::Method { allow: "GET, HEAD" }.into();
        }
        Some(Route::Service(service)) => service,
    };
    match service {
        Service::Alive => Reply::ok(r#"{"message":"alive"}"#),
        Service::Ready => match readiness(api).await {
            Ok(()) => Reply::ok(ready(api.queue.as_deref())),
            Err(error) => error.into(),
        },
        Service::Metrics => {
            let text = api.metrics.render(&api.database, api.queue.as_deref()).await;
            let headers = vec![(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))];
            Reply { headers, ..Reply::ok(text) }
        }
    }
}

/// Reads the request here, where the connection is, and works on it in a task of its own.
async fn post(
    api: Arc<Api>,
    place: usize,
    id: Option<i64>,
    request: Request<Incoming>,
    peer: SocketAddr,
    began: Instant,
) -> Reply {
    let (head, body) = request.into_parts();
    let fields = decode::read(&head, body, api.settings.body_timeout).await;
    let under_way = api.under_way.clone();
    let work = under_way.spawn(async move {
        let mut trail = Trail::default();
        let (operation, path) = (&*api.operations[place], head.uri.path());
        // A client that hangs up frees its connection, but not its request, so requests have a bound of their own.
        let answer = if api.under_way.len() > api.settings.connections {
            Err(ApiError::Overloaded)
        } else {
            let addressed = Addressed { operation, path, id, origin_ip: peer.ip() };
            let answered = operate(&api, addressed, &head.headers, fields, &mut trail);
            AssertUnwindSafe(answered).catch_unwind().await.unwrap_or(Err(ApiError::Internal))
        };
        let reply = answer.unwrap_or_else(|error| {
            trail.error = Some(error.for_log());
            error.into()
        });
        api.tell(&trail, &Method::POST, path, &reply, began);
        reply
    });
    // The task catches its panics, so it fails only when the runtime is going down.
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

/// Returns the body of a `/readyz` that is ready. A queue that is down does not make the API unready, because rides are
/// booked and their jobs wait in the outbox; but the body shows it.
fn ready(queue: Option<&QueueHealth>) -> String {
    match queue {
        Some(queue) => json!({ "message": "ready", "queue": queue.to_string() }).to_string(),
        None => json!({ "message": "ready" }).to_string(),
    }
}

impl Api {
    /// Counts and logs a request once it is answered.
    fn tell(&self, trail: &Trail, method: &Method, path: &str, reply: &Reply, began: Instant) {
        let route = route::find(&self.operations, path);
        let label = route.map_or(metrics::OTHER, |route| route.label(&self.operations));
        self.metrics.count_request(method, label, reply.status, began.elapsed());
        let is_operation = matches!(route, Some(Route::Operation { .. }));
        trail.log(method.as_str(), path, reply, began, is_operation);
    }
}

impl Trail {
    /// Writes the log line. Requests that reach no operation, such as probes, are many and say little, so their level
    /// is debug.
    fn log(&self, method: &str, path: &str, reply: &Reply, began: Instant, is_operation: bool) {
        let Self { key_id, attempt, replayed, .. } = self;
        let (status, reached, error) = (reply.status.as_u16(), self.reached.as_deref(), self.error.as_deref());
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(method, path, status, key_id, attempt, reached, replayed, ms, error, "request")
            };
        }
        match status {
            500.. if is_operation => line!(warn),
            _ if is_operation => line!(info),
            _ => line!(debug),
        }
    }
}

impl Reply {
    fn ok(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, body: body.into(), replayed: false, headers: Vec::new() }
    }

    fn into_response(self) -> Response<Body> {
        let mut response = http::json(self.status, self.body);
        if self.replayed {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        for (name, value) in self.headers {
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
                _ if error.status() == StatusCode::UNAUTHORIZED => {
                    Some((WWW_AUTHENTICATE, HeaderValue::from_static(r#"Email realm="rides""#)))
                }
                _ => None,
            }
        };
        Self { status: error.status(), body: error.body(), replayed: false, headers: header.into_iter().collect() }
    }
}
