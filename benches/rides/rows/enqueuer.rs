//! How fast the enqueuer drains the outbox: staged jobs into each of the supported queues.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{Bench, fill, median};
use crate::report::{Bound, Row, grouped};
use crate::servers::postgres::Database;
use crate::servers::process::Process;
use crate::servers::queue::{Kind, Queue};

const STAGED: u32 = 200_000;
/// With fewer, the outbox may be empty before the first look.
const STAGED_AT_LEAST: u32 = 20_000;
const LOOK: Duration = Duration::from_millis(5);
/// A drain that takes longer than this has failed.
const LONGEST: Duration = Duration::from_secs(120);

/// A queue that the outbox is drained into: to measure another one, add it here and to [`Kind`].
struct Sink {
    name: &'static str,
    /// The kind of server that holds the queue; `None` for the table `jobs`.
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

/// Returns jobs per second, one figure per round, or why this machine has no such queue.
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

/// Returns jobs per second, from the first job that is seen in the queue until all are there and the outbox is empty.
/// So the start of the process does not count, and a job that is in both places does not count as drained.
async fn drain(
    bench: &Bench,
    into: &mut Destination<'_>,
    database: &Database,
    client: &Client,
    staged: u64,
) -> f64 {
    let settings = into.settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    // No worker runs: taking jobs out again would be another measurement.
    let process = Process::start("enqueuer", database, bench.sandbox, &settings).await;
    let began = Instant::now();
    let mut first = None;
    let rate = loop {
        let looked_at = Instant::now();
        let arrived = into.depth().await;
        if arrived > 0 && first.is_none() {
            first = Some((looked_at, arrived));
        }
        // Checks the outbox last: this costs as much as draining it.
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

    /// Returns how many jobs have arrived, at almost no cost.
    async fn depth(&mut self) -> u64 {
        match self {
            // Jobs are numbered from 1 and leave in that order, so the highest number is how many have arrived.
            Self::Table(client) => number(client, "SELECT coalesce(max(staged_id), 0) FROM jobs").await,
            Self::Server(queue) => queue.depth().await,
        }
    }

    /// Returns the exact number of jobs: the table's rows are counted one by one.
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
