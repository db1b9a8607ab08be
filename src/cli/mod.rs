//! Runs the command that the command line names, and returns its exit code.

mod jobs;
mod visit;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use atomic_phases::database::{Database, DatabaseError};
use atomic_phases::errors::chain;
use atomic_phases::idempotency::Engine;
use atomic_phases::idempotency::parked;
use atomic_phases::idempotency::points::PointsError;
use atomic_phases::processes;
use atomic_phases::rules::{Check, Circumstances, RuleError};
use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError, Flags};
use crate::database::OpenError;
use crate::database::schema::{self, Extent, SchemaError};
use crate::open_files;
use crate::operations;
use crate::queues::Queue;
use crate::role::Role;
use crate::supervisor::{RunError, Signals, StartError, Supervisor};
use crate::telemetry;
use jobs::Jobs;
use visit::Visit;

/// Books rocket rides and charges cards exactly once.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// The config file.
    #[arg(long, global = true, default_value = "config/dev.toml")]
    config: PathBuf,
    /// Run these roles only, separated by commas.
    #[arg(long, global = true, value_delimiter = ',', value_name = "ROLES")]
    only: Vec<Role>,
    /// Do not run these roles, separated by commas.
    #[arg(long, global = true, value_delimiter = ',', value_name = "ROLES")]
    without: Vec<Role>,
    /// Set a config key; may be repeated.
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the roles until a signal (the default).
    Run,
    /// Print the config that all layers add up to, without secrets.
    Config,
    /// Check every invariant over the database and Stripe's ledger; exit code 3 if one does not hold.
    Verify {
        /// Nothing is under way: also demand that every request has ended and every job is finished or dead.
        #[arg(long)]
        quiet: bool,
    },
    /// Bring a database of an earlier version to this program's, while the release before goes on serving.
    Migrate {
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
    },
    /// List the processes that work on the database, and those that ended within the last hour.
    Processes {
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: i64,
    },
    /// Look after keys that wait for a person.
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
    /// Look after jobs that wait for a person.
    Jobs {
        #[command(subcommand)]
        command: Jobs,
    },
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// List parked keys, those that have waited longest first.
    Parked {
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: i64,
    },
    /// Let parked keys be tried again.
    Retry {
        /// Their ids, as `keys parked` lists them.
        #[arg(required = true)]
        ids: Vec<i64>,
    },
}

/// Every way in which the process can fail.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("bad config")]
    Config(#[from] ConfigError),
    #[error("bad config: log.filter")]
    LogFilter(#[from] tracing_subscriber::filter::ParseError),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot start")]
    Start(#[from] StartError),
    #[error("ended with a failure")]
    Run(#[from] RunError),
    #[error("the database did not carry this out")]
    Database(#[from] DatabaseError),
    #[error("cannot verify")]
    Verify(#[from] RuleError),
    #[error("{0} of the invariants do not hold")]
    Violated(usize),
}

impl CliError {
    /// Returns the exit code. 69 and 78 are "unavailable" and "config" of sysexits.
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Config(_) | Self::LogFilter(_) => 78,
            Self::Start(StartError::Schema(_) | StartError::Open(OpenError::Url(_)) | StartError::Stripe(_)) => 78,
            Self::Start(StartError::Redis(_) | StartError::Nats(_)) => 78,
            Self::Start(StartError::Points(PointsError::Unknown { .. })) => 78,
            Self::Start(StartError::Open(_) | StartError::Database(_) | StartError::Points(_))
            | Self::Database(_) => 69,
            Self::Verify(_) => 69,
            Self::Violated(_) => 3,
            Self::Signals(_) | Self::Start(_) | Self::Run(_) => 1,
        })
    }
}

impl Cli {
    /// Runs the command and returns its exit code.
    pub async fn run(self) -> ExitCode {
        match self.execute().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                error.exit_code()
            }
        }
    }

    async fn execute(self) -> Result<(), CliError> {
        let flags = Flags { only: self.only, without: self.without, set: self.set };
        // A variable that is not UTF-8 text is not ours, so it is ignored.
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        let config = Config::load(Some(&self.config), std::env::vars_os().filter_map(text), &flags)?;
        match self.command.unwrap_or(Command::Run) {
            Command::Run => run(config).await,
            Command::Config => {
                print(&format!("{config:#?}"));
                Ok(())
            }
            Command::Verify { quiet } => verify(&config, quiet).await,
            Command::Migrate { plan } => migrate(&config, plan).await,
            Command::Processes { limit } => list_processes(&config, limit).await,
            Command::Keys { command } => keys(&config, command).await,
            Command::Jobs { command } => jobs(&config, command).await,
        }
    }
}

async fn run(config: Config) -> Result<(), CliError> {
    telemetry::init(&config.log)?;
    open_files::raise_limit();
    let signals = Signals::listen().map_err(CliError::Signals)?;
    // A signal during a slow start must not wait for it.
    let supervisor = tokio::select! {
        started = Supervisor::start(config) => started?,
        () = signals.first() => return Ok(()),
    };
    Ok(supervisor.run(signals.first()).await?)
}

async fn verify(config: &Config, at_rest: bool) -> Result<(), CliError> {
    let mut visit = Visit::begin(config).await?;
    let stripe = visit.stripe(config).await?;
    let jobs_stay = config.enqueuer.queue == Queue::Postgres;
    let (lock_timeout, grace) = (config.idempotency.lock_timeout, config.completer.grace);
    let engine = Engine::new(visit.database.clone(), lock_timeout, grace);
    let rules = operations::register(&engine, stripe, config.stripe.key_retention).rules();
    drop(engine);
    let check = Check { database: &visit.database, circumstances: Circumstances { at_rest, jobs_stay } };
    let report = check.ask(&rules).await;
    visit.end().await;
    let report = report?;
    print(report.to_string().trim_end());
    match report.violated().len() {
        0 => Ok(()),
        violated => Err(CliError::Violated(violated)),
    }
}

async fn migrate(config: &Config, plan: bool) -> Result<(), CliError> {
    if !plan {
        telemetry::init(&config.log)?;
    }
    let visit = Visit::without_check(config).await?;
    let done = if plan {
        print_plan(&visit.database).await
    } else {
        schema::migrate(&visit.database, Extent::Complete).await
    };
    visit.end().await;
    Ok(done.map_err(StartError::Schema)?)
}

async fn print_plan(database: &Database) -> Result<(), SchemaError> {
    let steps = schema::plan(database).await?;
    print(&format!("{} steps", steps.len()));
    for step in steps {
        print(&format!("to version {}: {} (locks {})", step.to, step.what, step.locks));
    }
    Ok(())
}

async fn keys(config: &Config, command: Keys) -> Result<(), CliError> {
    let visit = Visit::begin(config).await?;
    let done = match command {
        Keys::Parked { limit } => list_parked(&visit.database, limit).await,
        Keys::Retry { ids } => retry_parked(&visit.database, &ids).await,
    };
    visit.end().await;
    Ok(done?)
}

async fn list_processes(config: &Config, limit: i64) -> Result<(), CliError> {
    let visit = Visit::begin(config).await?;
    let done = processes::list(&visit.database, limit).await;
    visit.end().await;
    for process in done? {
        let processes::Listed { id, name, version, host, pid, ended, age, silent } = process;
        print(&format!(
            "{id}  {name}  {version}  {host}{}  started {} s ago, {} {} s ago",
            pid.map(|pid| format!(":{pid}")).unwrap_or_default(),
            age.as_secs(),
            if ended { "ended; last beat" } else { "last beat" },
            silent.as_secs(),
        ));
    }
    Ok(())
}

async fn jobs(config: &Config, command: Jobs) -> Result<(), CliError> {
    let visit = Visit::begin(config).await?;
    let done = command.run(&visit.database).await;
    visit.end().await;
    Ok(done?)
}

async fn list_parked(database: &Database, limit: i64) -> Result<(), DatabaseError> {
    let parked = parked::list(database, limit).await?;
    print(&format!("{} parked", parked.len()));
    for key in parked {
        print(&format!(
            "{}  {}  key {}  user {}  at {} after {} attempts, parked {} s ago: {}{}",
            key.key_id,
            key.operation,
            key.key,
            key.user_id,
            key.recovery_point,
            key.attempts,
            key.waiting.as_secs(),
            key.reason,
            key.last_error.map(|error| format!(" (last error: {error})")).unwrap_or_default(),
        ));
    }
    Ok(())
}

async fn retry_parked(database: &Database, ids: &[i64]) -> Result<(), DatabaseError> {
    let retried = parked::retry(database, ids).await?;
    for id in ids {
        print(&format!("{id}  {}", if retried.contains(id) { "will be tried again" } else { "is not parked" }));
    }
    Ok(())
}

/// Prints a line of a command's result. An error is ignored: it means that the reader has closed the pipe.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints an error for a person, not to the logs, which may not be set up yet.
fn complain(error: &CliError) {
    let _ = writeln!(std::io::stderr(), "rocket-rides-atomic: {}", chain(error));
}
