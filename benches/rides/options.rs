//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use super::rows::Section;

pub(crate) const USAGE: &str = "\
usage: cargo bench -- [OPTIONS]
  --only A,B     these parts only: rides, replays, stripe, enqueuer, worker, reaper, completer, growth,
                 verify, memory, ready
  --quick        one short round of each, to see whether it works
  --rounds N     rounds, of which the median is reported (default 3)
  --seconds N    length of each measurement (default 5)
  --json FILE    where the figures go (default target/bench/rides.json)
  --svg FILE     where the plot goes (default docs/bench.svg; with --quick: target/bench/rides.svg)";

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) sections: Vec<Section>,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    /// Length of each measurement.
    pub(crate) window: Duration,
    /// Unmeasured time before it, in which connections are opened, statements prepared and caches filled.
    pub(crate) warm_up: Duration,
    pub(crate) json: PathBuf,
    pub(crate) svg: PathBuf,
}

impl Options {
    /// Parses the arguments. `None` if there is nothing to measure: `cargo test --all-targets` starts this program,
    /// too.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let (mut only, mut quick, mut rounds, mut seconds, mut json, mut svg) =
            (None, false, None, None, None, None);
        let mut asked = false;
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                // Cargo passes this argument to a benchmark run.
                "--bench" => asked = true,
                "--test" | "--list" => return Ok(None),
                "--quick" => quick = true,
                "--only" => only = Some(sections(&value()?)?),
                "--rounds" => rounds = Some(number(&value()?)?),
                "--seconds" => seconds = Some(number(&value()?)?),
                "--json" => json = Some(PathBuf::from(value()?)),
                "--svg" => svg = Some(PathBuf::from(value()?)),
                _ => return Err(format!("unknown argument {argument:?}")),
            }
        }
        if !asked {
            return Ok(None);
        }
        let scratch = scratch_dir();
        let shown = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bench.svg"));
        Ok(Some(Self {
            sections: only.unwrap_or_else(|| Section::ALL.to_vec()),
            quick,
            rounds: rounds.unwrap_or(if quick { 1 } else { 3 }),
            window: Duration::from_secs(seconds.unwrap_or(if quick { 2 } else { 5 }) as u64),
            warm_up: Duration::from_secs(1),
            json: json.unwrap_or_else(|| scratch.join("rides.json")),
            // The figures of a quick run must not replace those that the documentation shows.
            svg: svg.unwrap_or_else(|| if quick { scratch.join("rides.svg") } else { shown }),
        }))
    }

    /// Returns `full`, or a hundredth of it in a quick run.
    pub(crate) fn rows(&self, full: u32) -> u32 {
        if self.quick { full / 100 } else { full }
    }
}

/// Returns `bench` in the target directory. Cargo gives only the path of the `tmp` beside it.
pub(crate) fn scratch_dir() -> PathBuf {
    let tmp = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().map_or_else(|| tmp.join("bench"), |target| target.join("bench"))
}

fn sections(list: &str) -> Result<Vec<Section>, String> {
    let find = |name: &str| {
        let found = Section::ALL.into_iter().find(|section| section.name() == name);
        found.ok_or_else(|| format!("there is no part named {name:?}"))
    };
    list.split(',').map(find).collect()
}

fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text:?} is not a number above 0")),
    }
}
