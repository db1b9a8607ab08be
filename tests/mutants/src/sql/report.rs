//! The result of a run, as text and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::accepted::Accepted;
use super::statements::{Found, Mutant};
use super::syntax::words;
use super::trial::Outcome;
use crate::suite::Failure;

/// Words shown on both sides of a change.
const CONTEXT: usize = 8;

/// All mutants and their outcomes.
#[derive(Debug, Serialize)]
pub struct Report {
    mutants: Vec<Line>,
    /// Statements that no test has sent.
    never_sent: Vec<String>,
    /// Scripts that the parser cannot read.
    unread: Vec<String>,
    /// Accepted clauses that were all caught.
    not_needed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    file: String,
    statement: String,
    clause: String,
    diff: String,
    #[serde(flatten)]
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<String>,
}

impl Report {
    /// Makes the report; `everything` means that no mutant was left out.
    pub fn new(
        found: &Found,
        mutants: &[Mutant],
        outcomes: &[Outcome],
        accepted: &Accepted,
        everything: bool,
    ) -> Self {
        let mut needed = vec![false; accepted.entries().len()];
        let mut lines = Vec::new();
        for (mutant, outcome) in mutants.iter().zip(outcomes) {
            let statement = &found.statements[mutant.places[0].0];
            let place = accepted.place(mutant).filter(|_| *outcome == Outcome::Survived);
            if let Some(place) = place {
                needed[place] = true;
            }
            lines.push(Line {
                file: mutant.file.clone(),
                statement: mutant.name.clone(),
                clause: mutant.change.clause(),
                diff: diff(&statement.script.print(), &mutant.text),
                outcome: outcome.clone(),
                accepted: place.map(|place| accepted.entries()[place].reason.clone()),
            });
        }
        let mut unread = Vec::new();
        for script in &found.unread {
            match accepted.place_of_unread(script) {
                Some(place) => needed[place] = true,
                None => unread.push(format!("{} {}: {}", script.file, script.name, script.why)),
            }
        }
        let not_needed = accepted.entries().iter().zip(needed).filter(|(_, needed)| everything && !needed);
        Self {
            mutants: lines,
            never_sent: if everything { found.never_sent.clone() } else { Vec::new() },
            unread,
            not_needed: not_needed
                .map(|(entry, _)| format!("{} {}: {}", entry.file, entry.statement, entry.clause))
                .collect(),
        }
    }

    /// Returns whether every survivor is accepted, every statement was sent and read, and every accepted clause
    /// survives.
    pub fn is_clean(&self) -> bool {
        self.survivors().next().is_none()
            && self.never_sent.is_empty()
            && self.unread.is_empty()
            && self.not_needed.is_empty()
    }

    fn survivors(&self) -> impl Iterator<Item = &Line> {
        self.mutants.iter().filter(|line| line.outcome == Outcome::Survived && line.accepted.is_none())
    }

    /// Writes the report as JSON.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        Ok(std::fs::write(path, serde_json::to_vec_pretty(self)?)?)
    }

    /// Prints the report.
    #[expect(clippy::print_stdout, reason = "the report is what the run is for")]
    pub fn print(&self) {
        for line in self.survivors() {
            println!("\nSURVIVED {} {}: {}\n{}", line.file, line.statement, line.clause, line.diff);
        }
        for statement in &self.never_sent {
            println!("\nNEVER SENT {statement}: no test has it sent");
        }
        for script in &self.unread {
            println!("\nNOT READ {script}");
        }
        for clause in &self.not_needed {
            println!("\nACCEPTED FOR NOTHING {clause}: a test catches it");
        }
        println!(
            "\n{:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "mutants", "caught", "timeout", "unviable", "accepted", "survived"
        );
        let mut files: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
        for line in &self.mutants {
            files.entry(&line.file).or_default().push(line);
        }
        for (file, lines) in files {
            println!("{} {file}", figures(&lines));
        }
        println!("{} in all", figures(&self.mutants.iter().collect::<Vec<_>>()));
    }
}

fn figures(lines: &[&Line]) -> String {
    let count = |fits: &dyn Fn(&Line) -> bool| lines.iter().filter(|line| fits(line)).count();
    format!(
        "{:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        lines.len(),
        count(&|line| matches!(line.outcome, Outcome::Caught { .. })),
        count(&|line| matches!(line.outcome, Outcome::Timeout { .. })),
        count(&|line| matches!(line.outcome, Outcome::Unviable { .. })),
        count(&|line| line.outcome == Outcome::Survived && line.accepted.is_some()),
        count(&|line| line.outcome == Outcome::Survived && line.accepted.is_none()),
    )
}

/// Returns the words that differ, with some equal words around them.
fn diff(before: &str, after: &str) -> String {
    let (before, after) = (words(before), words(after));
    let same = before.iter().zip(&after).take_while(|(one, two)| one == two).count();
    let left = before.len().min(after.len()) - same;
    let same_at_end =
        before.iter().rev().zip(after.iter().rev()).take(left).take_while(|(one, two)| one == two).count();
    let show = |words: &[String]| {
        let (from, to) = (same.saturating_sub(CONTEXT), (words.len() - same_at_end + CONTEXT).min(words.len()));
        words[from..to].join(" ")
    };
    format!("  - {}\n  + {}", show(&before), show(&after))
}
