//! The report: a table in Markdown to read, and JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::options::Options;

/// The limit that a figure has to keep.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    fn shown(self, unit: &str) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {}", number(bound, unit)),
            Self::AtMost(bound) => format!("≤ {}", number(bound, unit)),
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    /// The value as a multiple of another figure of the same run, and the name of that figure.
    ratio: Option<(f64, String)>,
    /// The limit of the ratio if there is one, else of the value.
    target: Option<Bound>,
    /// Other observations.
    note: String,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, ratio: None, target: None, note: String::new() }
    }

    pub(crate) fn ratio(mut self, ratio: f64, to: impl Into<String>) -> Self {
        self.ratio = Some((ratio, to.into()));
        self
    }

    pub(crate) fn target(mut self, bound: Bound) -> Self {
        self.target = Some(bound);
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn met(&self) -> Option<bool> {
        self.target.map(|bound| bound.holds(self.ratio.as_ref().map_or(self.value, |(ratio, _)| *ratio)))
    }

    fn markdown(&self) -> String {
        let ratio = self.ratio.as_ref().map(|(ratio, to)| format!("{ratio:.2} × {to}")).unwrap_or_default();
        let unit = if self.ratio.is_some() { "×" } else { self.unit };
        let target = match (self.target, self.met()) {
            (Some(bound), Some(met)) => {
                format!("{}: {}", bound.shown(unit), if met { "met" } else { "**missed**" })
            }
            _ => String::new(),
        };
        let Self { name, note, .. } = self;
        format!("| {name} | {} | {ratio} | {target} | {note} |", number(self.value, self.unit))
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "value": self.value, "unit": self.unit,
            "ratio": self.ratio.as_ref().map(|(ratio, _)| ratio),
            "to": self.ratio.as_ref().map(|(_, to)| to),
            "target": self.target.map(|bound| match bound {
                Bound::AtLeast(bound) => json!({ "at_least": bound }),
                Bound::AtMost(bound) => json!({ "at_most": bound }),
            }),
            "met": self.met(), "note": self.note,
        })
    }
}

/// Formats a value with about three significant digits.
fn number(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 || value.fract() == 0.0 => grouped(value),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    match unit {
        "" => digits,
        "×" | "%" => format!("{digits} {unit}"),
        unit => format!("{digits} {unit}"),
    }
}

/// Formats a number as `12,345`.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// The figures of the service and of pgbench at one number of connections.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) connections: usize,
    pub(crate) ours: Measured,
    pub(crate) pgbench: Measured,
}

/// Medians over the rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Measured {
    fn json(self) -> Value {
        json!({ "per_second": self.per_second, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms })
    }
}

/// What has been measured so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    /// For the plot.
    pub(crate) comparison: Option<Vec<Point>>,
    /// Figures that do not fit into the table: single rounds, processor time.
    details: Vec<Value>,
    /// The parts that could not be measured, and why.
    left_out: Vec<String>,
}

impl Report {
    /// Adds a line, and prints it at once: the whole table may take a quarter of an hour.
    pub(crate) fn add(&mut self, row: Row) {
        eprintln!("{}", row.markdown());
        self.rows.push(row);
    }

    /// Reports that a line is missing, at once and again below the table.
    pub(crate) fn leave_out(&mut self, name: &str, why: &str) {
        let line = format!("Not measured: {name}: {why}.");
        eprintln!("{line}");
        self.left_out.push(line);
    }

    pub(crate) fn detail(&mut self, detail: Value) {
        self.details.push(detail);
    }

    pub(crate) fn markdown(&self, machine: &Machine) -> String {
        let mut table =
            format!("{}\n\n| what | figure | ratio | target | |\n|---|---|---|---|---|\n", machine.line);
        for row in &self.rows {
            let _ = writeln!(table, "{}", row.markdown());
        }
        for line in &self.left_out {
            let _ = write!(table, "\n{line}\n");
        }
        table
    }

    pub(crate) fn write_json(&self, machine: &Machine, path: &Path) {
        let comparison = self.comparison.iter().flatten().map(|point| {
            json!({ "connections": point.connections, "ours": point.ours.json(), "pgbench": point.pgbench.json() })
        });
        let all = json!({
            "machine": machine.line,
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "comparison": comparison.collect::<Vec<_>>(),
            "details": self.details,
            "left_out": self.left_out,
        });
        write(path, &format!("{all:#}\n"));
    }
}

/// Writes a file, making its directory where it is missing.
pub(crate) fn write(path: &Path, text: &str) {
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
    match written {
        Ok(()) => eprintln!("wrote {}", path.display()),
        Err(error) => eprintln!("cannot write {}: {error}", path.display()),
    }
}

/// Where the figures were measured.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) line: String,
}

impl Machine {
    pub(crate) fn look(postgres: &str, options: &Options) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = said("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let kib = said("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        let memory = kib.map(|kib| format!(", {:.0} GB", kib * 1024.0 / 1e9)).unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| std::env::consts::OS.to_owned(), |release| format!("Linux {}", release.trim()));
        let rounds = match (options.quick, options.rounds) {
            (true, _) => "a quick try".to_owned(),
            (false, 1) => "one round".to_owned(),
            (false, rounds) => format!("medians of {rounds} rounds"),
        };
        let date = today();
        Self { line: format!("{cores} × {cpu}{memory}, {kernel}, Postgres {postgres}, {date}; {rounds}") }
    }
}

/// Returns the value behind `name:` in a file of the kernel, such as `/proc/cpuinfo`.
fn said(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns the date in UTC (the civil calendar from days since 1970, as Howard Hinnant derives it).
fn today() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let days = (since.as_secs() / 86_400) as i64 + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (day, month) =
        (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}
