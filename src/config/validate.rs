//! Checks that the values fit each other.

use std::time::Duration;

use atomic_phases::database::LOCK_TIMEOUT;
use hyper::Uri;
use secrecy::ExposeSecret;

use super::{Config, ConfigError};
use crate::api::Auth;
use crate::role::Role;

/// The part of a lease that is left for the phases and for a short wait for connections, besides the two calls to
/// Stripe that one attempt may make (a look-up and a charge). If an attempt takes longer, the fence still keeps it from
/// writing.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// The part of an enqueuer's lease that is left for statements, besides the two pushes that it may have to wait for. If
/// they take longer, a job is pushed twice under one id.
const PUSH_MARGIN: Duration = Duration::from_secs(5);

/// How long a statement may take besides its wait for a row, which `LOCK_TIMEOUT` limits in every session.
const STATEMENT_MARGIN: Duration = Duration::from_secs(2);

/// How many beats a process must miss at least before others take it for dead: one is missed easily.
const MISSED_BEATS: u32 = 3;

/// The longest time that a setting may have; sums of such times do not overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long Stripe promises to remember an idempotency key.
const STRIPE_MEMORY: Duration = Duration::from_secs(24 * 3600);

impl Config {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.check_roles()?;
        self.check_times()?;
        self.check_bounds()?;
        self.check_worker()?;
        self.check_queues()?;
        self.check_addresses()
    }

    fn check_roles(&self) -> Result<(), ConfigError> {
        let roles = self.enabled_roles();
        require(roles.iter().any(|role| *role != Role::Postgres), "roles", || "every role is off".to_owned())?;
        require(self.runs(Role::Postgres) || self.database.url.is_some(), "database.url", || {
            "missing: set DATABASE_URL, or database.embedded = true for a private Postgres".to_owned()
        })?;
        let charges = self.runs(Role::Api) || self.runs(Role::Completer);
        require(!charges || !self.stripe.api_key.expose_secret().is_empty(), "stripe.api_key", || {
            "missing: set STRIPE_API_KEY (the sandbox takes any)".to_owned()
        })?;
        let somewhere = self.stripe.api_base.is_some() || self.runs(Role::StripeSandbox);
        require(!charges || !self.demo.enabled || somewhere, "stripe.api_base", || {
            "missing: with demo.enabled and without the role stripe_sandbox, say where to charge (the sandbox of \
             another process, or https://api.stripe.com with a test key)"
                .to_owned()
        })?;
        let target = self.runs(Role::Api) || self.simulator.api_base.is_some();
        require(!self.runs(Role::Simulator) || target, "roles.simulator", || {
            "has nothing to send to: turn roles.api on or set simulator.api_base".to_owned()
        })
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        for (key, value) in self.durations().into_iter().chain(self.worker_durations()) {
            require(value <= LONGEST, key, || "must not be longer than ten years".to_owned())?;
        }
        let attempt = self.stripe.timeout * 2 + LEASE_MARGIN;
        require(self.idempotency.lock_timeout >= attempt, "idempotency.lock_timeout", || {
            format!("must be at least {attempt:?}: twice stripe.timeout ({:?}) plus 5 s", self.stripe.timeout)
        })?;
        let drain = self.stripe.timeout * 2 + self.shutdown.notice;
        require(self.shutdown.deadline >= drain, "shutdown.deadline", || {
            format!(
                "must be at least {drain:?}: twice stripe.timeout plus shutdown.notice, to finish a charge under way"
            )
        })?;
        let memory = STRIPE_MEMORY.saturating_sub(self.idempotency.lock_timeout);
        require(self.stripe.key_retention <= memory, "stripe.key_retention", || {
            format!("must be at most {memory:?}: Stripe's 24 h less idempotency.lock_timeout")
        })?;
        let in_use = self.completer.grace.max(self.idempotency.lock_timeout);
        require(self.reaper.retention > in_use, "reaper.retention", || {
            format!("must be longer than completer.grace and idempotency.lock_timeout ({in_use:?})")
        })?;
        let statement = LOCK_TIMEOUT + STATEMENT_MARGIN;
        require(self.database.statement_timeout >= statement, "database.statement_timeout", || {
            format!("must be at least {statement:?}: a statement waits up to {LOCK_TIMEOUT:?} for a row")
        })?;
        let missed = self.processes.beat * MISSED_BEATS;
        require(self.processes.dead_after >= missed, "processes.dead_after", || {
            format!("must be at least {missed:?}: {MISSED_BEATS} times processes.beat")
        })?;
        require(self.completer.crash_grace <= self.completer.grace, "completer.crash_grace", || {
            format!("must not be longer than completer.grace ({:?})", self.completer.grace)
        })?;
        let pushes = self.enqueuer.push_timeout * 2 + PUSH_MARGIN;
        require(self.enqueuer.lease >= pushes, "enqueuer.lease", || {
            format!("must be at least {pushes:?}: twice enqueuer.push_timeout plus 5 s")
        })?;
        for (key, value) in [
            ("stripe.timeout", self.stripe.timeout),
            ("processes.beat", self.processes.beat),
            ("completer.poll_interval", self.completer.poll_interval),
            ("enqueuer.poll_interval", self.enqueuer.poll_interval),
            ("enqueuer.push_timeout", self.enqueuer.push_timeout),
            ("reaper.poll_interval", self.reaper.poll_interval),
            ("database.pool_timeout", self.database.pool_timeout),
            ("api.head_timeout", self.api.head_timeout),
            ("api.body_timeout", self.api.body_timeout),
            ("shutdown.deadline", self.shutdown.deadline),
        ] {
            require(!value.is_zero(), key, || "must be longer than 0 s".to_owned())?;
        }
        Ok(())
    }

    fn durations(&self) -> [(&'static str, Duration); 25] {
        [
            ("stripe.timeout", self.stripe.timeout),
            ("stripe.key_retention", self.stripe.key_retention),
            ("stripe_sandbox.key_retention", self.stripe_sandbox.key_retention),
            ("stripe_sandbox.faults.latency", self.stripe_sandbox.faults.latency),
            ("idempotency.lock_timeout", self.idempotency.lock_timeout),
            ("processes.beat", self.processes.beat),
            ("processes.dead_after", self.processes.dead_after),
            ("completer.grace", self.completer.grace),
            ("completer.crash_grace", self.completer.crash_grace),
            ("completer.retry_after", self.completer.retry_after),
            ("completer.poll_interval", self.completer.poll_interval),
            ("enqueuer.poll_interval", self.enqueuer.poll_interval),
            ("enqueuer.push_timeout", self.enqueuer.push_timeout),
            ("enqueuer.lease", self.enqueuer.lease),
            ("enqueuer.retry_after", self.enqueuer.retry_after),
            ("redis.marker_ttl", self.redis.marker_ttl),
            ("nats.duplicate_window", self.nats.duplicate_window),
            ("reaper.poll_interval", self.reaper.poll_interval),
            ("reaper.retention", self.reaper.retention),
            ("database.pool_timeout", self.database.pool_timeout),
            ("database.statement_timeout", self.database.statement_timeout),
            ("api.head_timeout", self.api.head_timeout),
            ("api.body_timeout", self.api.body_timeout),
            ("shutdown.notice", self.shutdown.notice),
            ("shutdown.deadline", self.shutdown.deadline),
        ]
    }

    fn check_bounds(&self) -> Result<(), ConfigError> {
        for (key, value, most) in [
            // The private Postgres takes 200 connections, which leaves some for people with psql.
            (
                "database.pool_size",
                i64::from(self.database.pool_size),
                if self.runs(Role::Postgres) { 180 } else { 1000 },
            ),
            ("api.connections", i64::try_from(self.api.connections).unwrap_or(i64::MAX), 1_000_000),
            ("completer.max_attempts", i64::from(self.completer.max_attempts), 1000),
            ("completer.concurrency", self.completer.concurrency, 10_000),
            ("enqueuer.batch", self.enqueuer.batch, 100_000),
            ("enqueuer.max_attempts", i64::from(self.enqueuer.max_attempts), 1000),
            ("reaper.batch", self.reaper.batch, 100_000),
        ] {
            require((1..=most).contains(&value), key, || format!("must be from 1 to {most}, not {value}"))?;
        }
        let simulator = &self.simulator;
        require(simulator.rate.is_finite() && simulator.rate > 0.0, "simulator.rate", || {
            format!("must be a number above 0, not {}", simulator.rate)
        })?;
        for (key, share) in [
            ("simulator.raise_error", simulator.raise_error),
            ("simulator.declined", simulator.declined),
            ("simulator.duplicate", simulator.duplicate),
            ("simulator.hang_up", simulator.hang_up),
            ("simulator.refund", simulator.refund),
            ("simulator.replay", simulator.replay),
        ] {
            require((0.0..=1.0).contains(&share), key, || format!("must be from 0 to 1, not {share}"))?;
        }
        self.stripe_sandbox
            .faults
            .validate()
            .map_err(|problem| ConfigError::Contradiction { key: "stripe_sandbox.faults", problem })
    }

    fn check_addresses(&self) -> Result<(), ConfigError> {
        let exposed = self.runs(Role::Api) && !self.api.listen.ip().is_loopback();
        require(!exposed || self.api.auth != Auth::Email || self.api.insecure_auth, "api.listen", || {
            format!(
                "{} is reachable from other machines, and api.auth = \"email\" lets anybody be anybody; \
                 set api.insecure_auth = true if that is meant",
                self.api.listen
            )
        })?;
        for (key, base) in
            [("stripe.api_base", &self.stripe.api_base), ("simulator.api_base", &self.simulator.api_base)]
        {
            let Some(base) = base else { continue };
            let usable = base.parse::<Uri>().is_ok_and(|uri| {
                uri.authority().is_some_and(|at| !at.as_str().contains('@'))
                    && matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.path() == "/"
            });
            require(usable, key, || "is not of the form https://host or http://host:port".to_owned())?;
        }
        Ok(())
    }
}

pub(super) fn require(holds: bool, key: &'static str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Contradiction { key, problem: problem() }) }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Flags};

    /// Loads a config that is valid, except perhaps for these settings.
    fn load(settings: &[String]) -> Result<(), String> {
        let base = ["database.url=postgres://localhost/x", "stripe.api_key=sk_test_1"];
        let set = base.into_iter().map(str::to_owned).chain(settings.iter().cloned()).collect();
        let flags = Flags { set, ..Flags::default() };
        Config::load(None, [], &flags).map(drop).map_err(|error| error.to_string())
    }

    /// Checks that `key` may be `inside` but not `outside`, with the other defaults, and that the error names `named`.
    fn assert_edge(key: &str, inside: &str, outside: &str, named: &str) {
        assert_eq!(load(&[format!("{key}={inside}")]), Ok(()), "{key}={inside}");
        let error = load(&[format!("{key}={outside}")]).expect_err(outside);
        assert!(error.starts_with(&format!("{named}: ")), "{key}={outside}: {error}");
    }

    #[test]
    fn times_that_depend_on_each_other_hold_at_their_edges() {
        for (key, inside, outside, named) in [
            ("idempotency.lock_timeout", "25s", "24s 999ms", "idempotency.lock_timeout"),
            ("stripe.timeout", "12s 500ms", "12s 501ms", "shutdown.deadline"),
            ("shutdown.deadline", "20s", "19s 999ms", "shutdown.deadline"),
            ("shutdown.notice", "5s", "5s 1ms", "shutdown.deadline"),
            ("stripe.key_retention", "23h 58m 30s", "23h 58m 30s 1ms", "stripe.key_retention"),
            ("reaper.retention", "5m 1ms", "5m", "reaper.retention"),
            ("completer.grace", "71h 59m 59s", "72h", "reaper.retention"),
            ("enqueuer.lease", "15s", "14s 999ms", "enqueuer.lease"),
            ("worker.lease", "15s", "14s 999ms", "worker.lease"),
            ("redis.marker_ttl", "30s 1ms", "30s", "redis.marker_ttl"),
            ("nats.duplicate_window", "30s 1ms", "30s", "nats.duplicate_window"),
            ("database.statement_timeout", "5s", "4s 999ms", "database.statement_timeout"),
            ("processes.dead_after", "3s", "2s 999ms", "processes.dead_after"),
            ("processes.beat", "1s 666ms", "1s 667ms", "processes.dead_after"),
            ("completer.crash_grace", "5m", "5m 1ms", "completer.crash_grace"),
        ] {
            assert_edge(key, inside, outside, named);
        }
    }

    #[test]
    fn numbers_and_times_hold_at_their_edges() {
        for (key, most) in [
            ("database.pool_size", 1000),
            ("api.connections", 1_000_000),
            ("completer.max_attempts", 1000),
            ("completer.concurrency", 10_000),
            ("enqueuer.batch", 100_000),
            ("enqueuer.max_attempts", 1000),
            ("reaper.batch", 100_000),
            ("worker.concurrency", 1000),
            ("worker.max_attempts", 1000),
        ] {
            assert_edge(key, "1", "0", key);
            assert_edge(key, &most.to_string(), &(most + 1).to_string(), key);
        }
        for key in [
            "stripe.timeout",
            "processes.beat",
            "completer.poll_interval",
            "enqueuer.poll_interval",
            "enqueuer.push_timeout",
            "worker.poll_interval",
            "reaper.poll_interval",
            "receipts.timeout",
            "database.pool_timeout",
            "api.head_timeout",
            "api.body_timeout",
        ] {
            assert_edge(key, "1ms", "0s", key);
        }
        for key in ["worker.keep_finished", "worker.retry_after", "completer.retry_after", "enqueuer.retry_after"] {
            assert_edge(key, "3650d", "3650d 1s", key);
        }
    }
}
