//! Known survivors, each with the reason why no test can or need notice it.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

use super::statements::{Found, Mutant, Unread};
use crate::suite::Failure;

/// The file that lists them.
const FILE: &str = "tests/mutants/accepted.toml";

/// Stands for the clauses of a script that the parser cannot read.
pub const UNREAD: &str = "(not read)";

/// The list of accepted clauses.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    #[serde(default)]
    accepted: Vec<Entry>,
}

/// One clause, or all clauses that match a pattern: `*` stands for any text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The file of the statement.
    pub file: String,
    /// The statement's name in that file.
    pub statement: String,
    /// The clause as a run prints it; [`UNREAD`] for a script that the parser cannot read.
    pub clause: String,
    /// Why it may survive.
    pub reason: String,
}

impl Accepted {
    /// Reads the list of the project in `root`.
    pub fn read(root: &Path) -> Result<Self, Failure> {
        let accepted: Self = toml::from_str(&std::fs::read_to_string(root.join(FILE))?)?;
        match accepted.accepted.iter().find(|entry| entry.reason.trim().is_empty()) {
            Some(entry) => Err(format!("{FILE}: no reason for {:?}", entry.clause).into()),
            None => Ok(accepted),
        }
    }

    /// Fails if an entry matches nothing: then its statement has changed since.
    pub fn must_match(&self, found: &Found, mutants: &[Mutant]) -> Result<(), Failure> {
        for entry in &self.accepted {
            if !mutants.iter().any(|mutant| entry.fits(mutant))
                && !found.unread.iter().any(|script| entry.fits_unread(script))
            {
                let Entry { file, statement, clause, .. } = entry;
                return Err(format!("{FILE}: there is no {file} {statement}: {clause}").into());
            }
        }
        Ok(())
    }

    /// Returns the places of the mutants that entries fit.
    pub fn all_in(&self, mutants: &[Mutant]) -> HashSet<usize> {
        (0..mutants.len()).filter(|at| self.place(&mutants[*at]).is_some()).collect()
    }

    /// Returns the index of the first entry that matches the mutant.
    pub fn place(&self, mutant: &Mutant) -> Option<usize> {
        self.accepted.iter().position(|entry| entry.fits(mutant))
    }

    /// Returns the index of the first entry that explains why a script is not read.
    pub fn place_of_unread(&self, script: &Unread) -> Option<usize> {
        self.accepted.iter().position(|entry| entry.fits_unread(script))
    }

    /// Returns all entries.
    pub fn entries(&self) -> &[Entry] {
        &self.accepted
    }
}

impl Entry {
    fn fits(&self, mutant: &Mutant) -> bool {
        fits(&self.file, &mutant.file)
            && fits(&self.statement, &mutant.name)
            && fits(&self.clause, &mutant.change.clause())
    }

    fn fits_unread(&self, script: &Unread) -> bool {
        self.clause == UNREAD && fits(&self.file, &script.file) && fits(&self.statement, &script.name)
    }
}

/// Returns whether a text matches a pattern, in which `*` stands for any text. So a star of SQL matches itself, too.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| fits(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_star_stands_for_any_text_and_nothing_else_does() {
        assert!(fits("*: drop MATERIALIZED", "due: drop MATERIALIZED"));
        assert!(fits("drop count(*)", "drop count(*)"));
        assert!(fits("*", ""));
        assert!(!fits("drop LIMIT $1", "due: drop LIMIT $1"));
        assert!(!fits("*: drop LIMIT", "due: drop LIMIT $1"));
    }
}
