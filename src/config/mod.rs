//! One config for one process: defaults in code, then a file, then the environment, then flags.
//!
//! Each layer overrides the one before it, key by key. A wrong key or value is refused before anything starts, in one
//! line that names its origin and its key, because a role that runs with a mistyped threshold is worse than one that
//! does not run.

mod queues;
mod roles;
mod validate;
mod worker;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use atomic_phases::idempotency::Settings as Idempotency;
pub use atomic_phases::processes::Settings as Processes;
pub use atomic_phases::roles::completer::Settings as Completer;
pub use atomic_phases::roles::reaper::Settings as Reaper;
pub use atomic_phases::roles::worker::Settings as Worker;
use figment::error::Kind;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize;

pub use crate::api::Settings as Api;
pub use crate::database::Settings as Database;
pub use crate::demo::Settings as Demo;
pub use crate::demo::simulator::Settings as Simulator;
pub use crate::queues::Settings as Enqueuer;
pub use crate::queues::nats::Settings as Nats;
pub use crate::queues::redis::Settings as Redis;
pub use crate::receipts::Settings as Receipts;
use crate::role::Role;
pub use crate::stripe::Settings as Stripe;
pub use crate::stripe::sandbox::Settings as StripeSandbox;
pub use crate::telemetry::Settings as Log;
pub use roles::Roles;

/// Variables with this prefix set a key: `ROCKET_RIDES__API__LISTEN` is `api.listen`.
const PREFIX: &str = "ROCKET_RIDES__";

/// Variables that other programs use as well, and the keys that they set.
const PLAIN_VARIABLES: [(&str, &str); 4] = [
    ("DATABASE_URL", "database.url"),
    ("REDIS_URL", "redis.url"),
    ("NATS_URL", "nats.url"),
    ("STRIPE_API_KEY", "stripe.api_key"),
];

/// Sets the port of `api.listen` and leaves its address alone.
const PORT_VARIABLE: &str = "API_PORT";

/// Everything that one process needs to know.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each section's type says what it is")]
pub struct Config {
    pub roles: Roles,
    pub database: Database,
    pub api: Api,
    pub idempotency: Idempotency,
    pub processes: Processes,
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

/// `[shutdown]`: how the process ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// Time for the whole ordered drain. Below the 30 s that orchestrators wait before they kill.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Time between `/readyz` turning 503 and the listener closing. Behind a load balancer, a little longer than its
    /// health checks are apart; 0 where there is none.
    #[serde(with = "humantime_serde")]
    pub notice: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(25), notice: Duration::ZERO }
    }
}

/// The config's layer from the command line.
#[derive(Debug, Default, Clone)]
pub struct Flags {
    /// Run these roles and no others (Postgres excepted: it is a role only by `database.embedded`).
    pub only: Vec<Role>,
    /// Do not run these roles.
    pub without: Vec<Role>,
    /// `section.key=value`, as given.
    pub set: Vec<String>,
}

/// Why the config cannot be used. Its text is one line and never holds a secret's value.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `--config` names a file that cannot be read.
    #[error("cannot read the config file {}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A layer holds a key or a value that the config does not have.
    #[error("{origin}: {key}: {problem}")]
    Value {
        /// The file, variable or flag.
        origin: String,
        /// Dotted, as in `api.listen`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Each value is fine alone, but they contradict each other or the machine.
    #[error("{key}: {problem}")]
    Contradiction {
        /// The key to change.
        key: &'static str,
        /// Why, with the other key's name and value.
        problem: String,
    },
}

impl Config {
    /// Reads all layers and checks what they add up to.
    ///
    /// `environment` is passed in, so that tests neither change nor depend on the process's own.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
            figment = figment.merge(TomlFile { path, text });
        }
        let mut variables: Vec<_> = environment.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        // Where two variables set one key, the plain one wins, whatever order the environment has.
        variables.sort_by_key(|(name, _)| (!name.starts_with(PREFIX), name == PORT_VARIABLE));
        for (variable, value) in variables {
            figment = merge_variable(figment, &variable, &value)?;
        }
        for setting in &flags.set {
            figment = figment.merge(Setting::from_flag(setting)?);
        }
        // Lossy, because variables and flags are text: "8" must serve as a number and "0815" as a secret.
        let mut config: Self = figment.extract_lossy().map_err(|error| describe(&error))?;
        config.select_roles(flags);
        config.validate()?;
        Ok(config)
    }

    fn select_roles(&mut self, flags: &Flags) {
        for role in Role::ALL {
            if !flags.only.is_empty() && role != Role::Postgres {
                self.set_role(role, flags.only.contains(&role));
            }
            if flags.without.contains(&role) {
                self.set_role(role, false);
            }
        }
    }
}

fn merge_variable(figment: Figment, variable: &str, value: &str) -> Result<Figment, ConfigError> {
    let plain = PLAIN_VARIABLES.iter().find(|(name, _)| *name == variable).map(|(_, key)| (*key).to_owned());
    let prefixed = || variable.strip_prefix(PREFIX).map(|rest| rest.to_lowercase().replace("__", "."));
    let (key, value) = match plain.or_else(prefixed) {
        Some(key) if !is_dotted(&key) => {
            let problem = "expected ROCKET_RIDES__SECTION__KEY, as in ROCKET_RIDES__API__LISTEN".to_owned();
            return Err(ConfigError::Value { origin: variable.to_owned(), key, problem });
        }
        Some(key) => (key, value.to_owned()),
        None if variable == PORT_VARIABLE => ("api.listen".to_owned(), with_port(&figment, value)?.to_string()),
        None => return Ok(figment),
    };
    Ok(figment.merge(Setting { origin: variable.to_owned(), key, value }))
}

/// Whether it is of the form `section.key`.
fn is_dotted(key: &str) -> bool {
    key.contains('.') && key.split('.').all(|part| !part.is_empty())
}

fn with_port(figment: &Figment, port: &str) -> Result<SocketAddr, ConfigError> {
    let listen = figment.extract_inner::<SocketAddr>("api.listen").unwrap_or_else(|_| Api::default().listen);
    let port = port.parse().map_err(|_| ConfigError::Value {
        origin: PORT_VARIABLE.to_owned(),
        key: "api.listen".to_owned(),
        problem: format!("{port:?} is not a port (0 to 65535)"),
    })?;
    Ok(SocketAddr::new(listen.ip(), port))
}

/// The config file; figment's own provider would silently skip a file that is missing.
struct TomlFile<'a> {
    path: &'a Path,
    text: String,
}

impl Provider for TomlFile<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.path.display().to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Toml::string(&self.text).data()
    }
}

/// One key from a variable or a flag, with its origin for error messages.
struct Setting {
    origin: String,
    key: String,
    value: String,
}

impl Setting {
    fn from_flag(setting: &str) -> Result<Self, ConfigError> {
        let origin = "--set".to_owned();
        match setting.split_once('=') {
            Some((key, value)) if is_dotted(key.trim()) => {
                Ok(Self { origin, key: key.trim().to_owned(), value: value.trim().to_owned() })
            }
            _ => Err(ConfigError::Value {
                origin,
                key: setting.to_owned(),
                problem: "expected section.key=value, as in api.listen=127.0.0.1:8080".to_owned(),
            }),
        }
    }
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.key, Value::from(self.value.clone()));
        let dict = nested.into_dict().expect("a nested key is a dictionary");
        Ok(Profile::Default.collect(dict))
    }
}

/// Whether the key at `path` holds a secret that no error may repeat.
fn is_secret(path: &[String]) -> bool {
    matches!(path.last().map(String::as_str), Some("api_key" | "url" | "smtp_url"))
}

fn describe(error: &figment::Error) -> ConfigError {
    let origin = error.metadata.as_ref().map_or_else(|| "config".to_owned(), |metadata| metadata.name.to_string());
    let path = &error.path;
    let problem = match &error.kind {
        Kind::UnknownField(_, expected) => {
            format!("there is no such key here; there are {}", expected.join(", "))
        }
        // figment prints a value that has the wrong type. If it is a secret, the error must not repeat it.
        Kind::InvalidType(_, expected) if is_secret(path) => format!("expected {expected}"),
        kind => kind.to_string(),
    };
    let key = if path.is_empty() { "(whole file)".to_owned() } else { path.join(".") };
    ConfigError::Value { origin, key, problem: problem.replace('\n', " ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)], flags: &Flags) -> Result<Config, String> {
        let file = std::env::temp_dir().join(format!("rocket-rides-config-{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&file, text).expect("write the file");
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let loaded = Config::load(Some(&file), environment, flags);
        std::fs::remove_file(&file).expect("remove the file");
        loaded.map_err(|error| error.to_string().replace(&file.display().to_string(), "FILE"))
    }

    const BASE: &str = "[database]\nurl = 'postgres://localhost/x'\n[stripe]\napi_key = 'sk_test_1'\n";

    #[test]
    fn later_layers_win() {
        let text = format!("{BASE}[api]\nlisten = '127.0.0.1:1'\n[reaper]\nbatch = 7\n");
        let flags = Flags { set: vec!["api.listen=127.0.0.1:3".into()], ..Flags::default() };
        let environment = [("ROCKET_RIDES__API__LISTEN", "127.0.0.1:2"), ("ROCKET_RIDES__REAPER__BATCH", "8")];
        let config = load(&text, &environment, &flags).expect("valid");
        assert_eq!(config.api.listen.port(), 3);
        assert_eq!(config.reaper.batch, 8);
        let config = load(&text, &[("API_PORT", "4")], &Flags::default()).expect("valid");
        assert_eq!(config.api.listen.to_string(), "127.0.0.1:4");
        assert_eq!(config.reaper.batch, 7);
    }

    #[test]
    fn a_numeric_secret_is_a_secret() {
        use secrecy::ExposeSecret;
        let config = load(BASE, &[("STRIPE_API_KEY", "0815")], &Flags::default()).expect("valid");
        assert_eq!(config.stripe.api_key.expose_secret(), "0815");
        assert!(!format!("{config:?}").contains("0815"));
    }

    #[test]
    fn errors_name_origin_and_key() {
        let error = load(&format!("{BASE}[api]\nlisen = 'x'\n"), &[], &Flags::default()).expect_err("unknown key");
        assert!(error.starts_with("FILE: api.lisen: there is no such key"), "{error}");
        let error = load(&format!("{BASE}[reaper]\nbatch = 'many'\n"), &[], &Flags::default()).expect_err("type");
        assert!(error.starts_with("FILE: reaper.batch: "), "{error}");
        let error = load(BASE, &[("ROCKET_RIDES__REAPER__BATHC", "1")], &Flags::default()).expect_err("unknown");
        assert!(error.starts_with("ROCKET_RIDES__REAPER__BATHC: reaper.bathc: "), "{error}");
        let error = load(BASE, &[("API_PORT", "70000")], &Flags::default()).expect_err("port");
        assert!(error.starts_with("API_PORT: api.listen: "), "{error}");
        let flags = Flags { set: vec!["reaper".into()], ..Flags::default() };
        let error = load(BASE, &[], &flags).expect_err("no value");
        assert!(error.starts_with("--set: reaper: expected section.key=value"), "{error}");
        let error = load("[reaper\n", &[], &Flags::default()).expect_err("not TOML");
        assert!(error.starts_with("FILE: "), "{error}");
    }

    #[test]
    fn roles_follow_the_flags() {
        let flags =
            Flags { only: vec![Role::Reaper, Role::Completer], without: vec![Role::Completer], set: vec![] };
        let config = load(BASE, &[], &flags).expect("valid");
        assert_eq!(config.enabled_roles(), [Role::Reaper]);
    }

    #[test]
    fn contradictions_are_refused() {
        for (text, key) in [
            ("[idempotency]\nlock_timeout = '20s'\n", "idempotency.lock_timeout"),
            ("[api]\nlisten = '0.0.0.0:5000'\n", "api.listen"),
            ("[reaper]\nretention = '1s'\n", "reaper.retention"),
            ("[reaper]\nbatch = 0\n", "reaper.batch"),
            ("[enqueuer]\npush_timeout = '15s'\n", "enqueuer.lease"),
            ("[enqueuer]\nqueue = 'redis'\n", "enqueuer.queue: is \"redis\", and redis.url is missing"),
            ("[enqueuer]\nqueue = 'nats'\n", "enqueuer.queue: is \"nats\", and nats.url is missing"),
            ("[redis]\nmarker_ttl = '30s'\n", "redis.marker_ttl"),
            ("[redis]\nqueue = 'a b'\n", "redis.queue"),
            ("[redis]\nnamespace = ' '\n", "redis.namespace"),
            ("[redis.classes]\nreceipt = 'receipt'\n", "redis.classes"),
            ("[nats]\nduplicate_window = '30s'\n", "nats.duplicate_window"),
            ("[nats]\nstream = 'a.b'\n", "nats.stream"),
            ("[nats]\nsubject_prefix = 'a.>'\n", "nats.subject_prefix"),
            ("[nats]\nreplicas = 0\n", "nats.replicas"),
            ("[roles]\nsimulator = true\napi = false\n", "roles.simulator"),
            ("[worker]\nconcurrency = 0\n", "worker.concurrency"),
            ("[worker]\nlease = '14s'\n", "worker.lease"),
            ("[receipts]\nfrom = 'nobody'\n", "receipts.from"),
            ("[receipts]\ntransport = 'smtp'\nsmtp_url = 'smtps://mx'\n", "receipts.from: still"),
            ("[receipts]\ntransport = 'smtp'\nfrom = 'a@b.test'\n", "receipts.smtp_url: missing"),
            (
                "[receipts]\ntransport = 'smtp'\nfrom = 'a@b.test'\nsmtp_url = 'http://mx'\n",
                "receipts.smtp_url: is not",
            ),
        ] {
            let error = load(&format!("{BASE}{text}"), &[], &Flags::default()).expect_err(text);
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn the_shipped_files_are_valid() {
        for (file, environment) in [
            ("config/dev.toml", vec![]),
            (
                "config/production.toml",
                vec![
                    ("DATABASE_URL".to_owned(), "postgres://db/rides?sslmode=verify-full".to_owned()),
                    ("STRIPE_API_KEY".to_owned(), "sk_live_x".to_owned()),
                ],
            ),
        ] {
            Config::load(Some(Path::new(file)), environment, &Flags::default()).expect(file);
        }
    }
}
