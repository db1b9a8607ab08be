//! Memory and processor time of processes, as the kernel counts them. On systems other than Linux the figures are
//! missing.

use std::fs;

/// The kernel counts processor time in hundredths of a second, on every Linux that there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the resident memory in MB (of a million bytes).
pub(crate) fn resident_mb(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

/// Processor time of the four processes that share a ride: the seconds so far, or the microseconds per ride.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) service: f64,
    pub(crate) postgres: f64,
    pub(crate) sandbox: f64,
    pub(crate) load: f64,
}

impl Cpu {
    /// Returns the seconds used until now.
    pub(crate) fn of(service: u32, postgres: u32, sandbox: u32) -> Self {
        let alone = |pid| stat(pid).map_or(f64::NAN, |stat| stat.own);
        Self {
            service: alone(service),
            postgres: of_family(postgres),
            sandbox: alone(sandbox),
            load: alone(std::process::id()),
        }
    }

    /// Returns the microseconds for each of `rides` between `earlier` and this.
    pub(crate) fn each_since(self, earlier: Self, rides: u64) -> Self {
        let each = |now: f64, then: f64| (now - then) / rides as f64 * 1e6;
        Self {
            service: each(self.service, earlier.service),
            postgres: each(self.postgres, earlier.postgres),
            sandbox: each(self.sandbox, earlier.sandbox),
            load: each(self.load, earlier.load),
        }
    }
}

/// The parent of a process, its own seconds, and those of its children that have ended.
struct Stat {
    parent: u32,
    own: f64,
    ended: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks. Behind it: state, parent, …, and from the 12th field on user and system
    // time, the process's own and its ended children's.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let seconds = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    let parent = fields.get(1)?.parse().ok()?;
    Some(Stat { parent, own: seconds(11)? + seconds(12)?, ended: seconds(13)? + seconds(14)? })
}

/// Returns the seconds of the postmaster and its backends, including backends that have ended.
fn of_family(parent: u32) -> f64 {
    let Some(itself) = stat(parent) else { return f64::NAN };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = numbers.filter_map(stat).filter(|stat| stat.parent == parent);
    itself.own + itself.ended + children.map(|stat| stat.own).sum::<f64>()
}
