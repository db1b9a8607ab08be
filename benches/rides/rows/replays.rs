//! Replays: the keys of finished requests again, answered from what is stored.

use super::{Bench, median};
use crate::load::closed;
use crate::load::keys::{self, Keys};
use crate::report::{Bound, Row};
use crate::servers::process::Process;

const CONNECTIONS: usize = 256;
const KEYS: u32 = 20_000;

pub(super) async fn measure(bench: &mut Bench) {
    let (warm_up, window) = (bench.options.warm_up, bench.options.window);
    let database = bench.postgres.fresh("replays").await;
    let process = Process::start("api", &database, bench.sandbox, &[]).await;
    let keys = keys::set_of(bench.options.rows(KEYS) as usize);
    let first = closed::run(process.address, CONNECTIONS, Keys::once(&keys), warm_up, window * 1000).await;
    assert_eq!(first.fresh, keys.len() as u64, "not every ride was booked: {:?}", first.others);

    let (mut rates, mut wrong) = (Vec::new(), 0);
    for _ in 0..bench.options.rounds {
        bench.postgres.checkpoint().await;
        let tally = closed::run(process.address, CONNECTIONS, Keys::again(&keys), warm_up, window).await;
        rates.push(tally.per_second());
        wrong += tally.failures() + tally.fresh;
    }
    process.stop().await;
    bench.postgres.drop_database(&database.name).await;
    let row = Row::new(format!("replays, {CONNECTIONS} connections"), median(&rates), "/s");
    bench.report.add(row.target(Bound::AtLeast(20_000.0)));
    let row = Row::new("replays that were no replay", wrong as f64, "");
    bench.report.add(row.target(Bound::AtMost(0.0)));
}
