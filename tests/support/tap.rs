//! A tap between the program and Postgres, for the mutants in `tests/mutants`: it records which test causes which
//! statement, or replaces a statement by a mutant of it. So a mutant needs no build.
//!
//! Two variables turn it on; without them there is no tap. The tests' own connections never go through it.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, OnceLock};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use super::framing::{self, Messages, TERMINATE, tagged, untagged};
use super::temp::TempDir;

/// A file to which a line of JSON is added for each statement of each test: `{"test": …, "sql": …}`.
const RECORD: &str = "SQL_TAP_RECORD";
/// A file with a JSON object of statements and what is sent in their place.
const REPLACE: &str = "SQL_TAP_REPLACE";

static TAP: LazyLock<Option<Tap>> = LazyLock::new(|| {
    let path = |variable| std::env::var_os(variable).map(PathBuf::from);
    let (record, replace) = (path(RECORD), path(REPLACE));
    (record.is_some() || replace.is_some()).then(|| Tap {
        record: record.map(|path| {
            let file = OpenOptions::new().create(true).append(true).open(path).expect("a file to record to");
            Mutex::new(Record { file, tests: HashMap::new(), seen: HashSet::new() })
        }),
        replace: replace.map_or_else(HashMap::new, |path| {
            let text = std::fs::read(path).expect("a file of replacements");
            serde_json::from_slice(&text).expect("an object of statements")
        }),
    })
});

struct Tap {
    record: Option<Mutex<Record>>,
    replace: HashMap<String, String>,
}

struct Record {
    file: File,
    /// The test of each database.
    tests: HashMap<String, String>,
    /// Tests and statements that are in the file.
    seen: HashSet<(String, String)>,
}

/// Records that this database was made for the test on this thread, which libtest has named after it.
///
/// A test may make databases on other threads as well. Then it can be identified only if it is alone in its process.
pub fn name_database(database: &str) {
    let Some(record) = TAP.as_ref().and_then(|tap| tap.record.as_ref()) else { return };
    let mut named = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let test = match (named.next(), named.next()) {
        (Some(only), None) => only,
        _ => std::thread::current().name().unwrap_or_default().to_owned(),
    };
    record.lock().expect("no panic while locked").tests.insert(database.to_owned(), test);
}

/// The server, and the config that leads to it through the tap.
static WAYS: OnceLock<(Config, Config)> = OnceLock::new();

/// Returns the config with which the program reaches `server`: through the tap, if it is turned on.
///
/// The tap runs until the runtime ends.
pub async fn in_front_of(server: &Config) -> Config {
    let Some(tap) = TAP.as_ref() else { return server.clone() };
    let (dir, port) = (TempDir::new(), server.get_ports()[0]);
    let listener = UnixListener::bind(dir.path().join(format!(".s.PGSQL.{port}"))).expect("bind");
    let mut through = Config::new();
    through
        .host_path(dir.path())
        .port(port)
        .user(server.get_user().expect("a user"))
        // The relay supports no TLS at the start of a connection.
        .ssl_mode(SslMode::Disable);
    WAYS.set((server.clone(), through.clone())).expect("one cluster");
    let server = server.clone();
    tokio::spawn(async move {
        let _kept = dir;
        while let Ok((client, _)) = listener.accept().await {
            let server = server.clone();
            // The program or the server reports a connection that breaks.
            tokio::spawn(async move { relay(tap, client, &server).await });
        }
    });
    through
}

/// Returns the config of the same database that does not lead through the tap.
pub fn past(config: &Config) -> Config {
    let ways = WAYS.get().filter(|(_, through)| through.get_hosts() == config.get_hosts());
    let Some((server, _)) = ways else { return config.clone() };
    let mut direct = server.clone();
    if let Some(database) = config.get_dbname() {
        direct.dbname(database);
    }
    direct
}

async fn relay(tap: &Tap, client: UnixStream, server: &Config) -> std::io::Result<()> {
    let (from, mut to_client) = client.into_split();
    let mut client = Messages::new(from);
    let (mut from_server, mut to_server) = tokio::io::split(framing::dial(server).await?);
    let Some(startup) = client.next(untagged).await? else { return Ok(()) };
    to_server.write_all(&startup).await?;
    let database = parameter(&startup, "database");
    let forward = async {
        while let Some(message) = client.next(tagged).await? {
            let last = message[0] == TERMINATE;
            let message = framing::with_sql(message, |sql| tap.statement(database.as_deref(), sql));
            to_server.write_all(&message).await?;
            if last {
                break;
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = forward => ended,
        ended = tokio::io::copy(&mut from_server, &mut to_client) => ended.map(drop),
    }
}

impl Tap {
    /// Records a statement. Returns the one that is sent in its place, if there is one.
    fn statement(&self, database: Option<&str>, sql: &str) -> Option<String> {
        if let Some(record) = &self.record {
            record.lock().expect("no panic while locked").add(database.unwrap_or_default(), sql);
        }
        self.replace.get(sql).cloned()
    }
}

impl Record {
    fn add(&mut self, database: &str, sql: &str) {
        let test = self.tests.get(database).cloned().unwrap_or_default();
        if self.seen.insert((test.clone(), sql.to_owned())) {
            writeln!(self.file, "{}", json!({"test": test, "sql": sql})).expect("write");
        }
    }
}

/// Returns a parameter of the first message of a connection: after its length and the version come names and values.
fn parameter(startup: &[u8], name: &str) -> Option<String> {
    let words: Vec<&[u8]> = startup.get(8..)?.split(|byte| *byte == 0).collect();
    let (pairs, _) = words.as_chunks::<2>();
    let value = pairs.iter().find(|[key, _]| *key == name.as_bytes()).map(|[_, value]| value);
    value.map(|value| String::from_utf8_lossy(value).into_owned())
}
