//! The result of a check.

use std::fmt;

/// The most violations that a report names; it only counts the others.
const NAMED: usize = 10;

/// The result of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// Rows and entries looked at.
    pub examined: u64,
    /// How many violations.
    pub violations: u64,
    /// The first of them.
    pub named: Vec<String>,
    /// What could not be asked, and why.
    pub unasked: Option<&'static str>,
}

/// The findings of all rules, in the order in which they were asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report(pub(super) Vec<(&'static str, Finding)>);

impl Report {
    /// Returns the name of each rule, with its finding.
    pub fn findings(&self) -> impl Iterator<Item = (&'static str, &Finding)> {
        self.0.iter().map(|(name, finding)| (*name, finding))
    }

    /// Returns the names of the rules that do not hold.
    pub fn violated(&self) -> Vec<&'static str> {
        self.findings().filter(|(_, finding)| finding.violations > 0).map(|(name, _)| name).collect()
    }
}

impl Finding {
    pub(super) fn violate(&mut self, offender: impl FnOnce() -> String) {
        self.violations += 1;
        if self.named.len() < NAMED {
            self.named.push(offender());
        }
    }
}

impl fmt::Display for Report {
    /// Writes a line for each rule, and one for each named violation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, finding) in self.findings() {
            let verdict = if finding.violations == 0 { "holds   " } else { "VIOLATED" };
            let Finding { examined, violations, .. } = finding;
            let unasked = finding.unasked.map(|what| format!(" ({what})")).unwrap_or_default();
            writeln!(f, "{verdict} {name}: {examined} examined, {violations} violations{unasked}")?;
            for offender in &finding.named {
                writeln!(f, "         {offender}")?;
            }
        }
        Ok(())
    }
}
