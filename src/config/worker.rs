//! Checks the sections of the worker and of receipts.

use std::time::Duration;

use lettre::message::Mailbox;
use secrecy::ExposeSecret;

use super::validate::require;
use super::{Config, ConfigError};
use crate::receipts::Transport;
use crate::receipts::smtp::Smtp;
use crate::role::Role;

/// The part of a worker's lease that is left for statements, besides the time in which a mail is handed over.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

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
        let is_example_domain = from.is_ok_and(|from| from.email.domain().ends_with(".example"));
        require(!is_example_domain, "receipts.from", || {
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
