//! Asks rules, one after the other.

use std::collections::HashSet;

use tokio_postgres::Row;

use super::{Ask, BoxError, Circumstances, Finding, Found, Ledger, Pairs, Report, Rule};
use crate::database::{Database, DatabaseError};

/// Rows a statement reads.
const PAGE: i64 = 5000;

/// What rules are asked of.
#[derive(Debug, Clone, Copy)]
pub struct Check<'a> {
    /// Where the rows are.
    pub database: &'a Database,
    /// How things are there just now.
    pub circumstances: Circumstances,
}

/// Why a rule could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// The database did not answer, or refused the query.
    #[error("the rule \"{rule}\" could not be asked of the database")]
    Database {
        /// Its name.
        rule: &'static str,
        /// What the database said.
        #[source]
        error: DatabaseError,
    },
    /// Its pages do not go on: a rule that asks for the same rows again would be asked for ever.
    #[error("the rule \"{rule}\" does not take its rows from behind $1, ordered by id")]
    Stuck {
        /// Its name.
        rule: &'static str,
    },
    /// The foreign system did not list its books.
    #[error("the rule \"{rule}\" could not be asked of the other side")]
    Ledger {
        /// Its name.
        rule: &'static str,
        /// What its client said.
        #[source]
        error: BoxError,
    },
}

/// Whatever kept a query from being made.
enum Failure {
    Database(DatabaseError),
    Stuck,
    Ledger(BoxError),
}

impl Check<'_> {
    /// Asks these rules. Each reads its rows once, in pages of 5,000 along an index.
    pub async fn ask(&self, rules: &[Rule]) -> Result<Report, RuleError> {
        let mut report = Report::default();
        for rule in rules {
            let mut finding = Finding::default();
            let asked = match &rule.ask {
                Ask::Rows { when, sql } if when.is_now(self.circumstances) => self.rows(sql, &mut finding).await,
                Ask::Rows { .. } => {
                    finding.unasked = Some("only asked when all has come to rest");
                    Ok(())
                }
                Ask::Pairs(pairs) => self.pairs(pairs, &mut finding).await,
            };
            asked.map_err(|failure| match failure {
                Failure::Database(error) => RuleError::Database { rule: rule.name, error },
                Failure::Stuck => RuleError::Stuck { rule: rule.name },
                Failure::Ledger(error) => RuleError::Ledger { rule: rule.name, error },
            })?;
            report.0.push((rule.name, finding));
        }
        Ok(report)
    }

    async fn rows(&self, sql: &'static str, finding: &mut Finding) -> Result<(), Failure> {
        self.pages(sql, |row| finding.see(row)).await
    }

    async fn pages(&self, sql: &'static str, mut see: impl FnMut(&Row)) -> Result<(), Failure> {
        let mut after = 0_i64;
        loop {
            let rows = self.database.query(sql, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            let behind = std::mem::replace(&mut after, last.get("id"));
            if after <= behind {
                return Err(Failure::Stuck);
            }
            rows.iter().for_each(&mut see);
        }
    }

    async fn pairs(&self, pairs: &Pairs, finding: &mut Finding) -> Result<(), Failure> {
        let mut books = Books::default();
        match pairs.expected {
            Some((when, sql)) if when.is_now(self.circumstances) => {
                self.pages(sql, |row| books.expect(row)).await?;
            }
            Some(_) => finding.unasked = Some("jobs leave this database, so only a second one would be noticed"),
            None => {}
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
    ) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = ledger.page(after).await.map_err(Failure::Ledger)?;
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

/// What is still to be found, and what was.
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

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error)
    }
}
