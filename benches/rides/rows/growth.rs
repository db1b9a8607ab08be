//! Whether the service becomes slower as more is stored: five million finished requests against empty tables.

use super::{Bench, fill, median, polls};
use crate::load::closed;
use crate::load::keys::Keys;
use crate::report::{Bound, Row, grouped};
use crate::servers::process::Process;

const STORED: u32 = 5_000_000;
const CONNECTIONS: usize = 256;

pub(super) async fn measure(bench: &mut Bench) {
    let stored = bench.options.rows(STORED);
    let (small, _) = bench.seeded("small").await;
    let (large, client) = bench.seeded("large").await;
    eprintln!("filling in {} keys and rides", grouped(stored.into()));
    // Spread over most of the retention, so that none is old enough for the reaper.
    let age = format!("({stored} - g) * (interval '70 hours' / {stored})");
    fill::finished_keys(&client, stored, &age).await;
    drop(client);

    let on_small = Process::start("api", &small, bench.sandbox, &[]).await;
    let on_large = Process::start("api", &large, bench.sandbox, &[]).await;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        let without = rides(bench, &on_small).await;
        let with = rides(bench, &on_large).await;
        eprintln!("  {without:.0} rides/s on small tables, {with:.0} on large ones");
        rates.push(with);
        ratios.push(with / without);
    }
    on_small.stop().await;
    on_large.stop().await;
    let name = format!("rides, {CONNECTIONS} connections, {} keys and rides stored", grouped(stored.into()));
    let row = Row::new(name, median(&rates), "/s");
    bench.report.add(row.ratio(median(&ratios), "with empty tables").target(Bound::AtLeast(0.8)));

    // The reaper looks for old keys, and then for old jobs.
    for (role, looks) in [("completer", 1.0), ("reaper", 2.0), ("enqueuer", 1.0)] {
        let without = looks * polls::pages_per_look(bench, role, &small).await;
        let with = looks * polls::pages_per_look(bench, role, &large).await;
        let row = Row::new(format!("pages read by an idle poll of the {role}"), with, "");
        // Only the height of the indexes may add pages.
        let bound = Bound::AtMost(without + 8.0);
        bench.report.add(row.target(bound).note(format!("{without:.1} with tables nearly empty")));
    }
    bench.postgres.drop_database(&small.name).await;
    bench.postgres.drop_database(&large.name).await;
}

async fn rides(bench: &Bench, process: &Process) -> f64 {
    let (warm_up, window) = (bench.options.warm_up, bench.options.window);
    bench.postgres.checkpoint().await;
    closed::run(process.address, CONNECTIONS, Keys::Fresh, warm_up, window).await.per_second()
}
