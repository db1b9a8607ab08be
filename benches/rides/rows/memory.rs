//! How much memory the service holds, without Postgres and without the sandbox.

use std::time::Duration;

use super::Bench;
use crate::load::closed;
use crate::load::keys::Keys;
use crate::report::{Bound, Row};
use crate::servers::process::Process;
use crate::servers::usage::resident_mb;

const CONNECTIONS: usize = 256;
const LOOK: Duration = Duration::from_millis(100);
const SETTLE: Duration = Duration::from_secs(2);

pub(super) async fn measure(bench: &mut Bench) {
    let database = bench.postgres.fresh("memory").await;
    let process = Process::start("api,completer,enqueuer,worker,reaper", &database, bench.sandbox, &[]).await;
    tokio::time::sleep(SETTLE).await;
    let now = || resident_mb(process.pid).unwrap_or(f64::NAN);
    let idle = now();

    let mut most = idle;
    let load = closed::run(process.address, CONNECTIONS, Keys::Fresh, Duration::ZERO, bench.options.window * 2);
    let mut load = std::pin::pin!(load);
    while tokio::time::timeout(LOOK, load.as_mut()).await.is_err() {
        most = most.max(now());
    }
    tokio::time::sleep(SETTLE).await;
    let after = now();
    process.stop().await;
    bench.postgres.drop_database(&database.name).await;

    let row = Row::new("resident memory, idle, all roles", idle, "MB").target(Bound::AtMost(25.0));
    bench.report.add(row);
    let row = Row::new(format!("resident memory, {CONNECTIONS} connections booking"), most, "MB");
    bench.report.add(row.target(Bound::AtMost(60.0)).note(format!("{after:.1} MB afterwards")));
}
