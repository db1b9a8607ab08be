//! A private Redis that loses nothing, and the jobs that a worker would find in it.

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::queues::Queue;
use secrecy::SecretString;
use serde_json::Value;

use super::broker::Broker;
use super::eventually;
use super::server::Server;

pub struct RedisServer {
    pub server: Server,
}

impl RedisServer {
    /// Starts the server with more arguments; later ones override earlier ones.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let server = Server::start("redis-server", "redis-server", |address, dir| {
            let (port, dir) = (address.port().to_string(), dir.display().to_string());
            let own = ["--port", &port, "--bind", "127.0.0.1", "--dir", &dir, "--save", ""];
            let durable = ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"];
            own.iter().chain(&durable).chain(arguments).map(|argument| (*argument).to_owned()).collect()
        });
        Self { server }
    }

    /// Opens a connection, once the server has read its files.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a URL");
        // A long list takes longer than the client's half a second.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        eventually("Redis to be ready", async || {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.ok()?;
            redis::cmd("PING").exec_async(&mut connection).await.ok()?;
            Some(connection)
        })
        .await
    }

    /// Runs a command given as words.
    pub async fn run<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().expect("a word"));
        words.for_each(|word| {
            command.arg(word);
        });
        command.query_async(&mut self.connection().await).await.expect("an answer")
    }
}

impl Broker for RedisServer {
    const QUEUE: Queue = Queue::Redis;

    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn url(&self) -> String {
        format!("redis://{}", self.server.address)
    }

    fn set_url(config: &mut Config, url: String) {
        config.redis.url = Some(SecretString::from(url));
    }

    async fn depth(&self) -> usize {
        self.run("LLEN queue:default").await
    }

    async fn jobs(&self) -> Vec<Value> {
        let mut jobs: Vec<String> = self.run("LRANGE queue:default 0 -1").await;
        // Workers take from the other end.
        jobs.reverse();
        jobs.iter().map(|job| serde_json::from_str::<Value>(job).expect("JSON")["args"][0].take()).collect()
    }
}
