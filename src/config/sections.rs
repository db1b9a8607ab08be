//! The config's sections: what each key means, its unit, and why its default is what it is.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{Nats, Queue, Receipts, Redis, Roles, Worker};
use crate::database::PoolSettings;
use crate::database::schema::Older;
use crate::jobs::foreign::PushPolicy;
use crate::stripe::sandbox::Faults;

/// Everything that one process needs to know.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each section's type says what it is")]
pub struct Config {
    pub roles: Roles,
    pub database: Database,
    pub api: Api,
    pub idempotency: Idempotency,
    pub completer: Completer,
    pub enqueuer: Enqueuer,
    pub worker: Worker,
    pub receipts: Receipts,
    pub redis: Redis,
    pub nats: Nats,
    pub reaper: Reaper,
    pub stripe: Stripe,
    pub stripe_sandbox: StripeSandbox,
    pub simulator: Simulator,
    pub demo: Demo,
    pub log: Log,
    pub shutdown: Shutdown,
}

/// `[database]`: one pool over one Postgres, ours or yours.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// Start a private Postgres as a child of this process, unless `url` is given.
    pub embedded: bool,
    /// A libpq connection string or URL; `sslmode` up to `verify-full` is honoured.
    pub url: Option<SecretString>,
    /// Where the private Postgres keeps its files.
    pub data_dir: PathBuf,
    /// Connections in the pool. Two per core of the database server is plenty: no connection is held while
    /// Stripe is asked, so few serve many requests.
    pub pool_size: u32,
    /// How long a request waits for a free connection before it is answered 503.
    #[serde(with = "humantime_serde")]
    pub pool_timeout: Duration,
    /// How long a statement may take before its connection is given up as one that hangs on a dead network. None of ours
    /// runs for more than tens of milliseconds, but one may wait 3 s for a row, and a disk may be slow.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// Bring a database of an earlier version to this one at the start. A private Postgres is, whatever this says.
    pub migrate: bool,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            embedded: false,
            url: None,
            data_dir: PathBuf::from("var/postgres"),
            pool_size: 16,
            pool_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            migrate: false,
        }
    }
}

impl Database {
    /// What becomes of a database of an earlier version.
    pub fn older(&self) -> Older {
        if self.migrate || self.url.is_none() { Older::Migrate } else { Older::Refuse }
    }

    /// What of this concerns the pool.
    pub fn pool_settings(&self) -> PoolSettings {
        let Self { pool_size: size, pool_timeout: checkout_timeout, statement_timeout, .. } = *self;
        PoolSettings { size, checkout_timeout, statement_timeout }
    }
}

/// `[api]`: the HTTP side.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How clients say who they are.
    pub auth: Auth,
    /// Accept `auth = "email"` on an address that other machines can reach. Anybody can claim any e-mail
    /// address, so this is for networks that are trusted by other means.
    pub insecure_auth: bool,
    /// Connections served at once; further ones wait in the kernel.
    pub connections: usize,
    /// How long the head of a request may take to arrive, and how long an idle connection is kept.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// How long the body of a request may take to arrive.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)),
            auth: Auth::Email,
            insecure_auth: false,
            connections: 2048,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
        }
    }
}

/// How clients say who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// `Authorization` holds the user's e-mail address, unproven: a demonstration's way.
    Email,
}

/// `[idempotency]`: the engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Idempotency {
    /// How long a lease on a key lasts. A second worker may start when it has run out, so it is longer than an
    /// attempt takes unless the database is slow beyond reason; then the fence makes the overlap harmless.
    #[serde(with = "humantime_serde")]
    pub lock_timeout: Duration,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self { lock_timeout: Duration::from_secs(90) }
    }
}

/// `[completer]`: finishing what clients abandoned.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Completer {
    /// How long a client is left alone with its own retries before the completer steps in.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Pause after the completer's first failed attempt; it doubles with each further one, up to an hour, with
    /// jitter.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// A key that the completer has tried this often is parked for a person. With doubling pauses of 60 s to 1 h,
    /// 32 attempts take a little over a day. Stripe repeats even a failure for as long as it remembers its key, so
    /// the attempts must outlast that: the look-up after `stripe.key_retention` then decides.
    pub max_attempts: i32,
    /// Requests completed at once, and claimed at once: claiming more would let leases run out while waiting. At a
    /// third of a second for a charge, 32 stay below the 100 calls a second that Stripe allows.
    pub concurrency: i64,
    /// Pause between looks when there was nothing to do.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
}

impl Default for Completer {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5 * 60),
            retry_after: Duration::from_secs(60),
            max_attempts: 32,
            concurrency: 32,
            poll_interval: Duration::from_secs(5),
        }
    }
}

/// `[enqueuer]`: from the outbox to the queue.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Enqueuer {
    /// Where jobs go.
    pub queue: Queue,
    /// Jobs moved by one statement. Measured best of 100, 1,000 and 10,000.
    pub batch: i64,
    /// Pause between looks; a ride that finishes in this process wakes the enqueuer at once.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Deadline for one push to a queue outside the database. A batch takes it some tens of milliseconds.
    #[serde(with = "humantime_serde")]
    pub push_timeout: Duration,
    /// How long jobs are an enqueuer's own while it pushes them. A batch waits for one push and then has its own, so
    /// this is longer than two; when a process dies, its jobs are pushed again after this time.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Pause after a job's first failed push; it doubles with each further one, up to an hour, with jitter. A queue
    /// that is down as a whole is no job's failure.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// A job that was refused this often is a dead letter. With doubling pauses of 5 s to 1 h, 25 attempts take most
    /// of a day: time enough to mend what refuses it.
    pub max_attempts: i32,
}

impl Default for Enqueuer {
    fn default() -> Self {
        Self {
            queue: Queue::Postgres,
            batch: 1000,
            poll_interval: Duration::from_secs(5),
            push_timeout: Duration::from_secs(5),
            lease: Duration::from_secs(30),
            retry_after: Duration::from_secs(5),
            max_attempts: 25,
        }
    }
}

impl Enqueuer {
    /// What of this concerns a queue outside the database.
    pub fn push_policy(&self) -> PushPolicy {
        let Self { batch, push_timeout: timeout, lease, retry_after, max_attempts, .. } = *self;
        PushPolicy { batch, timeout, lease, retry_after, max_attempts }
    }
}

/// `[reaper]`: forgetting old keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reaper {
    /// A key this old is removed, or parked if its request never finished.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// Keys handled by one statement.
    pub batch: i64,
    /// Pause between looks when there was nothing to do.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
}

impl Default for Reaper {
    fn default() -> Self {
        Self { retention: Duration::from_secs(72 * 3600), batch: 1000, poll_interval: Duration::from_secs(5) }
    }
}

/// `[stripe]`: the foreign call.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stripe {
    /// Scheme, host and port. Left out, it is this process's sandbox if that role runs, or else Stripe.
    pub api_base: Option<String>,
    /// The secret key; `STRIPE_API_KEY` is the place to set it.
    pub api_key: SecretString,
    /// Deadline for one whole call: connect, send, answer. An attempt makes two at most, and both must fit into
    /// the lease and into the shutdown's deadline.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How long after the charge was first intended Stripe surely still knows our idempotency key. Stripe
    /// promises 24 h; past this, a charge is looked up before it is made.
    #[serde(with = "humantime_serde")]
    pub key_retention: Duration,
}

impl Default for Stripe {
    fn default() -> Self {
        Self {
            api_base: None,
            api_key: SecretString::default(),
            timeout: Duration::from_secs(10),
            key_retention: Duration::from_secs(23 * 3600),
        }
    }
}

/// `[stripe_sandbox]`: the stand-in for Stripe.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StripeSandbox {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The file with every customer and charge.
    pub ledger: PathBuf,
    /// How long an idempotency key is remembered; Stripe promises 24 h.
    #[serde(with = "humantime_serde")]
    pub key_retention: Duration,
    /// What goes wrong, and how often.
    pub faults: Faults,
}

impl Default for StripeSandbox {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5001)),
            ledger: PathBuf::from("var/stripe-sandbox.jsonl"),
            key_retention: Duration::from_secs(24 * 3600),
            faults: Faults::default(),
        }
    }
}

/// `[simulator]`: random clients. The shares are probabilities from 0 to 1 and independent of each other.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Simulator {
    /// Where to send requests; left out, it is this process's own API.
    pub api_base: Option<String>,
    /// New rides per second, arriving at random moments.
    pub rate: f64,
    /// Rides that ask the API to fail half-way (`raise_error`), after which the client gives up.
    pub raise_error: f64,
    /// Rides of the user whose card is declined.
    pub declined: f64,
    /// Rides sent twice at the same moment with the same key.
    pub duplicate: f64,
    /// Clients that hang up before the answer and never come back.
    pub hang_up: f64,
    /// Clients that repeat a request although it was answered, and expect the same answer.
    pub replay: f64,
    /// Clients that ask for their money back once they have paid.
    pub refund: f64,
}

impl Default for Simulator {
    fn default() -> Self {
        Self {
            api_base: None,
            rate: 5.0,
            raise_error: 0.1,
            declined: 0.1,
            duplicate: 0.1,
            hang_up: 0.1,
            replay: 0.1,
            refund: 0.1,
        }
    }
}

/// `[demo]`: what a demonstration has and production must not.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Demo {
    /// Seed the two users and accept the form field `raise_error`.
    pub enabled: bool,
}

/// `[log]`: what is said, and how.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Pretty for people, JSON for machines.
    pub format: LogFormat,
    /// Directives as of tracing's `EnvFilter`: `info`, `rocket_rides_atomic=debug`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".to_owned() }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// `[shutdown]`: leaving.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// Time for the whole ordered drain. Below the 30 s that orchestrators wait before they kill.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Time between `/readyz` turning 503 and the listener closing. Behind a load balancer, a little longer
    /// than its health checks are apart; 0 where nobody asks.
    #[serde(with = "humantime_serde")]
    pub notice: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(25), notice: Duration::ZERO }
    }
}

/// Whether the key at `path` holds a secret that no error may repeat.
pub(super) fn is_secret(path: &[String]) -> bool {
    matches!(path.last().map(String::as_str), Some("api_key" | "url" | "smtp_url"))
}
