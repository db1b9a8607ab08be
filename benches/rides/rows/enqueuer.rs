//! The outbox, drained: staged jobs into each of the queues that there are.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{Bench, fill, median};
use crate::report::{Bound, Row, grouped};
use crate::servers::postgres::Database;
use crate::servers::process::Process;
use crate::servers::queue::{Kind, Queue};

const STAGED: u32 = 200_000;
/// Fewer are gone before anybody has looked.
const STAGED_AT_LEAST: u32 = 20_000;
const LOOK: Duration = Duration::from_millis(5);
/// A drain is given up on after this.
const LONGEST: Duration = Duration::from_secs(120);

/// What the outbox is drained into: to measure another queue, add it here and to [`Kind`].
struct Sink {
    name: &'static str,
    /// A server of its own; without one, the table `jobs`.
    server: Option<Kind>,
    per_second: f64,
    note: &'static str,
}

const SINKS: [Sink; 3] = [
    Sink { name: "Postgres", server: None, per_second: 100_000.0, note: "" },
    Sink { name: "Redis", server: Some(Kind::Redis), per_second: 50_000.0, note: "appendfsync always" },
    Sink {
        name: "NATS JetStream",
        server: Some(Kind::Nats),
        per_second: 40_000.0,
        note: "its own default: flushed every two minutes",
    },
];

pub(super) async fn measure(bench: &mut Bench) {
    let staged = bench.options.rows(STAGED).max(STAGED_AT_LEAST);
    let (database, client) = bench.seeded("enqueuer").await;
    for sink in &SINKS {
        let name = format!("jobs drained into {}, {} staged", sink.name, grouped(staged.into()));
        match rates(bench, sink, &database, &client, staged).await {
            Ok(rates) => {
                let row = Row::new(name, median(&rates), "/s").target(Bound::AtLeast(sink.per_second));
                bench.report.add(row.note(sink.note));
            }
            Err(missing) => bench.report.leave_out(&name, &missing),
        }
    }
    drop(client);
    bench.postgres.drop_database(&database.name).await;
}

/// Jobs per second, a figure a round; or why there is no such queue here.
async fn rates(
    bench: &Bench,
    sink: &Sink,
    database: &Database,
    client: &Client,
    staged: u32,
) -> Result<Vec<f64>, String> {
    let mut rates = Vec::new();
    for _ in 0..bench.options.rounds {
        let mut into = match sink.server {
            None => Destination::Table(client),
            Some(kind) => Destination::Server(Box::new(Queue::start(kind).await?)),
        };
        fill::empty(client).await;
        fill::staged_jobs(client, staged).await;
        rates.push(drain(bench, &mut into, database, client, staged.into()).await);
        if let Destination::Server(queue) = into {
            queue.stop().await;
        }
    }
    Ok(rates)
}

/// Jobs per second from the first that is seen in the queue until all are there and none is left in the outbox: starting
/// a process is no draining, and a job that is in both is not drained.
async fn drain(
    bench: &Bench,
    into: &mut Destination<'_>,
    database: &Database,
    client: &Client,
    staged: u64,
) -> f64 {
    let settings = into.settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    // Without a worker: taking jobs out again would be another measurement.
    let process = Process::start("enqueuer", database, bench.sandbox, &settings).await;
    let began = Instant::now();
    let mut first = None;
    let rate = loop {
        let looked_at = Instant::now();
        let arrived = into.depth().await;
        if arrived > 0 && first.is_none() {
            first = Some((looked_at, arrived));
        }
        // The outbox is looked at last: a look at it would cost as much as draining it.
        if arrived >= staged && is_empty(client).await {
            break first.map_or(f64::NAN, |(at, jobs)| (staged - jobs) as f64 / at.elapsed().as_secs_f64());
        }
        assert!(
            began.elapsed() < LONGEST,
            "{arrived} of {staged} jobs arrived in {LONGEST:?}; the enqueuer's log is {}",
            process.log.display()
        );
        tokio::time::sleep(LOOK).await;
    };
    process.stop().await;
    assert_eq!(into.count().await, staged, "every job arrives once");
    if rate == 0.0 { f64::NAN } else { rate }
}

enum Destination<'a> {
    Table(&'a Client),
    Server(Box<Queue>),
}

impl Destination<'_> {
    fn settings(&self) -> Vec<String> {
        match self {
            Self::Table(_) => vec!["enqueuer.queue=postgres".to_owned()],
            Self::Server(queue) => queue.settings().to_vec(),
        }
    }

    /// How many jobs have arrived, at next to no cost.
    async fn depth(&mut self) -> u64 {
        match self {
            // Jobs were numbered from 1 and leave in that order, so the last one's number is how many have arrived.
            Self::Table(client) => number(client, "SELECT coalesce(max(staged_id), 0) FROM jobs").await,
            Self::Server(queue) => queue.depth().await,
        }
    }

    /// How many there are, one by one.
    async fn count(&mut self) -> u64 {
        match self {
            Self::Table(client) => number(client, "SELECT count(*) FROM jobs").await,
            Self::Server(queue) => queue.depth().await,
        }
    }
}

async fn number(client: &Client, sql: &str) -> u64 {
    let number: i64 = client.query_one(sql, &[]).await.expect("look at the queue").get(0);
    u64::try_from(number).expect("no fewer than none")
}

async fn is_empty(client: &Client) -> bool {
    const SQL: &str = "SELECT NOT EXISTS (SELECT FROM staged_jobs)";
    client.query_one(SQL, &[]).await.expect("look at the outbox").get(0)
}
