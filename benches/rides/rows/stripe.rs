//! A slow Stripe: a thousand clients wait for it at once, and ten database connections are enough for them.

use std::time::Duration;

use super::{Bench, median};
use crate::load::closed;
use crate::load::keys::Keys;
use crate::load::wire::set_latency;
use crate::report::{Bound, Row};
use crate::servers::process::Process;

const CLIENTS: usize = 1000;
const LATENCY: Duration = Duration::from_millis(300);
/// Rides per second if only Stripe took time.
const IDEAL: f64 = CLIENTS as f64 / 0.3;

pub(super) async fn measure(bench: &mut Bench) {
    let database = bench.postgres.fresh("stripe").await;
    let process = Process::start("api", &database, bench.sandbox, &["database.pool_size=10"]).await;
    set_latency(bench.sandbox.address, &format!("{}ms", LATENCY.as_millis())).await;
    // Long enough for each client to send several requests.
    let (warm_up, window) = (bench.options.warm_up + LATENCY * 5, bench.options.window);
    let (mut rates, mut failed) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        bench.postgres.checkpoint().await;
        let tally = closed::run(process.address, CLIENTS, Keys::Fresh, warm_up, window).await;
        rates.push(tally.per_second());
        failed.extend(tally.others);
    }
    set_latency(bench.sandbox.address, "0s").await;
    process.stop().await;
    bench.postgres.drop_database(&database.name).await;
    let rate = median(&rates);
    let row = Row::new("rides, 1,000 clients, Stripe takes 300 ms, pool of 10", rate, "/s");
    let row = row.ratio(rate / IDEAL, "the ideal").target(Bound::AtLeast(0.95));
    let note = failed.iter().map(|(status, count)| format!("{count} × {status}")).collect::<Vec<_>>();
    bench.report.add(row.note(note.join(", ")));
}
