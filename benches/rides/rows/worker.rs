//! How fast the worker works the default queue: receipts as files, each flushed before its job is finished.

use std::time::Duration;

use super::{Bench, fill, median};
use crate::report::{Row, grouped};
use crate::servers::process::{Process, receipts_dir};

const QUEUED: u32 = 20_000;
const LOOK: Duration = Duration::from_millis(50);

pub(super) async fn measure(bench: &mut Bench) {
    let queued = bench.options.rows(QUEUED);
    let (database, client) = bench.seeded("worker").await;
    let mut rates = Vec::new();
    for _ in 0..bench.options.rounds {
        fill::empty(&client).await;
        fill::queued_receipts(&client, queued).await;
        let process = Process::start("worker", &database, bench.sandbox, &[]).await;
        rates.push(work(&client, queued).await);
        process.stop().await;
    }
    drop(client);
    bench.postgres.drop_database(&database.name).await;
    let name = format!("worker: {} queued receipts to files", grouped(queued.into()));
    bench.report.add(Row::new(name, median(&rates), "jobs/s"));
}

/// Returns jobs per second between the first and the last that was finished, by the database's clock.
async fn work(client: &tokio_postgres::Client, queued: u32) -> f64 {
    const UNFINISHED: &str = "SELECT EXISTS (SELECT FROM jobs WHERE finished_at IS NULL)";
    while client.query_one(UNFINISHED, &[]).await.expect("look at the queue").get(0) {
        tokio::time::sleep(LOOK).await;
    }
    const RATE: &str = "
        WITH ended AS (SELECT min(finished_at) AS first, max(finished_at) AS last FROM jobs)
        SELECT (count(*) FILTER (WHERE finished_at > first) / nullif(extract(epoch FROM last - first), 0))::float8,
               (SELECT count(*) FROM receipts)
        FROM jobs, ended GROUP BY first, last";
    let row = client.query_one(RATE, &[]).await.expect("count the jobs");
    let files = std::fs::read_dir(receipts_dir()).expect("list the receipts").count();
    assert_eq!((row.get(1), files), (i64::from(queued), queued as usize), "each ride has a receipt, and a file");
    row.get::<_, Option<f64>>(0).unwrap_or(f64::NAN)
}
