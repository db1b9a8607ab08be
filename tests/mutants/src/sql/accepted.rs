//! Survivors that are known, each with the reason why no test can or need notice it.

use std::path::Path;

use serde::Deserialize;

use super::statements::{Found, Mutant, Unread};
use crate::suite::Failure;

/// Where they are listed.
const FILE: &str = "tests/mutants/accepted.toml";

/// Stands for the clauses that nobody has seen.
pub const UNREAD: &str = "(not read)";

/// The list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    #[serde(default)]
    accepted: Vec<Entry>,
}

/// One clause, or all those that a pattern fits: `*` stands for any text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where the statement stands.
    pub file: String,
    /// What it is called there.
    pub statement: String,
    /// As a run prints it; [`UNREAD`] for a script that the parser cannot read.
    pub clause: String,
    /// Why this may survive.
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

    /// An entry that fits nothing is about a statement that has changed since.
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

    /// The first entry that fits, by its place.
    pub fn place(&self, mutant: &Mutant) -> Option<usize> {
        self.accepted.iter().position(|entry| entry.fits(mutant))
    }

    /// The first that says why a script is not read.
    pub fn place_of_unread(&self, script: &Unread) -> Option<usize> {
        self.accepted.iter().position(|entry| entry.fits_unread(script))
    }

    /// All entries.
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

/// Whether a text is what a pattern says, where `*` stands for any text. SQL has stars of its own, which then stand for
/// themselves as well.
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
