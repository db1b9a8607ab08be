//! What was found.

use std::fmt;

/// Offenders that a report names; it counts the others.
const NAMED: usize = 10;

/// What one rule's queries saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// Rows and entries looked at.
    pub examined: u64,
    /// Violations.
    pub violations: u64,
    /// The first of them.
    pub named: Vec<String>,
    /// What could not be asked.
    pub unasked: Option<&'static str>,
}

/// What all rules said, in the order in which they were asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report(pub(super) Vec<(&'static str, Finding)>);

impl Report {
    /// One for each rule, by its name.
    pub fn findings(&self) -> impl Iterator<Item = (&'static str, &Finding)> {
        self.0.iter().map(|(name, finding)| (*name, finding))
    }

    /// The rules that do not hold.
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
    /// A line for each rule, and one for each named offender.
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
