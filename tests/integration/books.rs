//! What `verify` reports about the life of a job: nothing while all is in order, else the rule that is broken.

mod receipts;
mod refunds;
mod rides;
mod stage;

use std::time::Duration;

use atomic_phases::rules::{Check, Circumstances, Report, Rule};

use crate::support::app::{TestApp, pool, stage};
use crate::support::books::{self, AT_REST, LIVE};
use crate::support::client::Post;

/// Returns an app with one paid ride whose receipt was sent, and with copies of the tables `jobs` and `receipts`.
async fn receipted() -> TestApp {
    let app = TestApp::with(|config| {
        config.roles.enqueuer = true;
        config.roles.worker = true;
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("receipts", 1).await;
    app.database
        .batch_execute("CREATE TABLE kept_jobs AS TABLE jobs; CREATE TABLE kept_receipts AS TABLE receipts")
        .await
        .unwrap();
    app
}

/// Another queue takes the jobs out of the database.
const JOBS_LEAVE: Circumstances = Circumstances { jobs_stay: false, ..LIVE };

const ONE_PLACE: &str = "a job is in one place";
const RECEIPTS: &str = "a ride that was paid has one receipt, and no other has any";

async fn verify(app: &TestApp, circumstances: Circumstances) -> Report {
    books::verify(&pool(&app.database_config).await, app.stripe(), circumstances).await
}

const RESTORE: &str = "
    DELETE FROM jobs; DELETE FROM receipts; DELETE FROM dead_jobs; DELETE FROM purged_jobs;
    DELETE FROM staged_jobs;
    INSERT INTO jobs TABLE kept_jobs; INSERT INTO receipts TABLE kept_receipts";

#[tokio::test]
async fn each_stage_of_a_jobs_life_is_in_order() {
    const DIE: &str = "
        DELETE FROM receipts; DELETE FROM jobs;
        INSERT INTO dead_jobs SELECT staged_id, job_name, job_args, staged_at, now(), 'queue', 30, 'x' FROM kept_jobs";
    const NONSENSE: &str = "
        INSERT INTO dead_jobs
        VALUES (99, 'send_ride_receipt', '{\"ride_id\": \"x\"}', now(), now(), 'queue', 1, 'x'),
               (98, 'send_ride_receipt', '{\"ride_id\": 99999999999999999999}', now(), now(), 'queue', 1, 'x')";
    const GIVE_UP: &str = "
        DELETE FROM receipts; DELETE FROM jobs;
        INSERT INTO purged_jobs SELECT staged_id, job_name, job_args, now(), 'x' FROM kept_jobs";
    let app = receipted().await;
    for change in ["", "DELETE FROM jobs", DIE, GIVE_UP, NONSENSE] {
        app.database.batch_execute(RESTORE).await.unwrap();
        app.database.batch_execute(change).await.unwrap();
        let report = verify(&app, AT_REST).await;
        assert!(report.violated().is_empty(), "{change}: {report}");
    }
}

#[tokio::test]
async fn each_wrong_turn_in_a_jobs_life_is_found() {
    let app = receipted().await;
    for (what, change, rules) in [
        ("a receipt of no ride", "INSERT INTO receipts VALUES (99, 99, 'x')", &[RECEIPTS][..]),
        ("finished without a receipt", "DELETE FROM receipts", &[RECEIPTS]),
        ("lost", "DELETE FROM receipts; DELETE FROM jobs", &[RECEIPTS]),
        (
            "two jobs for a ride",
            "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, finished_at)
             SELECT 99, job_name, job_args, staged_at, finished_at FROM jobs",
            &[RECEIPTS],
        ),
        (
            "staged, and delivered",
            "INSERT INTO staged_jobs (id, job_name, job_args, next_attempt_at) OVERRIDING SYSTEM VALUE
             SELECT staged_id, job_name, job_args, 'infinity' FROM jobs",
            &[ONE_PLACE, "every staged job has been delivered", RECEIPTS],
        ),
        (
            "staged, and dead",
            "INSERT INTO staged_jobs (id, job_name, job_args, next_attempt_at) OVERRIDING SYSTEM VALUE
             SELECT staged_id, 'x', '{}', 'infinity' FROM jobs;
             INSERT INTO dead_jobs SELECT staged_id, 'x', '{}', staged_at, now(), 'outbox', 1, 'x' FROM jobs;
             UPDATE jobs SET staged_id = 99; UPDATE receipts SET staged_id = 99",
            &[ONE_PLACE, "every staged job has been delivered"],
        ),
        (
            "staged, and given up",
            "INSERT INTO staged_jobs (id, job_name, job_args, next_attempt_at) OVERRIDING SYSTEM VALUE
             SELECT staged_id, 'x', '{}', 'infinity' FROM jobs;
             INSERT INTO purged_jobs SELECT staged_id, 'x', '{}', now(), 'x' FROM jobs;
             UPDATE jobs SET staged_id = 99; UPDATE receipts SET staged_id = 99",
            &[ONE_PLACE, "every staged job has been delivered"],
        ),
        (
            "delivered, and dead",
            "INSERT INTO dead_jobs SELECT staged_id, 'x', '{}', staged_at, now(), 'queue', 1, 'x' FROM jobs",
            &[ONE_PLACE, RECEIPTS],
        ),
        (
            "delivered, and given up",
            "INSERT INTO purged_jobs SELECT staged_id, 'x', '{}', now(), 'x' FROM jobs",
            &[ONE_PLACE],
        ),
        (
            "dead, and given up",
            "INSERT INTO dead_jobs VALUES (98, 'x', '{}', now(), now(), 'queue', 1, 'x');
             INSERT INTO purged_jobs VALUES (98, 'x', '{}', now(), 'x')",
            &[ONE_PLACE],
        ),
        (
            "sent, and to be sent again",
            "UPDATE jobs SET finished_at = NULL, next_attempt_at = 'infinity'",
            &["every queued job has been worked", RECEIPTS],
        ),
        (
            "not worked",
            "DELETE FROM receipts; UPDATE jobs SET finished_at = NULL, next_attempt_at = 'infinity'",
            &["every queued job has been worked"],
        ),
    ] {
        app.database.batch_execute(RESTORE).await.unwrap();
        app.database.batch_execute(change).await.unwrap();
        let report = verify(&app, AT_REST).await;
        assert_eq!(report.violated(), rules, "{what}: {report}");
    }
}

#[tokio::test]
async fn each_wrong_turn_in_a_keys_life_is_found() {
    const FORGOTTEN: &str = "every key is finished, parked or not long due";
    const ENDED: &str = "every key has ended finished or parked";
    const LEASED: &str = "lease_token = gen_random_uuid(), locked_at";
    let app = TestApp::start().await;
    assert_eq!(app.post(Post::default().raising()).await.status, 500);
    let leased = |locked: &str, due: &str| format!("{LEASED} = now() {locked}, next_attempt_at = now() {due}");
    for (what, change, rules) in [
        ("due for 59 minutes", "next_attempt_at = now() - interval '59 min'".to_owned(), &[ENDED][..]),
        ("due for 61 minutes", "next_attempt_at = now() - interval '61 min'".to_owned(), &[FORGOTTEN, ENDED]),
        ("in work", leased("- interval '59 min'", "- interval '61 min'"), &[ENDED]),
        ("left in work", leased("- interval '61 min'", "- interval '61 min'"), &[FORGOTTEN, ENDED]),
        ("not due", leased("- interval '61 min'", "+ interval '1 min'"), &[ENDED]),
        (
            "parked",
            "parked_at = now(), parked_reason = 'for a test', lease_token = NULL, locked_at = NULL".to_owned(),
            &[],
        ),
    ] {
        let due_long_ago = "lease_token = NULL, locked_at = NULL, next_attempt_at = '-infinity'";
        app.tamper(&format!("UPDATE idempotency_keys SET {due_long_ago}")).await;
        app.tamper(&format!("UPDATE idempotency_keys SET {change}")).await;
        let report = app.verify(AT_REST).await;
        // The ride that its key has left half-way is against other rules.
        let of_keys: Vec<_> =
            report.violated().into_iter().filter(|rule| [FORGOTTEN, ENDED].contains(rule)).collect();
        assert_eq!(of_keys, rules, "{what}: {report}");
    }
    let app = receipted().await;
    app.tamper("UPDATE idempotency_keys SET next_attempt_at = '-infinity'").await;
    let report = verify(&app, AT_REST).await;
    assert!(report.violated().is_empty(), "finished: {report}");
}

#[tokio::test]
async fn a_lease_of_a_process_that_nobody_knows_is_found() {
    let app = TestApp::start().await;
    assert_eq!(app.post(Post::default().raising()).await.status, 500);
    stage(&app, 1).await;
    app.execute("INSERT INTO jobs VALUES (99, 'n', '{}', now())").await;
    const KEYS: &str = "every lease on a key belongs to a known process";
    const JOBS: &str = "every lease on a job belongs to a known process";
    const TABLES: [(&str, &str, &str); 3] =
        [("idempotency_keys", ", locked_at = now()", KEYS), ("staged_jobs", "", JOBS), ("jobs", "", JOBS)];
    for (table, more, rule) in TABLES {
        for (process, broken) in
            [("NULL", false), ("(SELECT id FROM processes)", false), ("gen_random_uuid()", true)]
        {
            app.execute(&format!(
                "UPDATE {table} SET lease_token = gen_random_uuid(), process_id = {process}{more}"
            ))
            .await;
            let report = app.verify(LIVE).await;
            assert_eq!(report.violated().contains(&rule), broken, "{table} {process}: {report}");
        }
        let end = more.replace("now()", "NULL");
        app.execute(&format!("UPDATE {table} SET lease_token = NULL{end}")).await;
        let report = app.verify(LIVE).await;
        assert!(!report.violated().contains(&rule), "{table}, no lease: {report}");
    }
}

#[tokio::test]
async fn jobs_that_left_for_another_queue_are_not_missed() {
    let app = receipted().await;
    app.database.batch_execute("DELETE FROM jobs; DELETE FROM receipts").await.unwrap();
    let report = verify(&app, Circumstances { at_rest: true, ..JOBS_LEAVE }).await;
    assert!(report.violated().is_empty(), "{report}");
    assert!(report.to_string().contains("(jobs leave this database"), "{report}");
    let twice = "INSERT INTO staged_jobs (job_name, job_args) SELECT job_name, job_args FROM kept_jobs";
    for _ in 0..2 {
        app.execute(twice).await;
    }
    assert_eq!(verify(&app, JOBS_LEAVE).await.violated(), [RECEIPTS]);
}

#[tokio::test]
async fn a_live_system_is_sound_at_every_moment() {
    let app = TestApp::with(|config| {
        config.roles.enqueuer = true;
        config.roles.worker = true;
        config.roles.reaper = true;
        config.worker.keep_finished = Duration::from_millis(30);
    })
    .await;
    let traffic = async {
        for _ in 0..60 {
            assert_eq!(app.post(Post::default()).await.status, 201);
        }
    };
    let look = async {
        loop {
            let report = app.verify(LIVE).await;
            assert!(report.violated().is_empty(), "{report}");
        }
    };
    tokio::select! {
        () = traffic => {}
        () = look => {}
    }
    app.until_count("jobs", 0).await;
    assert_eq!(app.count("receipts").await, 60);
    app.assert_sound().await;
}

#[tokio::test]
async fn a_guard_that_is_gone_is_found() {
    let app = TestApp::start().await;
    app.execute("CREATE TABLE another ()").await;
    for trigger in ["recovery_point_never_moves_back", "answer_never_changes", "unfinished_is_never_removed"] {
        // Another table's trigger of that name guards nothing here.
        let another = "BEFORE UPDATE ON another FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()";
        app.execute(&format!("CREATE TRIGGER {trigger} {another}")).await;
        for off in ["DISABLE", "ENABLE REPLICA"] {
            app.execute(&format!("ALTER TABLE idempotency_keys {off} TRIGGER {trigger}")).await;
            let report = app.verify(LIVE).await;
            assert_eq!(report.violated().len(), 1, "{report}");
            assert!(report.to_string().contains(&format!("{trigger} is missing or disabled")), "{report}");
            app.execute(&format!("ALTER TABLE idempotency_keys ENABLE TRIGGER {trigger}")).await;
        }
    }
    app.assert_sound().await;
}

#[tokio::test]
async fn a_rule_that_cannot_be_asked_is_named() {
    const NONSENSE: &str = "SELECT id, nonsense AS offence FROM rides WHERE id > $1 LIMIT $2";
    const ENDLESS: &str = "SELECT id, NULL AS offence FROM rides WHERE id >= $1 ORDER BY id LIMIT $2";
    let app = TestApp::start().await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    let database = pool(&app.database_config).await;
    for (sql, problem) in [(NONSENSE, "column \"nonsense\" does not exist"), (ENDLESS, "from behind $1")] {
        let rules = [Rule::rows("a rule of a locker", sql)];
        let error = Check { database: &database, circumstances: LIVE }.ask(&rules).await.expect_err(sql);
        let said = atomic_phases::errors::chain(&error);
        assert!(said.contains("\"a rule of a locker\"") && said.contains(problem), "{said}");
    }
}

/// The rules find it even without the constraints that refuse it.
#[tokio::test]
async fn an_answer_that_is_no_answer_is_found() {
    const WHOLE: &str = "a finished key is not written to";
    const REFUND: &str = "a refund is of its user's paid ride, and made when it says so";
    let app = TestApp::start().await;
    let ride = app.post(Post::default()).await.ride_id();
    assert_eq!(app.post(Post::refund(ride)).await.status, 201);
    app.execute(
        "ALTER TABLE idempotency_keys DROP CONSTRAINT answered_as_a_whole, DROP CONSTRAINT finished_holds_no_lease",
    )
    .await;
    for (change, back, rule) in [
        ("response_code = 503 WHERE operation = 'refund'", "response_code = 201", REFUND),
        ("response_body = NULL", "response_body = '{}'", WHOLE),
        ("last_error = 'x'", "last_error = NULL", WHOLE),
        ("lease_token = gen_random_uuid(), locked_at = now()", "lease_token = NULL, locked_at = NULL", WHOLE),
    ] {
        app.tamper(&format!("UPDATE idempotency_keys SET {change}")).await;
        let report = app.verify(LIVE).await;
        assert!(report.violated().contains(&rule), "{change}: {report}");
        app.tamper(&format!("UPDATE idempotency_keys SET {back}")).await;
    }
    let report = app.verify(LIVE).await;
    assert!(report.violated().is_empty(), "{report}");
}
