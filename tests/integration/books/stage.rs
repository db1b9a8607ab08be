//! Rides and a refund whose rows a test changes, to see what `verify` reports.

use atomic_phases::rules::Report;

use crate::support::app::TestApp;
use crate::support::books::LIVE;
use crate::support::client::{DECLINED_USER, Post};

const TABLES: [&str; 10] = [
    "idempotency_keys",
    "rides",
    "refunds",
    "audit_records",
    "staged_jobs",
    "jobs",
    "dead_jobs",
    "receipts",
    "refund_receipts",
    "users",
];

/// Without these the database refuses what a rule is to see. The indexes stay: no statement may read a whole table.
const UNGUARDED: &str = "
    ALTER TABLE rides DROP CONSTRAINT rides_idempotency_key_id_key, DROP CONSTRAINT rides_stripe_charge_id_key;
    CREATE INDEX ON rides (idempotency_key_id); CREATE INDEX ON rides (stripe_charge_id);
    ALTER TABLE idempotency_keys DROP CONSTRAINT answered_as_a_whole, DROP CONSTRAINT headers_of_an_answer,
        DROP CONSTRAINT finished_is_answered";

/// Four rides, whose rows may be changed: `a` was paid, `b` is not finished, `c` was declined, and `d` was paid and
/// refunded. Their jobs are staged.
pub(super) struct Rides {
    app: TestApp,
    /// Replaced in order, so that a word may stand for text with further words.
    words: [(&'static str, String); 12],
}

impl Rides {
    pub(super) async fn new() -> Self {
        let app = TestApp::start().await;
        let a = app.post(Post::default()).await.ride_id();
        assert_eq!(app.post(Post::default().raising()).await.status, 500);
        let b: i64 = app.get("SELECT max(id) FROM rides").await;
        assert_eq!(app.post(Post::default().user(DECLINED_USER)).await.status, 402);
        let c: i64 = app.get("SELECT max(id) FROM rides").await;
        let d = app.post(Post::default()).await.ride_id();
        assert_eq!(app.post(Post::refund(d)).await.status, 201);
        let kept = TABLES.map(|table| format!("CREATE TABLE kept_{table} AS TABLE {table};"));
        app.database.batch_execute(&kept.concat()).await.unwrap();
        app.database.batch_execute(UNGUARDED).await.unwrap();
        let key = |ride: &str| format!("(SELECT idempotency_key_id FROM rides WHERE id = {ride})");
        let [a, b, c, d] = [a, b, c, d].map(|id| id.to_string());
        let words = [
            ("$forget_a", "DELETE FROM idempotency_keys WHERE id = $key_a".to_owned()),
            ("$forget_refund", "DELETE FROM idempotency_keys WHERE operation = 'refund'".to_owned()),
            ("$unpay_a", "UPDATE rides SET stripe_charge_id = NULL WHERE id = $a".to_owned()),
            ("$unmake_refund", "UPDATE refunds SET stripe_refund_id = NULL".to_owned()),
            ("$unstage_a", "DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' = '$a'".to_owned()),
            ("$send_a", "INSERT INTO receipts VALUES ($a, 4711, 'x')".to_owned()),
            ("$key_a", key(&a)),
            ("$key_b", key(&b)),
            ("$a", a),
            ("$b", b),
            ("$c", c),
            ("$d", d),
        ];
        Self { app, words }
    }

    fn fill(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (name, word)| text.replace(name, word))
    }

    async fn restore(&self) {
        let back =
            |table| format!("DELETE FROM {table}; INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE kept_{table};");
        self.app.tamper(&TABLES.map(back).concat()).await;
    }

    async fn report_after(&self, change: &str) -> Report {
        self.restore().await;
        self.app.tamper(&self.fill(change)).await;
        self.app.verify(LIVE).await
    }

    /// Asserts that every rule holds after this change.
    pub(super) async fn hold(&self, what: &str, change: &str) {
        let report = self.report_after(change).await;
        assert!(report.violated().is_empty(), "{what}: {report}");
    }

    /// Asserts that this change shows these offences, and returns the report.
    pub(super) async fn show(&self, what: &str, change: &str, offences: &[&str]) -> String {
        let report = self.report_after(change).await.to_string();
        for offence in offences {
            let offence = self.fill(offence);
            assert!(report.contains(&offence), "{what}: {offence:?} is not in {report}");
        }
        report
    }

    /// Asserts that this change shows these offences, and none that contains `other`.
    pub(super) async fn show_without(&self, what: &str, change: &str, offences: &[&str], other: &str) {
        let (report, other) = (self.show(what, change, offences).await, self.fill(other));
        assert!(!report.contains(&other), "{what}: {other:?} is in {report}");
    }
}
