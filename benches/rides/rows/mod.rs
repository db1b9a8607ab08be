//! What is measured: a file for each part of the table. A new part is a file, a [`Section`] and a line in
//! [`Bench::measure`].

mod completer;
mod enqueuer;
mod fill;
mod growth;
mod memory;
mod polls;
mod ready;
mod reaper;
mod replays;
mod rides;
mod stripe;
mod verify;
mod worker;

use std::path::PathBuf;

use crate::options::{Options, scratch_dir};
use crate::plot;
use crate::report::{Machine, Report};
use crate::servers::postgres::Postgres;
use crate::servers::process::{Process, Sandbox, receipts_dir};
use crate::servers::queue;

/// A part of the table that can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Rides,
    Replays,
    Stripe,
    Enqueuer,
    Worker,
    Reaper,
    Completer,
    Growth,
    Verify,
    Memory,
    Ready,
}

impl Section {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 11] = [
        Self::Rides,
        Self::Replays,
        Self::Stripe,
        Self::Enqueuer,
        Self::Worker,
        Self::Reaper,
        Self::Completer,
        Self::Growth,
        Self::Verify,
        Self::Memory,
        Self::Ready,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rides => "rides",
            Self::Replays => "replays",
            Self::Stripe => "stripe",
            Self::Enqueuer => "enqueuer",
            Self::Worker => "worker",
            Self::Reaper => "reaper",
            Self::Completer => "completer",
            Self::Growth => "growth",
            Self::Verify => "verify",
            Self::Memory => "memory",
            Self::Ready => "ready",
        }
    }
}

/// What every part uses.
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) postgres: Postgres,
    pub(crate) sandbox: Sandbox,
    pub(crate) report: Report,
}

impl Bench {
    async fn measure(&mut self, section: Section) {
        eprintln!("== {}", section.name());
        match section {
            Section::Rides => rides::measure(self).await,
            Section::Replays => replays::measure(self).await,
            Section::Stripe => stripe::measure(self).await,
            Section::Enqueuer => enqueuer::measure(self).await,
            Section::Worker => worker::measure(self).await,
            Section::Reaper => reaper::measure(self).await,
            Section::Completer => completer::measure(self).await,
            Section::Growth => growth::measure(self).await,
            Section::Verify => verify::measure(self).await,
            Section::Memory => memory::measure(self).await,
            Section::Ready => ready::measure(self).await,
        }
    }
}

/// Measures what was asked for, and prints the table.
pub(crate) async fn run(options: &Options, binaries: PathBuf) -> Result<(), String> {
    std::fs::create_dir_all(scratch_dir()).expect("make the scratch directory");
    let postgres = Postgres::start(binaries).await?;
    remove_left_overs();
    let machine = Machine::look(&postgres.version().await, options);
    let database = postgres.fresh("sandbox").await;
    let (sandbox_process, sandbox) = Process::sandbox(&database).await;
    let mut bench = Bench { options: options.clone(), postgres, sandbox, report: Report::default() };
    for section in &options.sections {
        bench.measure(*section).await;
    }
    let Bench { postgres, report, .. } = bench;
    sandbox_process.stop_sandbox().await;
    postgres.end().await;
    println!("{}", report.markdown(&machine));
    report.write_json(&machine, &options.json);
    if let Some(comparison) = &report.comparison {
        plot::write(comparison, &machine, &options.svg);
    }
    Ok(())
}

/// Removes the logs and files of an earlier run that was killed. No other run is under way: it would hold the Postgres.
fn remove_left_overs() {
    let entries = std::fs::read_dir(scratch_dir()).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| path.extension() == Some("log".as_ref())) {
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::remove_dir_all(receipts_dir());
    queue::remove_left_overs();
}

/// Returns the median. Of an even number of values it is the lower of the two in the middle, so that it was measured.
/// Values that could not be measured (not finite) do not count.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
