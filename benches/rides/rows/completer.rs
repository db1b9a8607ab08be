//! How fast the completer finishes requests whose clients gave up between the ride and the charge.

use std::time::Duration;

use super::{Bench, fill, median};
use crate::report::{Bound, Row, grouped};
use crate::servers::process::Process;

const ABANDONED: u32 = 20_000;
const LOOK: Duration = Duration::from_millis(50);

pub(super) async fn measure(bench: &mut Bench) {
    let abandoned = bench.options.rows(ABANDONED);
    let (database, client) = bench.seeded("completer").await;
    let mut rates = Vec::new();
    for _ in 0..bench.options.rounds {
        fill::empty(&client).await;
        fill::abandoned_keys(&client, abandoned).await;
        let process = Process::start("completer", &database, bench.sandbox, &[]).await;
        rates.push(complete(&client, abandoned).await);
        process.stop().await;
    }
    drop(client);
    bench.postgres.drop_database(&database.name).await;
    let name = format!("abandoned requests completed, {} of them", grouped(abandoned.into()));
    bench.report.add(Row::new(name, median(&rates), "/s").target(Bound::AtLeast(3000.0)));
}

/// Returns requests per second between the first and the last that was finished, by the database's clock.
async fn complete(client: &tokio_postgres::Client, abandoned: u32) -> f64 {
    // Each request stages a receipt when it is finished.
    const STAGED: &str = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('staged_jobs', 'id')), 0)";
    loop {
        let staged: i64 = client.query_one(STAGED, &[]).await.expect("look at the sequence").get(0);
        if staged >= i64::from(abandoned) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    // The sequence also counts jobs whose transactions have not committed yet.
    const UNFINISHED: &str =
        "SELECT EXISTS (SELECT FROM idempotency_keys WHERE response_code IS DISTINCT FROM 201)";
    while client.query_one(UNFINISHED, &[]).await.expect("look at the keys").get(0) {
        tokio::time::sleep(LOOK).await;
    }
    const RATE: &str =
        "SELECT (count(*) / nullif(extract(epoch FROM max(created_at) - min(created_at)), 0))::float8
        FROM staged_jobs";
    let row = client.query_one(RATE, &[]).await.expect("count the receipts");
    row.get::<_, Option<f64>>(0).unwrap_or(f64::NAN)
}
