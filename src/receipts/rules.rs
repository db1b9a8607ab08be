//! What must always hold of receipts: a 201, its money and one receipt go together.

use atomic_phases::database::intern;
use atomic_phases::rules::{Found, Rule, When};

use super::{REFUND_RECEIPT, RIDE_RECEIPT};

/// What receipts are for, as the names that its SQL uses.
struct Receipted {
    rule: &'static str,
    what: &'static str,
    books: &'static str,
    paid: &'static str,
    job: &'static str,
    receipts: &'static str,
}

const RIDES: Receipted = Receipted {
    rule: "a ride that was paid has one receipt, and no other has any",
    what: "ride",
    books: "rides",
    paid: "stripe_charge_id",
    job: RIDE_RECEIPT,
    receipts: "receipts",
};

const REFUNDS: Receipted = Receipted {
    rule: "a refund that was made has one receipt, and no other has any",
    what: "refund",
    books: "refunds",
    paid: "stripe_refund_id",
    job: REFUND_RECEIPT,
    receipts: "refund_receipts",
};

/// The tables in which a job may be, in the order in which it moves, with the column of its id and the condition under
/// which it is finished there. Dead letters come first as well, because a person may be retrying one at this moment.
const PLACES: [(&str, &str, &str); 5] = [
    ("dead_jobs", "staged_id", "false"),
    ("staged_jobs", "id", "false"),
    ("jobs", "staged_id", "j.finished_at IS NOT NULL"),
    ("dead_jobs", "staged_id", "false"),
    ("purged_jobs", "staged_id", "false"),
];

/// Returns the rules of receipts.
pub fn rules() -> Vec<Rule> {
    vec![RIDES.rule(), REFUNDS.rule()]
}

impl Receipted {
    fn rule(&self) -> Rule {
        let jobs = |(jobs, key, finished): (&str, &str, &str)| {
            let sql = include_str!("rule_jobs.sql").replace("{jobs}", jobs).replace("{key}", key);
            Found::Rows(self.fill(&sql.replace("{finished}", finished)))
        };
        let mut found: Vec<Found> = PLACES.into_iter().map(jobs).collect();
        found.push(Found::Rows(self.fill(include_str!("rule_sent.sql"))));
        let expected = (When::JobsStay, self.fill(include_str!("rule_due.sql")));
        Rule::pairs(self.rule, expected, found)
    }

    fn fill(&self, sql: &str) -> &'static str {
        let Self { what, books, paid, job, receipts, .. } = self;
        let words =
            [("{what}", what), ("{books}", books), ("{paid}", paid), ("{job}", job), ("{receipts}", receipts)];
        intern(words.into_iter().fold(sql.to_owned(), |sql, (name, word)| sql.replace(name, word)))
    }
}
