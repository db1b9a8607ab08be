//! How fast the reaper removes old keys while clients are being served.

use std::future::pending;
use std::time::Duration;

use serde_json::Value;

use super::{Bench, fill, median};
use crate::load::{open, percentile_ms};
use crate::report::{Bound, Row, grouped};
use crate::servers::process::Process;

const OLD: u32 = 500_000;
const LOOK: Duration = Duration::from_millis(100);
/// Requests per second in the meantime: modest, about a tenth of what two cores can do.
const RATE: f64 = 250.0;
const CONNECTIONS: usize = 32;
/// The load ends after this time, even if the reaper has not removed all keys.
const LONGEST: Duration = Duration::from_secs(120);

pub(super) async fn measure(bench: &mut Bench) {
    let old = bench.options.rows(OLD);
    let (database, client) = bench.seeded("reaper").await;
    let api = Process::start("api", &database, bench.sandbox, &[]).await;
    let (mut rates, mut before, mut during) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        fill::empty(&client).await;
        // Older than the retention of 72 h, and each with its own time.
        fill::finished_keys(&client, old, "interval '80 hours' - g * interval '10 milliseconds'").await;
        let times = (bench.options.warm_up, bench.options.window * 2);
        let mut quiet = open::run(api.address, CONNECTIONS, RATE, times, pending()).await;
        before.push(percentile_ms(&mut quiet.waits_us, 99.0));

        let reaper = Process::start("reaper", &database, bench.sandbox, &[]).await;
        let gone = until_removed(&reaper, u64::from(old));
        let mut busy = open::run(api.address, CONNECTIONS, RATE, (Duration::ZERO, LONGEST), gone).await;
        during.push(percentile_ms(&mut busy.waits_us, 99.0));
        rates.push(rate(&reaper.logged("removed")));
        reaper.stop().await;
    }
    api.stop().await;
    drop(client);
    bench.postgres.drop_database(&database.name).await;

    let name = format!("old keys removed, {} of them, each with a ride", grouped(old.into()));
    bench.report.add(Row::new(name, median(&rates), "/s").target(Bound::AtLeast(50_000.0)));
    let ratios: Vec<f64> = during.iter().zip(&before).map(|(during, before)| during / before).collect();
    let row = Row::new(format!("p99 of {RATE} rides/s meanwhile"), median(&during), "ms");
    let note = format!("{:.2} ms without the reaper", median(&before));
    bench.report.add(row.ratio(median(&ratios), "without it").target(Bound::AtMost(2.0)).note(note));
}

async fn until_removed(reaper: &Process, count: u64) {
    while reaper.logged("removed").iter().filter_map(|line| line["removed"].as_u64()).sum::<u64>() < count {
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns keys per second between the first batch and the last, by the reaper's log, which has one line per batch.
fn rate(lines: &[Value]) -> f64 {
    let at = |line: &Value| line["timestamp"].as_str().and_then(seconds);
    let removed: u64 = lines.iter().skip(1).filter_map(|line| line["removed"].as_u64()).sum();
    match (lines.first().and_then(at), lines.last().and_then(at)) {
        (Some(first), Some(last)) => removed as f64 / (last - first).rem_euclid(24.0 * 3600.0),
        _ => f64::NAN,
    }
}

/// Returns the seconds of the day in `2026-11-24T03:04:05.678901Z`.
fn seconds(timestamp: &str) -> Option<f64> {
    let (_, time) = timestamp.trim_end_matches('Z').split_once('T')?;
    let mut parts = time.split(':').map(str::parse::<f64>);
    Some(parts.next()?.ok()? * 3600.0 + parts.next()?.ok()? * 60.0 + parts.next()?.ok()?)
}
