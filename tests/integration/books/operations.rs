//! What `verify` says of rides, refunds and their receipts: each offence that a rule can name is shown by the least change that
//! is one, and what looks like one and is none is passed over.

use crate::support::app::TestApp;
use crate::support::books::LIVE;
use crate::support::client::{Answer, DECLINED_USER, Post};

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

fn ride(answer: &Answer) -> i64 {
    answer.header("location").expect("a ride").replace("/rides/", "").parse().expect("its id")
}

/// Four rides: `a` was paid, `b` is not finished, `c` was declined, and `d` was paid and refunded. Jobs are staged.
struct Rides {
    app: TestApp,
    words: [(&'static str, String); 6],
}

impl Rides {
    async fn new() -> Self {
        let app = TestApp::start().await;
        let a = ride(&app.post(Post::default()).await);
        assert_eq!(app.post(Post::default().raising()).await.status, 500);
        let b: i64 = app.get("SELECT max(id) FROM rides").await;
        assert_eq!(app.post(Post::default().user(DECLINED_USER)).await.status, 402);
        let c: i64 = app.get("SELECT max(id) FROM rides").await;
        let d = ride(&app.post(Post::default()).await);
        assert_eq!(app.post(Post::refund(d)).await.status, 201);
        let kept = TABLES.map(|table| format!("CREATE TABLE kept_{table} AS TABLE {table};"));
        app.database.batch_execute(&kept.concat()).await.unwrap();
        app.database.batch_execute(UNGUARDED).await.unwrap();
        let key = |ride: &str| format!("(SELECT idempotency_key_id FROM rides WHERE id = {ride})");
        let [a, b, c, d] = [a, b, c, d].map(|id| id.to_string());
        let words = [("$key_a", key(&a)), ("$key_b", key(&b)), ("$a", a), ("$b", b), ("$c", c), ("$d", d)];
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

    /// Each change shows these offences, and none that contains the text that comes last. Where neither is given, all holds.
    async fn assert_shown(&self, cases: &[(&str, &str, &[&str], &str)]) {
        for &(what, change, shown, hidden) in cases {
            self.restore().await;
            self.app.tamper(&self.fill(change)).await;
            let report = self.app.verify(LIVE).await;
            if shown.is_empty() && hidden.is_empty() {
                assert!(report.violated().is_empty(), "{what}: {report}");
            }
            let report = report.to_string();
            for text in shown {
                let text = self.fill(text);
                assert!(report.contains(&text), "{what}: {text:?} is not in {report}");
            }
            assert!(hidden.is_empty() || !report.contains(&self.fill(hidden)), "{what}: {hidden:?} is in {report}");
        }
    }
}

const NOTHING: &str = "";

#[tokio::test]
async fn each_wrong_turn_in_a_rides_life_is_found() {
    let rides = Rides::new().await;
    let another = "its ride is another one";
    rides
        .assert_shown(&[
            ("nothing", "SELECT", &[], NOTHING),
            ("gone", "DELETE FROM rides WHERE id = $a", &[": 0 rides", "ride $a: recorded, not there"], NOTHING),
            (
                "twice",
                "INSERT INTO rides (idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon)
                 SELECT idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon
                 FROM rides WHERE id = $a",
                &[": 2 rides"],
                NOTHING,
            ),
            ("another user's", "UPDATE rides SET user_id = user_id + 1 WHERE id = $a", &[another], NOTHING),
            ("from elsewhere", "UPDATE rides SET origin_lat = origin_lat + 1 WHERE id = $a", &[another], NOTHING),
            ("from elsewhere", "UPDATE rides SET origin_lon = origin_lon + 1 WHERE id = $a", &[another], NOTHING),
            ("to elsewhere", "UPDATE rides SET target_lat = target_lat + 1 WHERE id = $a", &[another], NOTHING),
            ("to elsewhere", "UPDATE rides SET target_lon = target_lon + 1 WHERE id = $a", &[another], NOTHING),
            (
                "at an unknown point",
                "UPDATE idempotency_keys SET recovery_point = 'elsewhere' WHERE id = $key_b",
                &["unfinished at elsewhere"],
                NOTHING,
            ),
            (
                "charged too soon",
                "UPDATE rides SET stripe_charge_id = 'ch_x' WHERE id = $b",
                &["charged, and unfinished", "charge ch_x of ride $b: missing"],
                NOTHING,
            ),
            (
                "finished otherwise",
                "UPDATE idempotency_keys SET response_code = 503 WHERE id = $key_a",
                &["finished with 503"],
                NOTHING,
            ),
            (
                "not charged",
                "UPDATE rides SET stripe_charge_id = NULL WHERE id = $a",
                &["201 with 0 charges", "ride $a: finished, and does not know charge ch_"],
                NOTHING,
            ),
            (
                "declined and charged",
                "UPDATE idempotency_keys SET response_code = 402 WHERE id = $key_a",
                &["402 with 1 charges", "ride $a: a receipt without a 201 and its money"],
                "ride $a: 402 and charge",
            ),
            (
                "declined, and charged there",
                "UPDATE idempotency_keys SET response_code = 402 WHERE id = $key_a;
                 UPDATE rides SET stripe_charge_id = NULL WHERE id = $a",
                &["ride $a: 402 and charge ch_"],
                NOTHING,
            ),
            (
                "not a ride's key",
                "UPDATE idempotency_keys SET operation = 'another' WHERE id = $key_b; DELETE FROM rides WHERE id = $b",
                &["ride $b: recorded, not there"],
                ": 0 rides",
            ),
        ])
        .await;
}

#[tokio::test]
async fn each_wrong_charge_is_found() {
    let rides = Rides::new().await;
    rides
        .assert_shown(&[
            (
                "two charges",
                "UPDATE rides SET stripe_charge_id = 'ch_x' WHERE id = $a;
                 UPDATE idempotency_keys SET response_code = NULL WHERE id = $key_a",
                &["ride $a: charges ch_", " and ch_x", "charge ch_x of ride $a: missing"],
                NOTHING,
            ),
            (
                "charged, and not known yet",
                "UPDATE rides SET stripe_charge_id = NULL WHERE id = $a;
                 UPDATE idempotency_keys SET response_code = NULL WHERE id = $key_a",
                &["ride $a: a receipt without a 201 and its money"],
                "ch_",
            ),
            (
                "its key is gone",
                "DELETE FROM idempotency_keys WHERE id = $key_a",
                &[],
                "ride $a",
            ),
            (
                "its key is gone, and it does not know its charge",
                "DELETE FROM idempotency_keys WHERE id = $key_a; UPDATE rides SET stripe_charge_id = NULL WHERE id = $a",
                &[": its key is gone, and no ride knows it", "the decline of ride $a: missing"],
                NOTHING,
            ),
            (
                "made with another key than its own",
                "UPDATE idempotency_keys SET foreign_call_key = gen_random_uuid() WHERE id = $key_a;
                 UPDATE rides SET stripe_charge_id = NULL WHERE id = $a",
                &[": its key is gone, and no ride knows it"],
                NOTHING,
            ),
            (
                "for a user who does not ride",
                "UPDATE rides SET user_id = user_id + 1, stripe_charge_id = NULL WHERE id = $a",
                &[": its key is gone, and no ride knows it"],
                NOTHING,
            ),
            (
                "of a customer of another database",
                "UPDATE rides SET stripe_charge_id = NULL WHERE id = $a;
                 UPDATE users SET stripe_customer_id = 'cus_x'
                 WHERE id = (SELECT user_id FROM rides WHERE id = $a)",
                &["201 with 0 charges"],
                "finished, and does not know",
            ),
            (
                "declined, and its key is gone",
                "DELETE FROM idempotency_keys WHERE id = (SELECT idempotency_key_id FROM rides WHERE id = $c)",
                &[],
                NOTHING,
            ),
            (
                "never asked, and its key is gone",
                "DELETE FROM idempotency_keys WHERE id = $key_b",
                &["the decline of ride $b: missing"],
                NOTHING,
            ),
        ])
        .await;
}

#[tokio::test]
async fn each_wrong_record_of_a_ride_is_found() {
    let rides = Rides::new().await;
    rides
        .assert_shown(&[
            ("none", "DELETE FROM audit_records WHERE resource_id = $a", &["ride $a: missing"], NOTHING),
            (
                "two",
                "INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
                 SELECT action, data, origin_ip, resource_id, resource_type, user_id
                 FROM audit_records WHERE resource_id = $a",
                &["the record of ride $a: twice"],
                NOTHING,
            ),
            (
                "of something else",
                "INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
                 SELECT 'another', data, '::1', 4711, resource_type, user_id FROM audit_records WHERE resource_id = $a",
                &[],
                NOTHING,
            ),
            (
                "from its own address, which is no other's",
                "UPDATE audit_records SET origin_ip = '192.0.2.1' WHERE resource_id = $a;
                 UPDATE idempotency_keys SET origin_ip = '192.0.2.1' WHERE id = $key_a",
                &[],
                NOTHING,
            ),
            (
                "from another address",
                "UPDATE audit_records SET origin_ip = '192.0.2.1' WHERE resource_id = $a",
                &["ride $a: recorded with another address"],
                NOTHING,
            ),
        ])
        .await;
}

#[tokio::test]
async fn each_wrong_turn_in_a_refunds_life_is_found() {
    let rides = Rides::new().await;
    let (unpaid, both) = ("of a ride that was not paid, or not by this user", "finished or refunded, and not both");
    rides
        .assert_shown(&[
            ("not paid", "UPDATE rides SET stripe_charge_id = NULL WHERE id = $d", &[unpaid], NOTHING),
            ("not by this user", "UPDATE refunds SET user_id = user_id + 1", &[unpaid], NOTHING),
            (
                "finished otherwise",
                "UPDATE idempotency_keys SET response_code = 503 WHERE operation = 'refund'",
                &["finished with 503"],
                NOTHING,
            ),
            ("finished, not made", "UPDATE refunds SET stripe_refund_id = NULL", &[both], NOTHING),
            (
                "made, not finished",
                "UPDATE idempotency_keys SET response_code = NULL WHERE operation = 'refund'",
                &[both],
                NOTHING,
            ),
            (
                "under way",
                "UPDATE refunds SET stripe_refund_id = NULL;
                 UPDATE idempotency_keys SET response_code = NULL WHERE operation = 'refund'",
                &[],
                both,
            ),
            (
                "its key is gone",
                "DELETE FROM idempotency_keys WHERE operation = 'refund'",
                &[],
                NOTHING,
            ),
            (
                "its key is gone, and it was not made",
                "DELETE FROM idempotency_keys WHERE operation = 'refund'; UPDATE refunds SET stripe_refund_id = NULL",
                &[both],
                NOTHING,
            ),
            ("not in the books", "DELETE FROM refunds", &["ride $d: refunded at Stripe by re_"], NOTHING),
            (
                "another at Stripe",
                "UPDATE refunds SET stripe_refund_id = 're_x'",
                &["refund 1: re_", "refund re_x: missing"],
                NOTHING,
            ),
        ])
        .await;
}

#[tokio::test]
async fn each_wrong_receipt_is_found() {
    let rides = Rides::new().await;
    rides
        .assert_shown(&[
            (
                "none",
                "DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' = '$a'",
                &["the receipt of ride $a: missing"],
                NOTHING,
            ),
            (
                "none, and its key is gone",
                "DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' = '$a';
                 DELETE FROM idempotency_keys WHERE id = $key_a",
                &["the receipt of ride $a: missing"],
                NOTHING,
            ),
            (
                "none, and none is due",
                "DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' = '$a';
                 UPDATE idempotency_keys SET response_code = 402 WHERE id = $key_a",
                &["402 with 1 charges"],
                "the receipt of ride $a",
            ),
            (
                "to come, of a ride that is not finished",
                "UPDATE staged_jobs SET job_args = job_args || '{\"ride_id\": $b}' WHERE job_args ->> 'ride_id' = '$a'",
                &["ride $b: a receipt without a 201 and its money", "the receipt of ride $a: missing"],
                NOTHING,
            ),
            (
                "sent, for a ride that is not finished",
                "INSERT INTO receipts VALUES ($b, 4711, 'x')",
                &["ride $b: a receipt without a 201 and its money"],
                NOTHING,
            ),
            (
                "sent, for a ride that was declined after all",
                "INSERT INTO receipts VALUES ($a, 4711, 'x'); DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' = '$a';
                 UPDATE idempotency_keys SET response_code = 402 WHERE id = $key_a",
                &["ride $a: a receipt without a 201 and its money"],
                NOTHING,
            ),
            (
                "none, and it was never paid",
                "DELETE FROM idempotency_keys WHERE id = $key_a; UPDATE rides SET stripe_charge_id = NULL WHERE id = $a;
                 DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' = '$a'",
                &["the decline of ride $a: missing"],
                "the receipt of ride $a",
            ),
            (
                "to come, of a ride that was not paid",
                "DELETE FROM idempotency_keys WHERE id = $key_a; UPDATE rides SET stripe_charge_id = NULL WHERE id = $a",
                &["ride $a: a receipt without a 201 and its money"],
                NOTHING,
            ),
            (
                "sent, of a ride that was not paid",
                "DELETE FROM idempotency_keys WHERE id = $key_a; UPDATE rides SET stripe_charge_id = NULL WHERE id = $a;
                 DELETE FROM staged_jobs; INSERT INTO receipts VALUES ($a, 4711, 'x')",
                &["ride $a: a receipt without a 201 and its money"],
                NOTHING,
            ),
            (
                "to come, of no ride",
                "UPDATE staged_jobs SET job_args = job_args || '{\"ride_id\": 4711}' WHERE job_args ->> 'ride_id' = '$a'",
                &["ride 4711: a receipt without a 201 and its money"],
                NOTHING,
            ),
            (
                "said to be sent, and not recorded",
                "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, finished_at)
                 SELECT id, job_name, job_args, now(), now() FROM staged_jobs;
                 DELETE FROM staged_jobs; INSERT INTO receipts SELECT $d, id, 'x' FROM kept_staged_jobs LIMIT 1;
                 INSERT INTO refund_receipts VALUES (4711, 4712, 'x')",
                &[
                    "ride $a: its job is finished, and no receipt was recorded",
                    "refund 1: its job is finished, and no receipt was recorded",
                ],
                "ride $d: its job is finished",
            ),
            (
                "sent, while another job waits",
                "INSERT INTO receipts VALUES ($a, 4711, 'x'); DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' = '$a';
                 INSERT INTO dead_jobs VALUES (98, 'x', '{}', now(), now(), 'queue', 1, 'x');
                 INSERT INTO jobs (staged_id, job_name, job_args, staged_at) VALUES (97, 'x', '{}', now())",
                &[],
                "ride $a",
            ),
            (
                "none of the refund",
                "DELETE FROM staged_jobs WHERE job_name = 'send_refund_receipt'",
                &["the receipt of refund 1: missing"],
                NOTHING,
            ),
            (
                "none of a refund that was not made",
                "DELETE FROM staged_jobs WHERE job_name = 'send_refund_receipt';
                 DELETE FROM idempotency_keys WHERE operation = 'refund'; UPDATE refunds SET stripe_refund_id = NULL",
                &["finished or refunded, and not both"],
                "the receipt of refund",
            ),
            (
                "to come, of a refund that was not made",
                "DELETE FROM idempotency_keys WHERE operation = 'refund'; UPDATE refunds SET stripe_refund_id = NULL",
                &["refund 1: a receipt without a 201 and its money"],
                NOTHING,
            ),
            (
                "sent, of a refund that was not made",
                "DELETE FROM idempotency_keys WHERE operation = 'refund'; UPDATE refunds SET stripe_refund_id = NULL;
                 DELETE FROM staged_jobs; INSERT INTO refund_receipts VALUES (1, 4711, 'x')",
                &["refund 1: a receipt without a 201 and its money"],
                NOTHING,
            ),
            (
                "sent, of no refund",
                "INSERT INTO refund_receipts VALUES (4711, 4712, 'x')",
                &["refund 4711: a receipt without a 201 and its money"],
                NOTHING,
            ),
            (
                "another job with a refund's id",
                "UPDATE staged_jobs SET job_args = job_args || '{\"refund_id\": 4711}' WHERE job_name = 'send_ride_receipt'",
                &[],
                NOTHING,
            ),
            (
                "sent, and its key is gone",
                "INSERT INTO receipts VALUES ($a, 4711, 'x'); DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' = '$a';
                 DELETE FROM idempotency_keys WHERE id = $key_a",
                &[],
                NOTHING,
            ),
        ])
        .await;
}
