//! Time from the start of the process to the first 200 of `/readyz`, the private Postgres included.

use std::path::Path;
use std::time::Duration;

use super::{Bench, median};
use crate::report::Row;
use crate::servers::process::Process;

/// A start takes a tenth of a second, so a few more of them cost nothing.
const STARTS: usize = 5;

pub(super) async fn measure(bench: &mut Bench) {
    let configured = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-ready");
    let data_dir = format!("database.data_dir={}", configured.display());
    let settings = ["database.embedded=true", data_dir.as_str()];
    let (mut first, mut further) = (Duration::ZERO, Vec::new());
    let mut files = String::new();
    for start in 0..=STARTS {
        let (sandbox, binaries) = (bench.sandbox, bench.postgres.binaries.as_path());
        let roles = "api,completer,enqueuer,worker,reaper";
        let process = Process::start_without_database(roles, sandbox, &settings, Some(binaries)).await;
        match start {
            0 => {
                first = process.ready_after;
                // For root, the data directory may be elsewhere than configured.
                let said = process.logged("elapsed_ms");
                files = said.iter().find_map(|line| line["data_dir"].as_str()).unwrap_or_default().to_owned();
            }
            _ => further.push(process.ready_after.as_secs_f64() * 1000.0),
        }
        process.stop().await;
    }
    if !files.is_empty() {
        let _ = std::fs::remove_dir_all(&files);
        for extension in ["log", "lock"] {
            let _ = std::fs::remove_file(format!("{files}.{extension}"));
        }
    }
    let row = Row::new("from the process's start to ready, private Postgres included", median(&further), "ms");
    let note = format!("{:.0} ms the first time, when the cluster is made", first.as_secs_f64() * 1000.0);
    bench.report.add(row.note(note));
}
