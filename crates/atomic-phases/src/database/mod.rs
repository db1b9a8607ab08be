//! The one pool that all roles share.
//!
//! [`Database`] runs single statements and hands out no connection. So no connection is held during a foreign call, and
//! no transaction stays open. (A [`Session`] is for a migration, never for requests.) A phase that must be atomic is
//! one statement, and the phases of many requests share one statement ([`Batched`]).

mod batched;
mod session;
pub mod tls;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bb8_postgres::PostgresConnectionManager;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use batched::Queues;
pub use batched::{Batched, column};
pub use session::Session;

/// Parameters of a statement.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// How long a connection attempt may take. A server that has not answered by then counts as down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a statement waits for a row that another session has locked. The program locks no row for longer than a
/// flush. A statement that waits longer waits for a person or a hung process; it fails, so that requests behind it need
/// not wait too.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Every statement here is a point access or walks an index. While a table is still empty, the planner concludes that
/// it is best to read the whole table, or a whole index for a merge, a hash or a materialized join. A prepared
/// statement would keep that plan while the table grows. So these plans are switched off; nested loops over index
/// look-ups are right at every size. (An update that was planned just after a table of a few hundred rows was analyzed
/// may still walk its index; the next analyze, a minute later, ends that.)
///
/// What must be flushed is flushed, even if the role or the database is set to `synchronous_commit = off`. All other
/// settings flush as well, and stay.
const SESSION: &str = "
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off;
    SET enable_memoize = off; SET plan_cache_mode = force_generic_plan;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// Why a statement did not give an answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DatabaseError {
    /// All connections were busy for the whole of [`PoolSettings::checkout_timeout`], or none could be opened.
    #[error("no database connection became free in time")]
    Busy,
    /// The server cannot be reached.
    #[error("cannot connect to the database")]
    Connect(#[source] Arc<tokio_postgres::Error>),
    /// The connection broke or the server went away, so the statement may or may not have been carried out.
    #[error("the database connection was lost")]
    Lost(#[source] Option<Arc<tokio_postgres::Error>>),
    /// The server refused the statement; nothing of it was carried out.
    #[error("the database refused a statement: {}", refusal(.0))]
    Refused(Arc<tokio_postgres::Error>),
}

impl DatabaseError {
    /// Whether the same statement may well succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy | Self::Connect(_) | Self::Lost(_) => true,
            Self::Refused(error) => is_transient(error),
        }
    }

    /// Whether the values caused the refusal, so that the statement would succeed with others: classes 22 (a value does
    /// not fit), 23 (a constraint) and 54 (too large for an index).
    pub fn is_data_error(&self) -> bool {
        match self {
            Self::Busy | Self::Connect(_) | Self::Lost(_) => false,
            Self::Refused(error) => {
                error.code().is_some_and(|code| matches!(code.code().get(..2), Some("22" | "23" | "54")))
            }
        }
    }

    /// Whether the statement broke a constraint (class 23), for example because a row that exists already excludes the
    /// new one.
    pub fn is_constraint_violation(&self) -> bool {
        matches!(self, Self::Refused(error) if class(error) == Some("23"))
    }

    /// Whether one row of many caused the refusal, so that the statement would succeed for the others: its values do
    /// not fit, or another session has it locked.
    fn is_row_error(&self) -> bool {
        let Self::Refused(error) = self else { return false };
        // A value that cannot be encoded gives an error without a code.
        self.is_data_error() || error.code().is_none_or(|code| *code == SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether another session was in the way: its lock was not released in time, or there was a deadlock or a
    /// serialization failure. The same statement succeeds once that session is done.
    pub fn is_contention(&self) -> bool {
        self.is_conflict()
            || matches!(self, Self::Refused(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
    }

    /// Whether a conflict with other statements undid this one as a whole: a deadlock or a serialization failure.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(error) if class(error) == Some("40"))
    }
}

/// Returns the server's message and code, because tokio-postgres itself prints only "db error". The detail is left out:
/// it quotes rows.
fn refusal(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |error| format!("{} ({})", error.message(), error.code().code()))
}

/// Classes 40 (serialization, deadlock), 53 (out of resources), 57 (shutting down, cancelled), 25006 (a replica), 55P03
/// (a lock was not granted within the session's `lock_timeout`).
fn is_transient(error: &tokio_postgres::Error) -> bool {
    matches!(class(error), Some("40" | "53" | "57"))
        || error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
        || error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Returns the first two characters of the SQLSTATE, which are its class.
fn class(error: &tokio_postgres::Error) -> Option<&str> {
    error.code().and_then(|code| code.code().get(..2))
}

/// Returns a statement that is put together when the program starts as a text that is never freed. Equal texts are
/// stored once.
pub fn intern(sql: String) -> &'static str {
    static TEXTS: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    match texts.get(sql.as_str()) {
        Some(known) => known,
        None => {
            let sql: &'static str = sql.leak();
            texts.insert(sql);
            sql
        }
    }
}

/// How the pool behaves.
#[derive(Debug, Clone, Copy)]
pub struct PoolSettings {
    /// Connections at most.
    pub size: u32,
    /// How long a statement waits for a free connection.
    pub checkout_timeout: Duration,
    /// How long a statement may take. One that takes longer hangs on a dead network, and its connection is closed.
    pub statement_timeout: Duration,
    /// The name of these sessions in `pg_stat_activity`.
    pub application_name: &'static str,
}

impl PoolSettings {
    /// Returns settings for a small pool, which waits some seconds for a connection or a statement.
    pub fn new(application_name: &'static str) -> Self {
        Self {
            size: 16,
            checkout_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            application_name,
        }
    }
}

/// The pool.
#[derive(Debug, Clone)]
pub struct Database {
    pool: bb8::Pool<Manager>,
    /// Opens connections beside the pool.
    manager: Arc<Manager>,
    statement_timeout: Duration,
    queues: Arc<Queues>,
    process: Option<Uuid>,
}

impl Database {
    /// Makes a trial connection and opens the pool. So a wrong address or password is reported here, with its reason,
    /// and not as "timed out" by the first request.
    pub async fn connect(
        config: tokio_postgres::Config,
        tls: MakeRustlsConnect,
        settings: PoolSettings,
    ) -> Result<Self, DatabaseError> {
        let mut config = config;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config.application_name(settings.application_name);
        let manager = Manager { postgres: PostgresConnectionManager::new(config, tls) };
        let probe = bb8::ManageConnection::connect(&manager).await?;
        drop(probe);
        let pool = bb8::Pool::builder()
            .max_size(settings.size)
            .connection_timeout(settings.checkout_timeout)
            // A broken connection is noticed when it is returned; asking the server at each checkout costs 20 to
            // 70 µs a statement.
            .test_on_check_out(false)
            .error_sink(Box::new(LogConnectErrors))
            .build(manager.clone())
            .await?;
        let statement_timeout = settings.statement_timeout;
        Ok(Self { pool, manager: Arc::new(manager), statement_timeout, queues: Arc::default(), process: None })
    }

    /// Returns the same pool for this process: leases that are taken with it carry the process's id. A lease without one is
    /// never handed back; it runs out.
    pub fn of_process(&self, process: Uuid) -> Self {
        Self { process: Some(process), queues: Arc::default(), ..self.clone() }
    }

    /// Returns the process whose id its leases carry.
    pub fn process(&self) -> Option<Uuid> {
        self.process
    }

    /// Returns a pool of one connection beside this one, for statements that must not wait behind those of requests. It
    /// is opened when it is needed. None of its statements takes longer than `timeout`.
    pub fn beside(&self, timeout: Duration) -> Self {
        let pool = bb8::Pool::builder()
            .max_size(1)
            .connection_timeout(timeout)
            .test_on_check_out(false)
            .error_sink(Box::new(LogConnectErrors))
            .build_unchecked(Manager::clone(&self.manager));
        Self { pool, statement_timeout: timeout, queues: Arc::default(), ..self.clone() }
    }

    /// Runs one prepared statement in a transaction of its own and returns its rows.
    ///
    /// `sql` is prepared once per connection. When the caller is cancelled, the statement may still be carried out.
    pub async fn query(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>, DatabaseError> {
        let connection = self.checkout().await?;
        match tokio::time::timeout(self.statement_timeout, connection.query(sql, params)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(connection.classify(error)),
            Err(_) => {
                connection.unusable.store(true, Ordering::Relaxed);
                Err(DatabaseError::Lost(None))
            }
        }
    }

    /// As [`Database::query`], for a statement that returns one row or none.
    pub async fn query_opt(&self, sql: &'static str, params: Params<'_>) -> Result<Option<Row>, DatabaseError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Returns how many connections are in use, and how many are idle.
    pub fn connections(&self) -> (u32, u32) {
        let state = self.pool.state();
        (state.connections.saturating_sub(state.idle_connections), state.idle_connections)
    }

    /// Runs statements without parameters as one transaction, and discards their results.
    pub async fn script(&self, sql: &str) -> Result<(), DatabaseError> {
        let connection = self.checkout().await?;
        connection.client.batch_execute(sql).await.map_err(|error| connection.classify(error))
    }

    /// Returns a connection that was open a moment ago. Connections that closed while they were idle are skipped: after
    /// a restart of the server, each of them would otherwise make one statement fail.
    async fn checkout(&self) -> Result<bb8::PooledConnection<'_, Manager>, DatabaseError> {
        loop {
            let connection = self.pool.get().await.map_err(|error| match error {
                bb8::RunError::User(error) => error,
                bb8::RunError::TimedOut => DatabaseError::Busy,
            })?;
            if !connection.client.is_closed() {
                return Ok(connection);
            }
        }
    }
}

/// A client with the statements that it has prepared so far.
#[derive(Debug)]
struct Connection {
    client: Client,
    /// By the address and length of their text: two words to hash instead of a thousand characters.
    statements: Mutex<HashMap<(usize, usize), Statement>>,
    /// Set when the connection must not be used again: the server no longer answers, or is no longer a primary (after a
    /// failover, for example).
    unusable: AtomicBool,
}

impl Connection {
    async fn query(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
        let statement = self.prepare(sql).await?;
        self.client.query(&statement, params).await
    }

    async fn prepare(&self, sql: &'static str) -> Result<Statement, tokio_postgres::Error> {
        let place = (sql.as_ptr().addr(), sql.len());
        let known = self.statements.lock().expect("no panic while locked").get(&place).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.lock().expect("no panic while locked").insert(place, statement.clone());
        Ok(statement)
    }

    fn classify(&self, error: tokio_postgres::Error) -> DatabaseError {
        let Some(code) = error.code() else {
            return if self.client.is_closed() || error.is_closed() || is_io(&error) {
                DatabaseError::Lost(Some(Arc::new(error)))
            } else {
                DatabaseError::Refused(Arc::new(error))
            };
        };
        if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
            self.unusable.store(true, Ordering::Relaxed);
        }
        DatabaseError::Refused(Arc::new(error))
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}

fn connect_error(error: tokio_postgres::Error) -> DatabaseError {
    DatabaseError::Connect(Arc::new(error))
}

/// Opens connections for the pool: bb8-postgres connects; this adds the session's settings and the store of prepared
/// statements.
#[derive(Debug, Clone)]
struct Manager {
    postgres: PostgresConnectionManager<MakeRustlsConnect>,
}

impl bb8::ManageConnection for Manager {
    type Connection = Connection;
    type Error = DatabaseError;

    async fn connect(&self) -> Result<Connection, DatabaseError> {
        let client = self.postgres.connect().await.map_err(connect_error)?;
        let session = format!("SET lock_timeout = {}; {SESSION}", LOCK_TIMEOUT.as_millis());
        client.batch_execute(&session).await.map_err(connect_error)?;
        Ok(Connection { client, statements: Mutex::default(), unusable: AtomicBool::new(false) })
    }

    async fn is_valid(&self, connection: &mut Connection) -> Result<(), DatabaseError> {
        connection.client.simple_query("").await.map(|_| ()).map_err(|error| connection.classify(error))
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.client.is_closed() || *connection.unusable.get_mut()
    }
}

/// Logs why a connection could not be opened. The pool itself retries, and then reports only "timed out".
#[derive(Debug, Clone, Copy)]
struct LogConnectErrors;

impl bb8::ErrorSink<DatabaseError> for LogConnectErrors {
    fn sink(&self, error: DatabaseError) {
        tracing::warn!(error = crate::errors::chain(&error), "a database connection could not be opened");
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<DatabaseError>> {
        Box::new(*self)
    }
}
