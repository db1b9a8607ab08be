//! The metrics of this process, which Prometheus reads with `GET /metrics`.
//!
//! The registry belongs to a supervisor and is not global, so that two supervisors in one test process count
//! separately. What the process counts is always there. Figures from the database ([`depths`]) are there while the
//! database answers, and left out while it does not.
//!
//! Names begin with `rocket_rides_`, and units are base units. A label never holds text that a client chose.

pub mod depths;

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atomic_phases::database::Database;
use atomic_phases::queue::health::QueueHealth;
use atomic_phases::queue::{Relayed, postgres};
use atomic_phases::roles::{Observer, Outcome};
use hyper::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use depths::Depths;

/// The content type of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const PREFIX: &str = "rocket_rides";

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    request_seconds: Family<Asked, Histogram, fn() -> Histogram>,
    delivered: Family<ToQueue, Counter>,
    failed: Family<ToQueue, Counter>,
    died: Family<ToQueue, Counter>,
    worked: Family<Ended, Counter>,
    depths: Depths,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    path: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    path: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ToQueue {
    queue: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

/// Makes a histogram from 1 ms, which a replay takes, to 16 s, which two calls to a slow Stripe take.
fn request_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let started: Gauge<f64, AtomicU64> = Gauge::default();
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        let help = "When this process's roles were started, since the epoch";
        registry.register_with_unit("process_start_time", help, Unit::Seconds, started);
        let request_seconds = Family::new_with_constructor(request_seconds as fn() -> Histogram);
        let help = "Time from a request's head to its answer";
        registry.register_with_unit("http_request_duration", help, Unit::Seconds, request_seconds.clone());
        Self {
            requests: counter(&mut registry, "http_requests", "Requests answered"),
            delivered: counter(&mut registry, "jobs_delivered", "Staged jobs that a queue has taken"),
            failed: counter(&mut registry, "jobs_failed", "Attempts to deliver a job that its queue refused"),
            died: counter(&mut registry, "jobs_died", "Staged jobs that became dead letters"),
            worked: counter(&mut registry, "jobs_worked", "Attempts of this process's worker, by how they ended"),
            request_seconds,
            registry,
            depths: Depths::default(),
        }
    }
}

/// Registers a family that makes a counter for each set of labels when it first occurs.
fn counter<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter>
where
    L: EncodeLabelSet + Clone + std::fmt::Debug + Eq + std::hash::Hash + Send + Sync + 'static,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

impl Metrics {
    /// Counts a request that was answered.
    ///
    /// `path` is a route's pattern, or [`OTHER`], because a client can send any path.
    pub fn count_request(&self, method: &Method, path: &'static str, status: StatusCode, took: Duration) {
        let method = method_label(method);
        self.requests.get_or_create(&Answered { method, path, status: status.as_u16() }).inc();
        self.request_seconds.get_or_create(&Asked { method, path }).observe(took.as_secs_f64());
    }

    /// Returns all metrics as text. Waits for the database no longer than [`depths::QUERY_TIMEOUT`].
    pub async fn render(&self, database: &Database, queue: Option<&QueueHealth>) -> String {
        let mut now = Registry::with_prefix(PREFIX);
        let mut gauge = |name: &str, help: &str, value: i64| now.register(name, help, ConstGauge::new(value));
        let depths = self.depths.read(database).await;
        gauge("database_up", "Whether the database answers", depths.is_some().into());
        let (in_use, idle) = database.connections();
        gauge("database_connections_in_use", "Connections of the pool that somebody uses", in_use.into());
        gauge("database_connections_idle", "Connections of the pool that lie idle", idle.into());
        if let Some(health) = queue {
            // The default queue is in the database, and is up when that is.
            let up = depths.is_some() || health.queue() != postgres::NAME;
            let family = Family::<ToQueue, Gauge>::default();
            let gauge = family.get_or_create_owned(&ToQueue { queue: health.queue() });
            gauge.set((up && health.down_since().is_none()).into());
            now.register("queue_up", "Whether the queue takes jobs", family);
        }
        if let Some(depths) = depths {
            depths.register(&mut now);
        }
        if let Some(bytes) = resident_bytes() {
            let help = "Memory of this process that is in RAM";
            now.register_with_unit("process_resident_memory", help, Unit::Bytes, ConstGauge::new(bytes));
        }
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &now))
            .and_then(|()| encode_eof(&mut text))
            .expect("a String takes all that is written");
        text
    }
}

impl Observer for Metrics {
    fn relayed(&self, queue: &'static str, relayed: &Relayed) {
        for (family, count) in
            [(&self.delivered, relayed.delivered), (&self.failed, relayed.failed), (&self.died, relayed.dead)]
        {
            family.get_or_create(&ToQueue { queue }).inc_by(count.unsigned_abs());
        }
    }

    fn worked(&self, outcome: Outcome) {
        self.worked.get_or_create(&Ended { outcome: outcome.name() }).inc();
    }
}

/// Returns the resident set in bytes, where the system has `/proc` as Linux does.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(resident.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()? * 1024)
}

/// The label of every path that is not served, and of every unknown method.
pub const OTHER: &str = "other";

/// Returns a method's label. A client can send any method, too.
fn method_label(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER)
}
