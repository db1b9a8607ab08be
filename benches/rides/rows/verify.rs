//! The time and the memory that `verify` needs for a million rides.

use super::{Bench, fill};
use crate::options::scratch_dir;
use crate::report::{Row, grouped};
use crate::servers::process::{Process, verify};

const RIDES: u32 = 1_000_000;

pub(super) async fn measure(bench: &mut Bench) {
    let rides = bench.options.rows(RIDES);
    let (database, client) = bench.seeded("verify").await;
    eprintln!("filling in {} rides", grouped(rides.into()));
    fill::whole_rides(&client, rides).await;
    let ledger = scratch_dir().join("verified-ledger.jsonl");
    fill::ledger(&client, &ledger).await;
    drop(client);

    let (sandbox, stripe) = Process::sandbox_with(&database, &ledger).await;
    let (took, most_mb) = verify(&database, stripe, rides).await;
    sandbox.stop().await;
    let _ = std::fs::remove_file(ledger);
    bench.postgres.drop_database(&database.name).await;

    let name = format!("`verify`, {} rides and charges", grouped(rides.into()));
    let note = format!("{most_mb:.0} MB at most");
    bench.report.add(Row::new(name, took.as_secs_f64(), "s").note(note));
}
