//! Redis, in the wire format of Sidekiq: jobs for workers that know nothing of this program.
//!
//! One script call pushes a batch (`push.lua`), and for each job it sets a bit that says "pushed". A crash between
//! push and delete pushes the batch again; the bits make that a no-op for as long as [`Settings::marker_ttl`] says.
//! Bits rather than a key for each job, because ids are dense: a million jobs are marked in 128 KB instead of 100 MB.
//!
//! Redis answers before the disk has anything unless `appendonly yes` and `appendfsync always` are set, and a job is
//! deleted from the outbox after the answer. So each new connection reads these settings, and the log names those that
//! promise less.
//!
//! Deliberately absent: Redis Cluster. It requires that the keys of one script share a slot, and Sidekiq's keys do not.

mod durability;
mod payload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use atomic_phases::queue::{Delivery, Queue, QueueDown, StagedJob};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Script, TlsCertificates};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::spare::Spare;
use super::{CaError, ca};
use payload::Encoder;

/// In config, logs and metrics.
pub const NAME: &str = "redis";

/// A server that does not answer a connection attempt by now is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bits in one bitmap, which is 8 KB: small enough to make at once, and so many that a batch touches one or two.
const MARKS: i64 = 1 << 16;

/// `[redis]`: where Sidekiq's queue is, and how a job looks there.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `redis://user:password@host:port/db`, `rediss://…` for TLS, or `redis+unix:///path`; `REDIS_URL` is the place to
    /// set it.
    pub url: Option<SecretString>,
    /// Certificates in PEM form at which the server's chain may end, instead of Mozilla's.
    pub ca_file: Option<PathBuf>,
    /// Comes before each key, with a colon, as with the gem redis-namespace. Sidekiq 7 and later do not have
    /// namespaces.
    pub namespace: String,
    /// Sidekiq's queue.
    pub queue: String,
    /// The worker's class for a job's name; where it is left out, `send_ride_receipt` is for `SendRideReceipt`.
    pub classes: BTreeMap<String, String>,
    /// How times are written.
    pub timestamps: Timestamps,
    /// How long a job that was pushed is known and a second push of it dropped: the longest time that all enqueuers may
    /// be down after one of them died between push and delete. A week is longer than any outage that goes unnoticed,
    /// and costs 1 bit a job.
    #[serde(with = "humantime_serde")]
    pub marker_ttl: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: None,
            ca_file: None,
            namespace: String::new(),
            queue: "default".to_owned(),
            classes: BTreeMap::new(),
            timestamps: Timestamps::Seconds,
            marker_ttl: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Settings {
    /// Returns the first class that is no Ruby constant, so that no worker can have it.
    pub fn wrong_class(&self) -> Option<&str> {
        self.classes.values().map(String::as_str).find(|class| !payload::is_constant(class))
    }
}

/// How times are written for Sidekiq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Timestamps {
    /// Seconds with a fraction, which every version reads.
    Seconds,
    /// Whole milliseconds, as Sidekiq 8 writes them.
    Milliseconds,
}

/// Why the settings cannot be used. No variant carries the password.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not set.
    #[error("redis.url: missing: set REDIS_URL")]
    NoUrl,
    /// The client does not accept it. The client's text is left out, because it might quote a password.
    #[error("redis.url: is not of the form redis://…, rediss://… or redis+unix:///…")]
    Url,
    /// The file cannot be used.
    #[error("redis.ca_file")]
    CaFile(#[from] CaError),
    /// A file is set, but the URL does not use TLS.
    #[error("redis.ca_file: needs a rediss:// URL")]
    NoTls,
}

/// Why Redis took no jobs. The client's errors include their causes in their text, so they are not sources here.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("cannot connect to Redis: {0}")]
    Connect(RedisError),
    #[error("Redis did not take the jobs: {0}")]
    Push(RedisError),
}

impl From<PushError> for QueueDown {
    fn from(error: PushError) -> Self {
        Self(Box::new(error))
    }
}

/// A queue of Sidekiq in Redis.
pub struct Redis {
    client: Client,
    spare: Spare<MultiplexedConnection>,
    script: Script,
    encoder: Encoder,
    queue: String,
    /// The key of the set of queues, that of the queue, and the prefix of those of the bitmaps.
    keys: [String; 3],
    marker_ttl: Duration,
    /// What was last logged about the server's settings.
    said: Mutex<Vec<String>>,
}

impl Redis {
    /// Makes a queue for the jobs of one installation. It connects when there is something to push.
    ///
    /// # Errors
    ///
    /// If the URL or the file of certificates cannot be used.
    pub fn new(settings: &Settings, installation: Uuid) -> Result<Self, SettingsError> {
        let url = settings.url.as_ref().ok_or(SettingsError::NoUrl)?.expose_secret();
        let client = match &settings.ca_file {
            None => Client::open(url).map_err(|_| SettingsError::Url)?,
            Some(path) => {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(ca::read(path)?) };
                Client::build_with_tls(url, certificates).map_err(|_| SettingsError::NoTls)?
            }
        };
        let key = |name: &str| match settings.namespace.as_str() {
            "" => name.to_owned(),
            namespace => format!("{namespace}:{name}"),
        };
        let queue = settings.queue.clone();
        let keys = [
            key("queues"),
            key(&format!("queue:{queue}")),
            key(&format!("rocket_rides:pushed:{}", installation.simple())),
        ];
        Ok(Self {
            client,
            spare: Spare::default(),
            script: Script::new(include_str!("push.lua")),
            encoder: Encoder::new(settings, installation),
            queue,
            keys,
            marker_ttl: settings.marker_ttl,
            said: Mutex::default(),
        })
    }

    async fn connect(&self) -> Result<MultiplexedConnection, PushError> {
        // The caller limits the time of a push. The client's own limit, half a second, is short for a batch.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(None);
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connected.map_err(PushError::Connect)?;
        let weaknesses = durability::weaknesses(&mut connection).await.map_err(PushError::Connect)?;
        let mut said = self.said.lock().expect("no panic while locked");
        if *said != weaknesses {
            for weakness in &weaknesses {
                tracing::warn!(queue = self.name(), "{weakness}");
            }
            *said = weaknesses;
        }
        Ok(connection)
    }

    /// Pushes these encoded jobs, and returns how many of them Redis had not seen before.
    async fn run_script(&self, jobs: &[(i64, String)]) -> Result<usize, PushError> {
        let mut connection = match self.spare.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut call = self.script.key(&self.keys[0]);
        call.key(&self.keys[1]).arg(&self.queue).arg(self.marker_ttl.as_secs());
        let mut bitmaps = Vec::new();
        for (id, payload) in jobs {
            let (bitmap, bit) = (id.div_euclid(MARKS), id.rem_euclid(MARKS));
            let place = bitmaps.iter().rposition(|known| *known == bitmap).unwrap_or_else(|| {
                bitmaps.push(bitmap);
                call.key(format!("{}:{bitmap}", self.keys[2]));
                bitmaps.len() - 1
            });
            call.arg(3 + place).arg(bit).arg(payload);
        }
        let fresh = call.invoke_async(&mut connection).await.map_err(PushError::Push)?;
        self.spare.put(connection);
        Ok(fresh)
    }
}

impl Queue for Redis {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn push(&self, jobs: &[StagedJob]) -> Result<Vec<Delivery>, QueueDown> {
        let now = SystemTime::now();
        let (mut encoded, mut deliveries) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            deliveries.push(match self.encoder.encode(job, now) {
                Ok(payload) => {
                    encoded.push((job.id, payload));
                    Delivery::Delivered
                }
                Err(error) => Delivery::Permanent(error.to_string()),
            });
        }
        if !encoded.is_empty() {
            let fresh = self.run_script(&encoded).await?;
            let repeated = encoded.len() - fresh;
            if repeated > 0 {
                tracing::info!(queue = self.name(), repeated, "jobs were pushed before, and were not pushed again");
            }
        }
        Ok(deliveries)
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("keys", &self.keys).finish_non_exhaustive()
    }
}
