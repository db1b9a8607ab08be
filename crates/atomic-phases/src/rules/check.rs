//! Asks rules, one after the other.

use std::collections::HashSet;

use tokio_postgres::Row;

use super::{Ask, Circumstances, Finding, Found, Ledger, Pairs, Report, Rule};
use crate::database::{Database, DatabaseError};
use crate::errors::BoxError;

/// The most rows that a statement reads.
const PAGE: i64 = 5000;

/// What rules are asked of.
#[derive(Debug, Clone, Copy)]
pub struct Check<'a> {
    /// Where the rows are.
    pub database: &'a Database,
    /// How things are there just now.
    pub circumstances: Circumstances,
}

/// A rule could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the rule \"{rule}\" could not be asked")]
pub struct RuleError {
    /// Its name.
    pub rule: &'static str,
    /// Why.
    #[source]
    pub why: Unasked,
}

/// Why a rule could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Unasked {
    /// The database did not answer, or refused the query.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A page does not begin behind the one before it, so the same rows would be read for ever.
    #[error("its query does not read on from behind $1, ordered by id")]
    Stuck,
    /// The foreign system did not list its books.
    #[error("the other side did not list its books")]
    Ledger(#[source] BoxError),
}

impl Check<'_> {
    /// Asks these rules. Each reads its rows once, in pages of 5,000 along an index.
    pub async fn ask(&self, rules: &[Rule]) -> Result<Report, RuleError> {
        let mut report = Report::default();
        for rule in rules {
            let mut finding = Finding::default();
            let asked = match &rule.ask {
                Ask::Rows { when, sql } if when.is_now(self.circumstances) => self.rows(sql, &mut finding).await,
                Ask::Rows { when, .. } => {
                    finding.unasked = Some(when.otherwise());
                    Ok(())
                }
                Ask::Pairs(pairs) => self.pairs(pairs, &mut finding).await,
            };
            asked.map_err(|why| RuleError { rule: rule.name, why })?;
            report.0.push((rule.name, finding));
        }
        Ok(report)
    }

    async fn rows(&self, sql: &'static str, finding: &mut Finding) -> Result<(), Unasked> {
        self.pages(sql, |row| finding.see(row)).await
    }

    async fn pages(&self, sql: &'static str, mut see: impl FnMut(&Row)) -> Result<(), Unasked> {
        let mut after = 0_i64;
        loop {
            let rows = self.database.query(sql, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            let behind = std::mem::replace(&mut after, last.get("id"));
            if after <= behind {
                return Err(Unasked::Stuck);
            }
            rows.iter().for_each(&mut see);
        }
    }

    async fn pairs(&self, pairs: &Pairs, finding: &mut Finding) -> Result<(), Unasked> {
        let mut books = Books::default();
        let (when, sql) = pairs.expected;
        if when.is_now(self.circumstances) {
            self.pages(sql, |row| books.expect(row)).await?;
        } else {
            finding.unasked = Some(when.otherwise());
        }
        let mut seen = HashSet::new();
        for found in &pairs.found {
            match found {
                Found::Rows(sql) => {
                    let see = |row: &Row| {
                        finding.see(row);
                        if seen.insert(row.get::<_, i64>("thing")) {
                            books.find(row, finding);
                        }
                    };
                    self.pages(sql, see).await?;
                }
                Found::Ledger { ledger, sql } => self.ledger(ledger.as_ref(), sql, &mut books, finding).await?,
            }
        }
        books.close(finding);
        Ok(())
    }

    async fn ledger(
        &self,
        ledger: &dyn Ledger,
        sql: &'static str,
        books: &mut Books,
        finding: &mut Finding,
    ) -> Result<(), Unasked> {
        let mut after = None;
        loop {
            let page = ledger.page(after).await.map_err(Unasked::Ledger)?;
            for row in self.database.query(sql, &[&page.entries]).await? {
                finding.see(&row);
                books.find(&row, finding);
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}

/// The items that are still to be found, and the names that were found.
#[derive(Default)]
struct Books {
    expected: HashSet<String>,
    once: HashSet<String>,
}

impl Books {
    fn expect(&mut self, row: &Row) {
        self.expected.insert(row.get("item"));
    }

    fn find(&mut self, row: &Row, finding: &mut Finding) {
        for item in row.get::<_, Vec<Option<&str>>>("items").into_iter().flatten() {
            self.expected.remove(item);
        }
        for name in row.get::<_, Vec<Option<String>>>("once").into_iter().flatten() {
            if let Some(name) = self.once.replace(name) {
                finding.violate(|| format!("{name}: twice"));
            }
        }
    }

    fn close(self, finding: &mut Finding) {
        let mut missing: Vec<_> = self.expected.into_iter().collect();
        missing.sort_unstable();
        for item in missing {
            finding.violate(|| format!("{item}: missing"));
        }
    }
}

impl Finding {
    fn see(&mut self, row: &Row) {
        self.examined += 1;
        if let Some(offence) = row.get::<_, Option<String>>("offence") {
            self.violate(|| offence);
        }
    }
}
