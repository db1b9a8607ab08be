//! NATS JetStream: a stream that acknowledges each message, and recognises a repeated one by its id.
//!
//! A job is published to `<subject_prefix>.<job name>` with a `Nats-Msg-Id` made from the installation and the staged
//! id. A crash between push and delete publishes it again; the stream answers "duplicate" for as long as its duplicate
//! window lasts, and that counts as a delivery.
//!
//! The stream is made here if it is missing, and otherwise only checked (`stream.rs`): one that would forget ids or
//! jobs too soon is refused, never changed. JetStream acknowledges what it has written, and flushes to disk every two
//! minutes unless the server's `sync_interval` says `always`. The protocol has no way to read that setting.
//!
//! After a restart, a server knows only the ids of messages that are still in the stream. A work queue, which is what
//! is made here, removes a worked job, so a job that is pushed again after a restart arrives again. A stream made
//! beforehand with the retention `limits` has no such gap, for as long as its `max_age`.
//!
//! The client reconnects by itself and sends the messages that it has buffered meanwhile. But the outbox pushes failed
//! jobs again, perhaps from another process, so a connection that failed is dropped here, with its unsent messages.
//!
//! Deliberately absent: credentials files and nkeys, which need 25 crates more.

mod stream;

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{ConnectError, ConnectOptions, ServerAddr};
use atomic_phases::queue::{Delivery, Queue, QueueDown, StagedJob};
use percent_encoding::percent_decode_str;
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::spare::Spare;
use super::{CaError, ca};
use stream::StreamError;

/// In config, logs and metrics.
pub const NAME: &str = "nats";

/// A server that does not answer a connection attempt by now is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No acknowledgement takes this long; the caller's deadline is shorter, and this only ends acknowledgements that no
/// caller awaits any more.
const ACK_TIMEOUT: Duration = Duration::from_secs(60);
/// Messages sent before their acknowledgements are awaited: a whole batch of the default size.
const IN_FLIGHT: usize = 1000;

/// `[nats]`: where the stream is, and what it promises.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `nats://user:password@host:port`, `nats://token@host`, or `tls://…`; several with commas. `NATS_URL` is the place
    /// to set it.
    pub url: Option<SecretString>,
    /// Certificates in PEM form at which the server's chain may end, instead of Mozilla's.
    pub ca_file: Option<PathBuf>,
    /// The stream's name.
    pub stream: String,
    /// Stands before a job's name, with a dot between them. With `.>` after it, it is the stream's subject.
    pub subject_prefix: String,
    /// How long the stream knows a message's id and drops a second message with it: the longest time that all enqueuers
    /// may be down after one of them died between push and delete. A day covers a night without an operator; the server
    /// keeps the ids in memory, so with very many jobs a shorter time may be better.
    #[serde(with = "humantime_serde")]
    pub duplicate_window: Duration,
    /// Servers that keep a copy each, for a stream that is made here.
    pub replicas: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: None,
            ca_file: None,
            stream: "RIDES".to_owned(),
            subject_prefix: "rides.jobs".to_owned(),
            duplicate_window: Duration::from_secs(24 * 3600),
            replicas: 1,
        }
    }
}

impl Settings {
    /// Whether `stream` can be a stream's name, which becomes part of a subject and of a path.
    pub fn has_stream_name(&self) -> bool {
        is_token(&self.stream) && !self.stream.contains(['/', '\\'])
    }

    /// Whether `subject_prefix` can begin a subject.
    pub fn has_subject(&self) -> bool {
        self.subject_prefix.split('.').all(is_token)
    }
}

/// Why the settings cannot be used. No variant carries the password.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not set.
    #[error("nats.url: missing: set NATS_URL")]
    NoUrl,
    /// The client does not accept it. The client's text is left out, because it might quote a password.
    #[error("nats.url: is not of the form nats://host:port or tls://host:port")]
    Url,
    /// The file cannot be used.
    #[error("nats.ca_file")]
    CaFile(#[from] CaError),
}

/// Why NATS took no jobs. The client's errors include their causes in their text, so they are not sources here.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("cannot connect to NATS: {0}")]
    Connect(ConnectError),
    #[error("nats.stream {name:?}")]
    Stream { name: String, source: StreamError },
    #[error("NATS did not take the jobs: {0}")]
    Publish(PublishError),
}

impl From<PushError> for QueueDown {
    fn from(error: PushError) -> Self {
        Self(Box::new(error))
    }
}

/// The message that a consumer gets.
#[derive(Serialize)]
struct Message<'a> {
    id: i64,
    name: &'a str,
    args: &'a RawValue,
    /// RFC 3339 with microseconds, as the database has it.
    staged_at: String,
}

/// A queue in a stream of JetStream.
pub struct Nats {
    servers: Vec<ServerAddr>,
    options: ConnectOptions,
    spare: Spare<Context>,
    settings: Settings,
    installation: Uuid,
}

impl Nats {
    /// Makes a queue for the jobs of one installation. It connects when there is something to push.
    ///
    /// # Errors
    ///
    /// If the URL or the file of certificates cannot be used.
    pub fn new(settings: &Settings, installation: Uuid) -> Result<Self, SettingsError> {
        let url = settings.url.as_ref().ok_or(SettingsError::NoUrl)?.expose_secret();
        let (mut servers, mut credentials) = (Vec::new(), None);
        for server in url.split(',') {
            let (server, found) = split_credentials(server.trim());
            let address = server.parse::<ServerAddr>().ok().filter(|address| !address.host().is_empty());
            servers.push(address.ok_or(SettingsError::Url)?);
            credentials = credentials.or(found);
        }
        let mut options = ConnectOptions::new()
            .name("rocket-rides-atomic")
            .connection_timeout(CONNECT_TIMEOUT)
            // Each server once; then the next push connects anew. (The client takes 0 for "without end".)
            .max_reconnects(servers.len());
        options = match &settings.ca_file {
            None => options.tls_client_config(mozilla()),
            Some(path) => {
                ca::read(path)?;
                options.add_root_certificates(path.clone())
            }
        };
        options = match credentials {
            Some((user, Some(password))) => options.user_and_password(user, password),
            Some((token, None)) => options.token(token),
            None => options,
        };
        Ok(Self { servers, options, spare: Spare::default(), settings: settings.clone(), installation })
    }

    async fn connect(&self) -> Result<Context, PushError> {
        let connected = self.options.clone().connect(self.servers.as_slice()).await;
        let client = connected.map_err(PushError::Connect)?;
        let context = ContextBuilder::new().timeout(ACK_TIMEOUT).max_ack_inflight(IN_FLIGHT).build(client);
        match stream::ensure(&context, &self.settings).await {
            Ok(()) => Ok(context),
            Err(source) => Err(PushError::Stream { name: self.settings.stream.clone(), source }),
        }
    }

    /// Sends these jobs, then waits for all their acknowledgements. If there is an error, `deliveries` still holds the
    /// results of the first jobs.
    async fn publish(
        &self,
        context: &Context,
        jobs: &[StagedJob],
        deliveries: &mut Vec<Delivery>,
    ) -> Result<(), PushError> {
        let mut sent = Vec::with_capacity(jobs.len());
        for job in jobs {
            sent.push(self.send(context, job).await?);
        }
        let mut repeated = 0;
        for sent in sent {
            deliveries.push(match sent {
                Sent::Rejected(problem) => Delivery::Permanent(problem),
                Sent::Awaiting(acknowledgement) => match acknowledgement.await {
                    Ok(acknowledged) => {
                        repeated += usize::from(acknowledged.duplicate);
                        Delivery::Delivered
                    }
                    Err(error) => Delivery::Permanent(permanent_refusal(error)?),
                },
            });
        }
        if repeated > 0 {
            tracing::info!(queue = self.name(), repeated, "jobs were pushed before, and were not pushed again");
        }
        Ok(())
    }

    async fn send(&self, context: &Context, job: &StagedJob) -> Result<Sent, PushError> {
        if !is_token(&job.name) {
            return Ok(Sent::Rejected(format!("{:?} cannot be part of a subject", job.name)));
        }
        let staged_at = humantime::format_rfc3339_micros(job.staged_at).to_string();
        let payload = match serde_json::to_vec(&Message { id: job.id, name: &job.name, args: &job.args, staged_at })
        {
            Ok(payload) => payload,
            Err(error) => return Ok(Sent::Rejected(error.to_string())),
        };
        let id = format!("{}:{}", self.installation.simple(), job.id);
        let message = PublishMessage::build().payload(payload.into()).message_id(id);
        let subject = format!("{}.{}", self.settings.subject_prefix, job.name);
        match context.send_publish(subject, message).await {
            Ok(acknowledgement) => Ok(Sent::Awaiting(acknowledgement)),
            Err(error) => Ok(Sent::Rejected(permanent_refusal(error)?)),
        }
    }
}

impl Queue for Nats {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn push(&self, jobs: &[StagedJob]) -> Result<Vec<Delivery>, QueueDown> {
        let context = match self.spare.take() {
            Some(context) => context,
            None => self.connect().await?,
        };
        let mut deliveries = Vec::with_capacity(jobs.len());
        for portion in jobs.chunks(IN_FLIGHT) {
            match self.publish(&context, portion, &mut deliveries).await {
                Ok(()) => {}
                // A stream that fills up has taken the first jobs; the next push returns why it takes no more.
                Err(_) if !deliveries.is_empty() => return Ok(deliveries),
                Err(error) => return Err(error.into()),
            }
        }
        self.spare.put(context);
        Ok(deliveries)
    }
}

enum Sent {
    Awaiting(PublishAckFuture),
    /// It can never be sent, for this reason.
    Rejected(String),
}

/// Returns why this message can never be taken. Any other refusal (a full stream, no stream, no answer) concerns the
/// whole queue and is returned as the error.
fn permanent_refusal(error: PublishError) -> Result<String, PushError> {
    let refusal = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    let too_large = error.kind() == PublishErrorKind::MaxPayloadExceeded
        || refusal.is_some_and(|refusal| {
            matches!(
                refusal.error_code(),
                ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM
            )
        });
    if too_large { Ok(error.to_string()) } else { Err(PushError::Publish(error)) }
}

/// Returns whether NATS reads it as one part of a subject that is not a wildcard.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>'))
}

type Credentials = (String, Option<String>);

/// Splits a server's URL into the address and the credentials: user and password, or a token alone. The client logs
/// addresses as they are, so they must not hold credentials.
fn split_credentials(server: &str) -> (String, Option<Credentials>) {
    let (scheme, rest) = server.split_once("://").unwrap_or(("nats", server));
    let Some((credentials, host)) = rest.rsplit_once('@') else { return (server.to_owned(), None) };
    let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    let credentials = match credentials.split_once(':') {
        Some((user, password)) => (decode(user), Some(decode(password))),
        None => (decode(credentials), None),
    };
    (format!("{scheme}://{host}"), Some(credentials))
}

/// Returns a config that trusts Mozilla's root certificates, as everything else here does.
fn mozilla() -> ClientConfig {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider supports the versions that rustls does")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

impl std::fmt::Debug for Nats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nats").field("settings", &self.settings).finish_non_exhaustive()
    }
}
