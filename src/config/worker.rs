//! `[worker]` and `[receipts]`: how the default queue is worked, and where receipts go.

use std::path::PathBuf;
use std::time::Duration;

use lettre::message::Mailbox;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::validate::require;
use super::{Config, ConfigError, Role};
use crate::receipts::smtp::Smtp;

/// What a worker's lease should outlast besides handing a mail over: the statements around that.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// `[worker]`: working the default queue, the table `jobs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// Jobs worked at once, and the most that are taken at once: a job that waits for a slot would use up its lease.
    /// While a job waits for a mail server it holds no database connection, so it is the mail server that sets the
    /// limit: common ones take ten connections from one client without complaint.
    pub concurrency: u32,
    /// How long a job is its worker's own without a sign of life. A heartbeat extends it every third of this, so it
    /// bounds not how long a job may take but how long a dead process's jobs wait.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Pause after a job's first failed attempt; it doubles with each further one, up to six hours, with jitter.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// A job that was tried this often is a dead letter. With pauses of 10 s to 6 h, 30 attempts take a little under
    /// five days, which is how long mail servers themselves go on trying (RFC 5321, 4.5.4.1).
    pub max_attempts: i32,
    /// Pause between looks; an enqueuer of this process that delivers wakes the worker at once.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// How long a finished job stays where a person can see it, before the reaper removes it. The receipt itself is
    /// recorded elsewhere and stays, so a day is for looking into what went wrong yesterday.
    #[serde(with = "humantime_serde")]
    pub keep_finished: Duration,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            concurrency: 8,
            lease: Duration::from_secs(30),
            retry_after: Duration::from_secs(10),
            max_attempts: 30,
            poll_interval: Duration::from_secs(5),
            keep_finished: Duration::from_secs(24 * 3600),
        }
    }
}

/// `[receipts]`: how receipts leave.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Receipts {
    /// To a directory or to a mail server.
    pub transport: Transport,
    /// Where `transport = "file"` puts receipts, one file each, as any mail program opens them.
    pub dir: PathBuf,
    /// The mail server of `transport = "smtp"`, with user and password: `smtps://` speaks TLS from the first byte,
    /// `smtp://` insists on STARTTLS before it says anything. To this machine itself `smtp://` is plain; `?tls=none`
    /// makes it so anywhere, and `?tls=required` nowhere.
    pub smtp_url: Option<SecretString>,
    /// Whom receipts are from, as in `Rocket Rides <receipts@your.domain>`. Its domain ends their message ids.
    pub from: String,
    /// Deadline for handing one receipt over, from connecting to being told that it was taken. It fits into the
    /// worker's lease, so that nobody else starts meanwhile, and into the shutdown's deadline.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Receipts {
    fn default() -> Self {
        Self {
            transport: Transport::File,
            dir: PathBuf::from("var/receipts"),
            smtp_url: None,
            from: "Rocket Rides <receipts@rocket-rides.example>".to_owned(),
            timeout: Duration::from_secs(10),
        }
    }
}

/// A way in which receipts leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Each a file in `receipts.dir`: nothing to install, and a repeated delivery replaces the file with itself.
    File,
    /// To the mail server at `receipts.smtp_url`.
    Smtp,
}

impl Config {
    pub(super) fn check_worker(&self) -> Result<(), ConfigError> {
        let (worker, receipts) = (&self.worker, &self.receipts);
        for (key, value) in [
            ("worker.concurrency", i64::from(worker.concurrency)),
            ("worker.max_attempts", worker.max_attempts.into()),
        ] {
            require((1..=1000).contains(&value), key, || format!("must be from 1 to 1000, not {value}"))?;
        }
        for (key, value) in [("worker.poll_interval", worker.poll_interval), ("receipts.timeout", receipts.timeout)]
        {
            require(!value.is_zero(), key, || "must be longer than 0 s".to_owned())?;
        }
        let attempt = receipts.timeout + LEASE_MARGIN;
        require(worker.lease >= attempt, "worker.lease", || {
            format!("must be at least {attempt:?}: receipts.timeout ({:?}) plus 5 s", receipts.timeout)
        })?;
        let drain = receipts.timeout + self.shutdown.notice;
        require(!self.runs(Role::Worker) || self.shutdown.deadline >= drain, "shutdown.deadline", || {
            format!("must be at least {drain:?}: receipts.timeout plus shutdown.notice, to finish a job under way")
        })?;
        self.check_receipts()
    }

    fn check_receipts(&self) -> Result<(), ConfigError> {
        let from = self.receipts.from.parse::<Mailbox>();
        require(from.is_ok(), "receipts.from", || {
            "is not of the form receipts@your.domain or Your Name <receipts@your.domain>".to_owned()
        })?;
        if self.receipts.transport == Transport::File || !self.runs(Role::Worker) {
            return Ok(());
        }
        let nobodys = from.is_ok_and(|from| from.email.domain().ends_with(".example"));
        require(!nobodys, "receipts.from", || {
            "still has the domain of nobody: with receipts.transport = \"smtp\", say whom receipts are from"
                .to_owned()
        })?;
        let url = self.receipts.smtp_url.as_ref().ok_or_else(|| "missing: set it in the environment".to_owned());
        let server = url.and_then(|url| Smtp::parse(url.expose_secret()).map_err(|error| error.to_string()));
        server.map(drop).map_err(|problem| ConfigError::Contradiction { key: "receipts.smtp_url", problem })
    }

    pub(super) fn worker_durations(&self) -> [(&'static str, Duration); 5] {
        [
            ("worker.lease", self.worker.lease),
            ("worker.retry_after", self.worker.retry_after),
            ("worker.poll_interval", self.worker.poll_interval),
            ("worker.keep_finished", self.worker.keep_finished),
            ("receipts.timeout", self.receipts.timeout),
        ]
    }
}
