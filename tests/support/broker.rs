//! What the tests need from any queue outside the database.

use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::queues::Queue;
use serde_json::Value;

use super::server::Server;

pub trait Broker: Sized {
    const QUEUE: Queue;

    async fn start() -> Self;

    fn server(&mut self) -> &mut Server;

    fn url(&self) -> String;

    fn set_url(config: &mut Config, url: String);

    /// Returns how many jobs wait.
    async fn depth(&self) -> usize;

    /// Returns the arguments of the jobs that wait, in the order in which workers get them.
    async fn jobs(&self) -> Vec<Value>;

    /// Makes the enqueuer deliver here.
    fn configure(&self, config: &mut Config) {
        config.roles.enqueuer = true;
        config.enqueuer.queue = Self::QUEUE;
        Self::set_url(config, self.url());
    }

    /// Returns the same settings for the command line.
    fn settings(&self) -> [String; 2] {
        let queue = Self::QUEUE.name();
        [format!("enqueuer.queue={queue}"), format!("{queue}.url={}", self.url())]
    }
}
