//! Redis and NATS, to drain the outbox into.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tokio::process::{Child, Command};

use super::process::free_port;
use crate::options::scratch_dir;

/// A start takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);
/// Begins the names of the servers' directories.
const DIR: &str = "queue-";
/// Where the service puts jobs unless it is configured otherwise.
const REDIS_LIST: &str = "queue:default";
const NATS_STREAM: &str = "RIDES";

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Answers when the job is on the disk.
    Redis,
    /// With its defaults: JetStream answers when it has written, and flushes every two minutes. Debian's version of the
    /// server does not have `sync_interval: always`.
    Nats,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Nats => "nats",
        }
    }

    /// Returns the name of the program, which is also the name of Debian's package.
    fn program(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Nats => "nats-server",
        }
    }

    fn config(self, address: SocketAddr, dir: &Path) -> String {
        let port = address.port();
        match self {
            Self::Redis => format!(
                "bind 127.0.0.1\nport {port}\ndir {dir:?}\nsave \"\"\nappendonly yes\nappendfsync always\n\
                 maxmemory-policy noeviction\n"
            ),
            Self::Nats => format!("listen: \"{address}\"\njetstream {{ store_dir: {dir:?} }}\n"),
        }
    }

    fn command(self, config: &Path) -> Command {
        // Debian installs nats-server in a directory that is in root's `PATH` only.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(self.program());
        match self {
            Self::Redis => command.arg(config),
            Self::Nats => command.arg("--config").arg(config),
        };
        command.env("PATH", path);
        command
    }
}

/// A server that runs for one drain only, so that no drain finds the marks or the files of the one before.
pub(crate) struct Queue {
    kind: Kind,
    child: Child,
    address: SocketAddr,
    /// On the same disk as Postgres: elsewhere a flush may cost nothing.
    dir: PathBuf,
    client: Client,
}

enum Client {
    Redis(MultiplexedConnection),
    Nats(Context),
}

impl Queue {
    /// Starts the server, or returns what is missing on this machine.
    pub(crate) async fn start(kind: Kind) -> Result<Self, String> {
        let address = free_port();
        let dir = scratch_dir().join(format!("{DIR}{}-{}", kind.name(), address.port()));
        fs::create_dir_all(&dir).expect("make the queue's directory");
        let config = dir.join("config");
        fs::write(&config, kind.config(address, &dir)).expect("write the queue's config");
        let log = File::create(dir.join("log")).expect("create a log file");
        let spawned = kind
            .command(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                let program = kind.program();
                let what = match error.kind() {
                    io::ErrorKind::NotFound => "is not installed".to_owned(),
                    _ => format!("cannot be started ({error})"),
                };
                return Err(format!("{program} {what}; on Debian: apt-get install -y {program}"));
            }
        };
        let began = Instant::now();
        let client = loop {
            if let Some(client) = connect(kind, address).await {
                break client;
            }
            let ended = child.try_wait().expect("look after the queue");
            let log = dir.join("log");
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "{} did not become ready ({ended:?}); its log is {}",
                kind.program(),
                log.display()
            );
            tokio::time::sleep(LOOK).await;
        };
        Ok(Self { kind, child, address, dir, client })
    }

    /// Returns the settings that make an enqueuer deliver here.
    pub(crate) fn settings(&self) -> [String; 2] {
        let name = self.kind.name();
        [format!("enqueuer.queue={name}"), format!("{name}.url={name}://{}", self.address)]
    }

    /// Returns how many jobs are there, by the server's own counter, which does not read the jobs.
    pub(crate) async fn depth(&mut self) -> u64 {
        match &mut self.client {
            Client::Redis(connection) => {
                let length = redis::cmd("LLEN").arg(REDIS_LIST).query_async(connection).await;
                length.expect("ask for the list's length")
            }
            // The first push creates the stream.
            Client::Nats(context) => {
                context.get_stream(NATS_STREAM).await.map_or(0, |stream| stream.cached_info().state.messages)
            }
        }
    }

    /// Kills the server and removes its files.
    pub(crate) async fn stop(mut self) {
        self.child.kill().await.expect("kill the queue");
        let _ = fs::remove_dir_all(&self.dir);
    }
}

async fn connect(kind: Kind, address: SocketAddr) -> Option<Client> {
    match kind {
        Kind::Redis => {
            let client = redis::Client::open(format!("redis://{address}")).expect("a URL");
            // Under load an answer may take longer than the client's half a second.
            let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.ok()?;
            redis::cmd("PING").exec_async(&mut connection).await.ok()?;
            Some(Client::Redis(connection))
        }
        Kind::Nats => {
            let client = async_nats::connect(format!("nats://{address}")).await.ok()?;
            // The server listens before it has JetStream. This sends the raw request, because the client cannot parse
            // all of this answer of Debian's version.
            client.request("$JS.API.INFO", "".into()).await.ok()?;
            Some(Client::Nats(jetstream::new(client)))
        }
    }
}

/// Removes the directories of servers of an earlier run that was killed.
pub(crate) fn remove_left_overs() {
    let entries = fs::read_dir(scratch_dir()).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(DIR)) {
        let _ = fs::remove_dir_all(entry.path());
    }
}
