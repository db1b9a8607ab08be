//! A migration gives a database of an earlier version the schema of a new one, and loses nothing.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use rocket_rides_atomic::database::schema::{self, Extent, Older, SchemaError};
use tokio_postgres::Config;

use crate::support::app::{TempDir, TestApp, pool_of};
use crate::support::books::LIVE;
use crate::support::client::{Post, new_key};
use crate::support::process::{Process, arguments};
use crate::support::{cluster, eventually};

/// The schema of each earlier version. The first had one table less than the second; otherwise they are the same.
const VERSIONS: [(i32, &str); 2] = [
    (
        1,
        concat!(
            include_str!("../schemas/2.sql"),
            "DROP TABLE purged_jobs; UPDATE rocket_rides_schema SET version = 1;"
        ),
    ),
    (2, include_str!("../schemas/2.sql")),
];

/// Requests in every state that version 2 has, three of each.
const REQUESTS: &str = "
    INSERT INTO users (email, stripe_customer_id) VALUES ('one@example.com', 'cus_1');
    INSERT INTO idempotency_keys (idempotency_key, user_id, request_method, request_path, request_params, origin_ip,
        recovery_point, foreign_call_intended_at, next_attempt_at, response_code, response_body, parked_at, parked_reason,
        lease_token, locked_at)
    SELECT gen_random_uuid(), 1, 'POST', '/rides',
           '{\"origin_lat\": 0, \"origin_lon\": 0, \"target_lat\": 0, \"target_lon\": 0}', '127.0.0.1', point,
           CASE WHEN point <> 'started' THEN now() END, now(),
           CASE WHEN point = 'finished' THEN 201 END, CASE WHEN point = 'finished' THEN '{}'::json END,
           CASE WHEN state = 'parked' THEN now() END, CASE WHEN state = 'parked' THEN 'by a test' END,
           CASE WHEN state = 'leased' THEN gen_random_uuid() END, CASE WHEN state = 'leased' THEN now() END
    FROM unnest(ARRAY['started', 'ride_created', 'charge_created', 'finished']) point,
         unnest(ARRAY['idle', 'parked', 'leased']) state, generate_series(1, 3)
    WHERE point <> 'finished' OR state = 'idle';
    INSERT INTO rides (idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon, stripe_charge_id)
    SELECT id, 1, 0, 0, 0, 0, CASE WHEN recovery_point <> 'ride_created' THEN 'ch_' || id END
    FROM idempotency_keys WHERE recovery_point <> 'started'";

async fn database_of(version: &str) -> Config {
    let database = cluster::database().await;
    let client = cluster::connect(&database).await;
    client.batch_execute(version).await.unwrap();
    client.batch_execute(REQUESTS).await.unwrap();
    database
}

async fn migrate(database: &Config) -> Result<(), SchemaError> {
    schema::migrate(&pool_of(database, 1).await, Extent::Complete).await
}

/// Returns everything that can differ between the tables of two databases, except the order of columns.
async fn catalog(database: &Config) -> Vec<String> {
    const SQL: &str = "
        SELECT format('column %s.%s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                      a.attidentity, pg_get_expr(d.adbin, d.adrelid)) AS line
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
        UNION ALL SELECT format('table %s %s', relname, reloptions) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        UNION ALL SELECT format('constraint %s %s %s %s', conrelid::regclass, conname, convalidated,
                                pg_get_constraintdef(oid))
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT format('version %s %s', version, usable_from) FROM rocket_rides_schema
        ORDER BY line";
    cluster::connect(database).await.query(SQL, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Returns the catalog of a new database.
async fn new_catalog() -> Vec<String> {
    let mut app = TestApp::start().await;
    app.stop().await.unwrap();
    catalog(&app.database_config).await
}

/// Asserts that every request can be resumed from where it was, or has its answer if it was charged.
async fn assert_nothing_lost(database: &Config) {
    let client = cluster::connect(database).await;
    const STATES: &str = "SELECT format('%s %s %s %s', recovery_point, step, parked_at IS NOT NULL, count(*))
        FROM idempotency_keys GROUP BY recovery_point, step, parked_at IS NOT NULL ORDER BY 1";
    let states: Vec<String> = client.query(STATES, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(states, ["finished 32767 f 12", "ride_created 1 f 12", "ride_created 1 t 6"]);
    const FROZEN: &str = "SELECT count(*) FROM idempotency_keys k JOIN rides r ON r.idempotency_key_id = k.id
        WHERE response_code IS NULL AND operation = 'ride' AND foreign_call_intended_at IS NOT NULL
          AND state = jsonb_build_object('ride_id', r.id, 'charge', jsonb_build_object('amount', 2000,
              'currency', 'usd', 'customer', 'cus_1', 'description', 'Rocket ride ' || r.id))";
    assert_eq!(client.query_one(FROZEN, &[]).await.unwrap().get::<_, i64>(0), 18);
    const ANSWERED: &str = "SELECT count(*) FROM idempotency_keys k JOIN rides r ON r.idempotency_key_id = k.id
        JOIN staged_jobs j ON j.job_args = jsonb_build_object('ride_id', r.id, 'user_id', 1, 'amount', 2000, 'currency', 'usd')
        WHERE r.stripe_charge_id IS NOT NULL AND job_name = 'send_ride_receipt' AND response_code = 201
          AND response_headers = 'Location: /rides/' || r.id AND k.lease_token IS NULL";
    assert_eq!(client.query_one(ANSWERED, &[]).await.unwrap().get::<_, i64>(0), 9);
}

#[tokio::test]
async fn every_version_becomes_what_a_new_database_is() {
    let new = new_catalog().await;
    for (version, sql) in VERSIONS {
        let database = database_of(sql).await;
        let planned = schema::plan(&pool_of(&database, 1).await).await.unwrap();
        assert_eq!(planned.first().unwrap().to, version + 1);
        migrate(&database).await.unwrap();
        assert_eq!(catalog(&database).await, new, "from version {version}");
        assert_nothing_lost(&database).await;
        assert!(schema::plan(&pool_of(&database, 1).await).await.unwrap().is_empty());
    }
}

/// The release before takes and ends leases as before, and this one finishes its requests.
#[tokio::test]
async fn version_3_is_served_by_both_releases_at_once() {
    let new = new_catalog().await;
    let database = cluster::database().await;
    let client = cluster::connect(&database).await;
    client.batch_execute(include_str!("../schemas/3.sql")).await.unwrap();
    client
        .batch_execute(
            "INSERT INTO users (email, stripe_customer_id) VALUES ('one@example.com', 'cus_1');
             INSERT INTO idempotency_keys (idempotency_key, user_id, operation, request_method, request_path,
                 request_params, origin_ip, recovery_point, step, state, next_attempt_at, lease_token, locked_at)
             SELECT gen_random_uuid(), 1, 'ride', 'POST', '/rides', '{}', '127.0.0.1', 'ride_created', 1, '{}', now(),
                    gen_random_uuid(), now() FROM generate_series(1, 3)",
        )
        .await
        .unwrap();
    let planned = schema::plan(&pool_of(&database, 1).await).await.unwrap();
    assert_eq!(planned.iter().map(|step| step.to).collect::<Vec<_>>(), [4]);
    migrate(&database).await.unwrap();
    assert_eq!(catalog(&database).await, new);
    let sql = "SELECT count(*) FROM idempotency_keys WHERE lease_token IS NOT NULL AND process_id IS NULL";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 3, "the leases stay");
    let usable = "SELECT 3 BETWEEN usable_from AND version FROM rocket_rides_schema";
    assert!(client.query_one(usable, &[]).await.unwrap().get::<_, bool>(0), "release 3 goes on");
}

/// Wherever a process was killed, the next one completes the migration. The migration is dropped at each point where it
/// waits for the database, with a statement that has been sent, or is about to be.
#[tokio::test]
async fn a_migration_that_was_killed_is_taken_up_by_the_next() {
    let new = new_catalog().await;
    let mut cut = tokio::task::JoinSet::new();
    for polls in 1..60 {
        cut.spawn(async move {
            let database = database_of(VERSIONS[0].1).await;
            let pool = pool_of(&database, 1).await;
            let mut migration = pin!(schema::migrate(&pool, Extent::Complete));
            let mut left = polls;
            let ended = poll_fn(|context| {
                left -= 1;
                match migration.as_mut().poll(context) {
                    Poll::Ready(done) => Poll::Ready(Some(done)),
                    Poll::Pending if left == 0 => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await;
            (database, ended.is_some())
        });
        if cut.len() == 8 {
            check_cut(&mut cut, &new).await;
        }
    }
    let mut ended = false;
    while !cut.is_empty() {
        ended |= check_cut(&mut cut, &new).await;
    }
    assert!(ended, "the longest was not cut at all, so all places were visited");
}

async fn check_cut(cut: &mut tokio::task::JoinSet<(Config, bool)>, new: &[String]) -> bool {
    let (database, ended) = cut.join_next().await.unwrap().unwrap();
    migrate(&database).await.unwrap();
    assert_eq!(catalog(&database).await, new);
    assert_nothing_lost(&database).await;
    ended
}

#[tokio::test]
async fn ten_at_once_agree_while_the_release_before_takes_requests() {
    let database = database_of(VERSIONS[1].1).await;
    let writer = cluster::connect(&database).await;
    const NEW: &str = "INSERT INTO idempotency_keys (idempotency_key, user_id, request_method, request_path, request_params,
            origin_ip, next_attempt_at)
        VALUES (gen_random_uuid(), 1, 'POST', '/rides',
                '{\"origin_lat\": 1, \"origin_lon\": 1, \"target_lat\": 1, \"target_lon\": 1}', '127.0.0.1', now())";
    let traffic = tokio::spawn(async move {
        let mut taken = 0;
        while writer.execute(NEW, &[]).await.is_ok() {
            taken += 1;
        }
        taken
    });
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let database = database.clone();
        all.spawn(async move { migrate(&database).await });
    }
    for done in all.join_all().await {
        done.unwrap();
    }
    // The switch has ended the traffic: a request without an operation is refused.
    let taken: i64 = traffic.await.unwrap();
    assert_eq!(catalog(&database).await, new_catalog().await);
    let rides = "SELECT count(*) FROM rides r JOIN idempotency_keys k ON k.id = r.idempotency_key_id
        WHERE origin_lat = 1 AND k.recovery_point = 'ride_created' AND k.state ->> 'ride_id' = r.id::text";
    let client = cluster::connect(&database).await;
    assert_eq!(client.query_one(rides, &[]).await.unwrap().get::<_, i64>(0), taken);
    assert!(taken > 0);
}

/// A start waits for the switch, and not for the reading of large tables that follows.
#[tokio::test]
async fn a_database_can_be_used_before_its_migration_is_complete() {
    let database = database_of(VERSIONS[1].1).await;
    let pool = pool_of(&database, 2).await;
    schema::ensure(&pool, Older::Migrate).await.unwrap();
    schema::check(&pool).await.unwrap();
    let left: Vec<_> = schema::plan(&pool).await.unwrap().iter().map(|step| step.what).collect();
    assert_eq!(left, ["validate the new constraints", "make a column NOT NULL"]);

    let other = cluster::connect(&database).await;
    let at_work = |lock: &str| format!("SELECT {lock}(7265736375)");
    other.batch_execute(&at_work("pg_advisory_lock")).await.unwrap();
    schema::ensure(&pool, Older::Migrate).await.expect("does not wait for the process that is at work");
    let mut completion = pin!(schema::complete(&pool));
    let waited = tokio::time::timeout(Duration::from_millis(300), &mut completion).await;
    waited.expect_err("another process is at work");
    other.batch_execute(&at_work("pg_advisory_unlock")).await.unwrap();
    completion.await;
    assert_eq!(catalog(&database).await, new_catalog().await);
}

/// The statements that the previous release still sends for a request that it works on: for the lease, for the charge,
/// and for the answer.
#[tokio::test]
async fn the_release_before_brings_no_request_on_once_the_switch_is_made() {
    let database = database_of(VERSIONS[1].1).await;
    migrate(&database).await.unwrap();
    let client = cluster::connect(&database).await;
    let unfinished =
        "SET lease_token = gen_random_uuid(), locked_at = now() WHERE response_code IS NULL AND parked_at IS NULL";
    assert_eq!(client.execute(&format!("UPDATE idempotency_keys {unfinished}"), &[]).await.unwrap(), 12);
    for brought_on in [
        "SET recovery_point = 'charge_created'",
        "SET recovery_point = 'finished', response_code = 201, response_body = '{}', lease_token = NULL, locked_at = NULL",
    ] {
        let sql = format!("UPDATE idempotency_keys {brought_on} WHERE lease_token IS NOT NULL");
        let refused = client.execute(&sql, &[]).await.expect_err(brought_on);
        assert_eq!(refused.code(), Some(&tokio_postgres::error::SqlState::CHECK_VIOLATION), "{refused:?}");
    }
}

#[tokio::test]
async fn a_table_in_use_is_waited_for_without_holding_up_others() {
    let database = database_of(VERSIONS[1].1).await;
    let mut holder = cluster::connect(&database).await;
    let held = holder.transaction().await.unwrap();
    held.batch_execute("UPDATE idempotency_keys SET last_error = 'held'").await.unwrap();
    let migration = tokio::spawn({
        let database = database.clone();
        async move { migrate(&database).await }
    });
    let other = cluster::connect(&database).await;
    // The migration waits for the table, lets others go first, and waits again.
    for waiting in [true, false, true] {
        eventually("the migration's turn", async || {
            let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'idempotency_keys'::regclass";
            let count: i64 = other.query_one(sql, &[]).await.unwrap().get(0);
            ((count > 0) == waiting).then_some(())
        })
        .await;
        other.execute("UPDATE users SET email = email", &[]).await.unwrap();
        other.execute("SELECT count(*) FROM idempotency_keys", &[]).await.unwrap();
    }
    held.commit().await.unwrap();
    migration.await.unwrap().unwrap();
    assert_nothing_lost(&database).await;
}

/// A step may take longer than the statements of a role are allowed to.
#[tokio::test]
async fn a_limit_on_statements_is_none_for_a_migration() {
    let database = database_of(VERSIONS[1].1).await;
    let mut holder = cluster::connect(&database).await;
    let hasty =
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = 50', current_database()); END $$";
    holder.batch_execute(hasty).await.unwrap();
    let held = holder.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE idempotency_keys").await.unwrap();
    let migration = tokio::spawn({
        let database = database.clone();
        async move { migrate(&database).await }
    });
    let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'idempotency_keys'::regclass";
    eventually("a step that waits", async || {
        let waiting: i64 = held.query_one(sql, &[]).await.unwrap().get(0);
        (waiting > 0).then_some(())
    })
    .await;
    held.batch_execute("SET LOCAL statement_timeout = 0; SELECT pg_sleep(0.15)").await.unwrap();
    held.commit().await.unwrap();
    migration.await.unwrap().unwrap();
    assert_nothing_lost(&database).await;
}

/// A constraint that is not validated is a step that is left only if it belongs to the migrated table.
#[tokio::test]
async fn a_constraint_of_another_table_is_ignored() {
    let database = database_of(VERSIONS[1].1).await;
    let client = cluster::connect(&database).await;
    client.batch_execute("ALTER TABLE users ADD CONSTRAINT later CHECK (id > 0) NOT VALID").await.unwrap();
    migrate(&database).await.unwrap();
    assert!(schema::plan(&pool_of(&database, 1).await).await.unwrap().is_empty());
}

/// Returns the program's exit code on this database, and what it printed.
async fn said(database: &Config, words: &[&str]) -> (i32, Vec<String>) {
    let dir = TempDir::new();
    let mut all = arguments(Some(database), dir.path(), &[]);
    all.extend(words.iter().map(|word| (*word).to_owned()));
    let mut process = Process::spawn(&all);
    let code = process.exit().await.code().unwrap();
    (code, process.all_said().await)
}

#[tokio::test]
async fn an_older_database_is_refused_until_the_command_has_brought_it_here() {
    let database = database_of(VERSIONS[0].1).await;
    let (code, refused) = said(&database, &["verify"]).await;
    assert_eq!(code, 78, "{refused:?}");
    assert!(
        refused.iter().any(|line| line.contains("version 1") && line.contains("migrate --plan")),
        "{refused:?}"
    );

    let (code, planned) = said(&database, &["migrate", "--plan"]).await;
    assert_eq!((code, planned[0].as_str()), (0, "10 steps"));
    assert_eq!(planned[1], "to version 2: add the table purged_jobs (locks nothing that requests need)");
    let (_, again) = said(&database, &["migrate", "--plan"]).await;
    assert_eq!(again, planned, "a plan changes nothing");

    let (code, done) = said(&database, &["migrate"]).await;
    assert_eq!(code, 0, "{done:?}");
    assert_eq!(said(&database, &["migrate", "--plan"]).await, (0, vec!["0 steps".to_owned()]));
    assert_nothing_lost(&database).await;
}

#[tokio::test]
async fn what_is_no_earlier_version_of_ours_is_not_migrated() {
    let database = cluster::database().await;
    let (code, absent) = said(&database, &["migrate"]).await;
    assert_eq!(code, 78, "{absent:?}");
    assert!(absent.iter().any(|line| line.contains("no Rocket Rides")), "{absent:?}");
    let database = database_of(VERSIONS[1].1).await;
    migrate(&database).await.unwrap();
    let client = cluster::connect(&database).await;
    client.batch_execute("UPDATE rocket_rides_schema SET version = 999, usable_from = 999").await.unwrap();
    let (code, newer) = said(&database, &["migrate"]).await;
    assert_eq!(code, 78, "{newer:?}");
    assert!(newer.iter().any(|line| line.contains("999") && line.contains("newer program")), "{newer:?}");
}

/// Requests of the previous release are finished by this one, with the charges that the previous release made.
#[tokio::test]
async fn requests_of_the_release_before_are_finished() {
    let mut app = TestApp::start().await;
    let [asked, charged, done] = [(); 3].map(|()| new_key());
    for key in [&asked, &charged, &done] {
        assert_eq!(app.post(Post::default().key(key)).await.status, 201);
    }
    let answered = app.post(Post::default().key(&done)).await;
    app.stop().await.unwrap();
    let started = new_key();
    set_back(&app, &format!(
        "UPDATE idempotency_keys SET recovery_point = 'ride_created', response_code = NULL, response_body = NULL
         WHERE idempotency_key = '{asked}';
         UPDATE idempotency_keys SET recovery_point = 'charge_created', response_code = NULL, response_body = NULL
         WHERE idempotency_key = '{charged}';
         DELETE FROM staged_jobs WHERE job_args ->> 'ride_id' IN (
             SELECT r.id::text FROM rides r JOIN idempotency_keys k ON k.id = r.idempotency_key_id
             WHERE k.response_code IS NULL);
         UPDATE rides SET stripe_charge_id = NULL
         FROM idempotency_keys k WHERE k.id = rides.idempotency_key_id AND k.idempotency_key = '{asked}';
         INSERT INTO idempotency_keys (idempotency_key, user_id, request_method, request_path, request_params, origin_ip,
             next_attempt_at)
         SELECT '{started}', user_id, request_method, request_path, request_params, origin_ip, now()
         FROM idempotency_keys WHERE idempotency_key = '{done}'"
    ))
    .await;
    let app = app.restarted_after_stop(|config| config.database.migrate = true).await;
    for key in [&started, &asked, &charged] {
        assert_eq!(app.post(Post::default().key(key)).await.status, 201, "{key}");
    }
    let pool = pool_of(&app.database_config, 1).await;
    eventually("the migration is complete", async || schema::plan(&pool).await.unwrap().is_empty().then_some(()))
        .await;
    let again = app.post(Post::default().key(&done)).await;
    assert_eq!((again.status, again.body), (answered.status, answered.body));
    assert_eq!(app.charges().await.len(), 4);
    let report = app.verify(LIVE).await;
    assert!(report.violated().is_empty(), "{report}");
}

/// Turns the database into one of version 2 with the same rows, and changes those.
async fn set_back(app: &TestApp, changes: &str) {
    const TABLES: [&str; 5] = ["users", "idempotency_keys", "rides", "audit_records", "staged_jobs"];
    let mut kept = Vec::new();
    for table in TABLES {
        let sql = format!("SELECT coalesce(json_agg(t), '[]')::text FROM {table} t");
        kept.push((table, app.get::<String>(&sql).await));
    }
    app.database.batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.unwrap();
    app.database.batch_execute(VERSIONS[1].1).await.unwrap();
    for (table, rows) in kept {
        let sql = format!(
            "INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM json_populate_recordset(NULL::{table}, $1::text::json)"
        );
        app.database.execute(&sql, &[&rows]).await.unwrap();
        let sql = format!(
            "SELECT setval(pg_get_serial_sequence('{table}', 'id'), greatest((SELECT max(id) FROM {table}), 1))"
        );
        app.database.batch_execute(&sql).await.unwrap();
    }
    let all = format!("SET session_replication_role = replica; {changes}; SET session_replication_role = origin");
    app.database.batch_execute(&all).await.unwrap();
}
