//! A private NATS with JetStream, and the jobs that a worker would find in it.

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt;
use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::queues::Queue;
use secrecy::SecretString;
use serde_json::Value;

use super::broker::Broker;
use super::eventually;
use super::server::Server;

pub struct NatsServer {
    pub server: Server,
}

impl NatsServer {
    /// Starts the server with more lines in its config.
    pub fn start_with(config: &str) -> Self {
        let server = Server::start("nats-server", "nats-server", |address, dir| {
            let file = dir.join("nats.conf");
            let store = dir.join("store");
            let text = format!("listen: \"{address}\"\njetstream {{ store_dir: {store:?} }}\n{config}\n");
            std::fs::write(&file, text).expect("write");
            vec!["--config".to_owned(), file.display().to_string()]
        });
        Self { server }
    }

    pub async fn context(&self) -> Context {
        let url = self.url();
        eventually("NATS to be ready", async || Some(jetstream::new(async_nats::connect(&url).await.ok()?))).await
    }
}

impl NatsServer {
    /// Works the oldest jobs as a worker does.
    pub async fn work(&self, count: usize) {
        let stream = self.context().await.get_stream("RIDES").await.expect("the stream");
        let config = pull::Config { durable_name: Some("worker".to_owned()), ..pull::Config::default() };
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let mut messages = consumer.fetch().max_messages(count).messages().await.expect("messages");
        while let Some(message) = messages.next().await {
            message.expect("a message").double_ack().await.expect("an acknowledgement");
        }
    }
}

impl Broker for NatsServer {
    const QUEUE: Queue = Queue::Nats;

    async fn start() -> Self {
        Self::start_with("")
    }

    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn url(&self) -> String {
        format!("nats://{}", self.server.address)
    }

    fn set_url(config: &mut Config, url: String) {
        config.nats.url = Some(SecretString::from(url));
    }

    async fn depth(&self) -> usize {
        let Ok(mut stream) = self.context().await.get_stream("RIDES").await else { return 0 };
        usize::try_from(stream.info().await.expect("info").state.messages).expect("fits")
    }

    async fn jobs(&self) -> Vec<Value> {
        let count = self.depth().await;
        let stream = self.context().await.get_stream("RIDES").await.expect("the stream");
        let config =
            pull::Config { ack_policy: AckPolicy::Explicit, max_ack_pending: -1, ..pull::Config::default() };
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let mut jobs = Vec::new();
        while jobs.len() < count {
            let mut messages = consumer.fetch().max_messages(10_000).messages().await.expect("messages");
            while let Some(message) = messages.next().await {
                let mut job: Value = serde_json::from_slice(&message.expect("a message").payload).expect("JSON");
                jobs.push(job["args"].take());
            }
        }
        jobs
    }
}
