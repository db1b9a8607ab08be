//! What the database refuses, whatever the program does: every constraint, trigger and `NOT NULL` of `schema.sql`, each
//! with a write just beyond its limit that only this guard refuses.
//!
//! The lists are complete: if a constraint is added, dropped or renamed, or a column may be null, the first test fails
//! until it is listed.

use std::collections::BTreeSet;

use tokio_postgres::error::SqlState;

use crate::support::app::TestApp;

/// The rows that the changes below are applied to.
const ROWS: &str = "
    INSERT INTO idempotency_keys (idempotency_key, user_id, operation, request_method, request_path, request_params,
        origin_ip, lease_token, locked_at, next_attempt_at, recovery_point, step, state, response_code, response_body)
    VALUES ('key of a request that is free', 1, 'ride', 'POST', '/rides', '{}', '127.0.0.1', NULL, NULL, now(),
            'ride_created', 1, '{}', NULL, NULL),
           ('key of a request under lease', 1, 'ride', 'POST', '/rides', '{}', '127.0.0.1', gen_random_uuid(), now(),
            now(), 'later', 2, '{}', NULL, NULL),
           ('key of a request that is finished', 1, 'ride', 'POST', '/rides', '{}', '127.0.0.1', NULL, NULL, now(),
            'finished', 32767, '{}', 201, '{}');
    INSERT INTO rides (idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon, stripe_charge_id)
    VALUES (2, 1, 0, 0, 0, 0, NULL), (3, 1, 0, 0, 0, 0, 'ch_3');
    INSERT INTO refunds (idempotency_key_id, ride_id, user_id, stripe_refund_id)
    VALUES (1, 1, 1, NULL), (2, 2, 1, 're_2');
    INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
    VALUES ('ride.created', '{}', '127.0.0.1', 1, 'ride', 1);
    INSERT INTO staged_jobs (job_name, job_args) VALUES ('n', '{}');
    INSERT INTO jobs (staged_id, job_name, job_args, staged_at) VALUES (1000, 'n', '{}', now());
    INSERT INTO receipts (ride_id, staged_id, message_id) VALUES (2, 1000, '<x@y>');
    INSERT INTO refund_receipts (refund_id, staged_id, message_id) VALUES (2, 1001, '<x@y>');
    INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
    VALUES (1001, 'n', '{}', now(), 'queue', 1, 'x');
    INSERT INTO purged_jobs (staged_id, job_name, job_args, error) VALUES (1002, 'n', '{}', 'x');";

const FREE: &str = "WHERE id = 1";
const LEASED: &str = "WHERE id = 2";
const FINISHED: &str = "WHERE id = 3";

/// The `SET` list and the row of an update, or a whole statement of another kind.
type Change = (&'static str, &'static str);

/// A constraint or trigger, its table, and changes that it refuses.
const REFUSED: &[(&str, &str, &[Change])] = &[
    ("rocket_rides_schema_singleton_check", "rocket_rides_schema", &[("singleton = false", "")]),
    ("rocket_rides_schema_pkey", "rocket_rides_schema", &[("INSERT INTO rocket_rides_schema (version, usable_from) VALUES (1, 1)", "")]),
    ("usable_by_its_own_version", "rocket_rides_schema", &[("usable_from = version + 1", "")]),
    ("processes_pkey", "processes", &[("INSERT INTO processes SELECT * FROM processes", "")]),
    ("processes_name_check", "processes", &[("name = repeat('n', 256)", "")]),
    ("users_pkey", "users", &[("INSERT INTO users OVERRIDING SYSTEM VALUE VALUES (1, 'a@b', 'cus_a')", "")]),
    ("users_email_key", "users", &[("email = (SELECT email FROM users WHERE id = 2)", FREE)]),
    ("users_email_check", "users", &[("email = repeat('e', 256)", FREE)]),
    (
        "users_stripe_customer_id_key",
        "users",
        &[("stripe_customer_id = (SELECT stripe_customer_id FROM users WHERE id = 2)", FREE)],
    ),
    ("users_stripe_customer_id_check", "users", &[("stripe_customer_id = repeat('c', 51)", FREE)]),
    (
        "idempotency_keys_pkey",
        "idempotency_keys",
        &[(
            "INSERT INTO idempotency_keys (id, idempotency_key, user_id, operation, request_method, request_path,
                 request_params, origin_ip, next_attempt_at, recovery_point, step, state) OVERRIDING SYSTEM VALUE
             VALUES (1, 'another key of this user', 1, 'ride', 'POST', '/rides', '{}', '127.0.0.1', now(), 'x', 1, '{}')",
            "",
        )],
    ),
    (
        "one_key_per_user_and_name",
        "idempotency_keys",
        &[("idempotency_key = (SELECT idempotency_key FROM idempotency_keys WHERE id = 2)", FREE)],
    ),
    (
        "idempotency_keys_idempotency_key_check",
        "idempotency_keys",
        &[("idempotency_key = repeat('k', 19)", FREE), ("idempotency_key = repeat('k', 101)", FREE)],
    ),
    ("idempotency_keys_request_method_check", "idempotency_keys", &[("request_method = repeat('m', 11)", FREE)]),
    ("idempotency_keys_request_path_check", "idempotency_keys", &[("request_path = repeat('p', 101)", FREE)]),
    ("idempotency_keys_attempts_check", "idempotency_keys", &[("attempts = 0", FREE)]),
    ("idempotency_keys_completer_attempts_check", "idempotency_keys", &[("completer_attempts = -1", FREE)]),
    (
        "idempotency_keys_operation_check",
        "idempotency_keys",
        &[("operation = ''", FREE), ("operation = repeat('o', 51)", FREE)],
    ),
    (
        "idempotency_keys_recovery_point_check",
        "idempotency_keys",
        &[("recovery_point = '', step = 3", LEASED), ("recovery_point = repeat('p', 51), step = 3", LEASED)],
    ),
    (
        "idempotency_keys_step_check",
        "idempotency_keys",
        &[(
            "INSERT INTO idempotency_keys (idempotency_key, user_id, operation, request_method, request_path,
                 request_params, origin_ip, next_attempt_at, recovery_point, step, state)
             VALUES ('another key of this user', 1, 'ride', 'POST', '/rides', '{}', '127.0.0.1', now(), 'x', 0, '{}')",
            "",
        )],
    ),
    (
        "idempotency_keys_response_code_check",
        "idempotency_keys",
        &[
            ("recovery_point = 'finished', step = 32767, response_code = 99, response_body = '{}'", FREE),
            ("recovery_point = 'finished', step = 32767, response_code = 600, response_body = '{}'", FREE),
        ],
    ),
    (
        "leased_as_a_whole",
        "idempotency_keys",
        &[("lease_token = NULL", LEASED), ("locked_at = NULL", LEASED), ("locked_at = now()", FREE)],
    ),
    (
        "answered_as_a_whole",
        "idempotency_keys",
        &[
            ("recovery_point = 'finished', step = 32767, response_code = 201", FREE),
            ("response_body = '{}'", FREE),
        ],
    ),
    (
        "finished_is_answered",
        "idempotency_keys",
        &[
            ("recovery_point = 'finished', step = 32767", FREE),
            ("response_code = 201, response_body = '{}'", FREE),
        ],
    ),
    (
        "headers_of_an_answer",
        "idempotency_keys",
        &[("response_headers = 'Location: /rides/1'", FREE)],
    ),
    (
        "idempotency_keys_response_headers_check",
        "idempotency_keys",
        &[(
            "recovery_point = 'finished', step = 32767, response_code = 201, response_body = '{}',
             response_headers = repeat('h', 2001)",
            FREE,
        )],
    ),
    (
        "finished_is_last",
        "idempotency_keys",
        &[
            ("recovery_point = 'finished', step = 3", FREE),
            ("recovery_point = 'x', step = 32767, response_code = 201, response_body = '{}'", FREE),
        ],
    ),
    (
        "idempotency_keys.finished_holds_no_lease",
        "idempotency_keys",
        &[("lease_token = gen_random_uuid(), locked_at = now()", FINISHED)],
    ),
    ("parked_says_why", "idempotency_keys", &[("parked_at = now()", FREE), ("parked_reason = 'x'", FREE)]),
    (
        "parked_is_idle",
        "idempotency_keys",
        &[("parked_at = now(), parked_reason = 'x'", LEASED), ("parked_at = now(), parked_reason = 'x'", FINISHED)],
    ),
    (
        "recovery_point_never_moves_back",
        "idempotency_keys",
        &[("step = 1", LEASED), ("step = step + 1", LEASED), ("recovery_point = 'elsewhere'", LEASED)],
    ),
    (
        "answer_never_changes",
        "idempotency_keys",
        &[
            ("response_code = 402", FINISHED),
            ("response_headers = 'Location: /rides/1'", FINISHED),
            ("response_body = '{ }'", FINISHED),
        ],
    ),
    (
        "unfinished_is_never_removed",
        "idempotency_keys",
        &[("DELETE FROM idempotency_keys WHERE id = 2", "")],
    ),
    (
        "rides_pkey",
        "rides",
        &[("INSERT INTO rides OVERRIDING SYSTEM VALUE VALUES (1, now(), 4, 1, 0, 0, 0, 0, NULL)", "")],
    ),
    ("rides_idempotency_key_id_key", "rides", &[("idempotency_key_id = 3", FREE)]),
    ("rides_user_id_fkey", "rides", &[("user_id = 99", FREE), ("DELETE FROM users WHERE id = 1", "")]),
    ("rides_origin_lat_check", "rides", &[("origin_lat = -90.1", FREE), ("origin_lat = 90.1", FREE)]),
    ("rides_origin_lon_check", "rides", &[("origin_lon = -180.1", FREE), ("origin_lon = 180.1", FREE)]),
    ("rides_target_lat_check", "rides", &[("target_lat = -90.1", FREE), ("target_lat = 90.1", FREE)]),
    ("rides_target_lon_check", "rides", &[("target_lon = -180.1", FREE), ("target_lon = 180.1", FREE)]),
    ("rides_stripe_charge_id_key", "rides", &[("stripe_charge_id = 'ch_3'", FREE)]),
    (
        "rides_stripe_charge_id_check",
        "rides",
        &[("stripe_charge_id = ''", FREE), ("stripe_charge_id = repeat('c', 256)", FREE)],
    ),
    (
        "audit_records_pkey",
        "audit_records",
        &[(
            "INSERT INTO audit_records OVERRIDING SYSTEM VALUE VALUES (1, now(), 'a', '{}', '127.0.0.1', 1, 'ride', 1)",
            "",
        )],
    ),
    ("audit_records_action_check", "audit_records", &[("action = repeat('a', 51)", "")]),
    ("audit_records_resource_type_check", "audit_records", &[("resource_type = repeat('t', 51)", "")]),
    (
        "staged_jobs_pkey",
        "staged_jobs",
        &[("INSERT INTO staged_jobs (id, job_name, job_args) OVERRIDING SYSTEM VALUE VALUES (1, 'n', '{}')", "")],
    ),
    ("staged_jobs_job_name_check", "staged_jobs", &[("job_name = ''", ""), ("job_name = repeat('n', 101)", "")]),
    ("staged_jobs_attempts_check", "staged_jobs", &[("attempts = -1", "")]),
    (
        "jobs_pkey",
        "jobs",
        &[("INSERT INTO jobs (staged_id, job_name, job_args, staged_at) VALUES (1000, 'n', '{}', now())", "")],
    ),
    ("jobs_attempts_check", "jobs", &[("attempts = -1", "")]),
    ("jobs.finished_holds_no_lease", "jobs", &[("finished_at = now(), lease_token = gen_random_uuid()", "")]),
    (
        "refunds_pkey",
        "refunds",
        &[("INSERT INTO refunds OVERRIDING SYSTEM VALUE VALUES (1, now(), 7, 7, 1, NULL)", "")],
    ),
    ("refunds_idempotency_key_id_key", "refunds", &[("idempotency_key_id = 2", FREE)]),
    ("refunds_ride_id_key", "refunds", &[("ride_id = 2", FREE)]),
    ("refunds_ride_id_fkey", "refunds", &[("ride_id = 77", FREE), ("DELETE FROM rides WHERE id = 1", "")]),
    ("refunds_stripe_refund_id_key", "refunds", &[("stripe_refund_id = 're_2'", FREE)]),
    (
        "refunds_stripe_refund_id_check",
        "refunds",
        &[("stripe_refund_id = ''", FREE), ("stripe_refund_id = repeat('r', 256)", FREE)],
    ),
    (
        "refund_receipts_pkey",
        "refund_receipts",
        &[("INSERT INTO refund_receipts (refund_id, staged_id, message_id) VALUES (2, 7, '<z@y>')", "")],
    ),
    ("receipts_pkey", "receipts", &[("INSERT INTO receipts (ride_id, staged_id, message_id) VALUES (2, 7, '<z@y>')", "")]),
    (
        "dead_jobs_pkey",
        "dead_jobs",
        &[(
            "INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
             VALUES (1001, 'n', '{}', now(), 'outbox', 1, 'x')",
            "",
        )],
    ),
    ("dead_jobs_died_in_check", "dead_jobs", &[("died_in = 'x'", "")]),
    (
        "purged_jobs_pkey",
        "purged_jobs",
        &[("INSERT INTO purged_jobs (staged_id, job_name, job_args, error) VALUES (1002, 'n', '{}', 'x')", "")],
    ),
];

/// What the same constraints allow, at the same edges.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("processes", "name = repeat('n', 255)", ""),
    ("users", "email = repeat('e', 255), stripe_customer_id = repeat('c', 50)", FREE),
    ("idempotency_keys", "idempotency_key = repeat('k', 20)", FREE),
    ("idempotency_keys", "idempotency_key = repeat('k', 100), request_method = repeat('m', 10)", FREE),
    ("idempotency_keys", "request_path = repeat('p', 100)", FREE),
    ("idempotency_keys", "step = 2, operation = repeat('o', 50), recovery_point = repeat('p', 50)", FREE),
    ("idempotency_keys", "step = 32766, recovery_point = 'x'", LEASED),
    // Writing the same answer again is no change.
    ("idempotency_keys", "response_code = 201, response_body = '{}'", FINISHED),
    ("idempotency_keys", "parked_at = now(), parked_reason = 'x'", FREE),
    ("rides", "origin_lat = -90, origin_lon = -180, target_lat = -90, target_lon = -180", FREE),
    ("rides", "origin_lat = 90, origin_lon = 180, target_lat = 90, target_lon = 180", FREE),
    ("rides", "stripe_charge_id = repeat('c', 255)", FREE),
    ("refunds", "stripe_refund_id = repeat('r', 255)", FREE),
    (
        "idempotency_keys",
        "recovery_point = 'finished', step = 32767, response_code = 201, response_body = '{}',
         response_headers = repeat('h', 2000)",
        FREE,
    ),
    ("audit_records", "action = repeat('a', 50), resource_type = repeat('t', 50)", ""),
    ("staged_jobs", "job_name = repeat('n', 100)", ""),
    ("dead_jobs", "died_in = 'outbox'", ""),
];

/// Columns that may be null, by table; all others may not.
const NULLABLE: &[(&str, &[&str])] = &[
    ("rocket_rides_schema", &[]),
    ("users", &[]),
    (
        "idempotency_keys",
        &[
            "lease_token",
            "process_id",
            "locked_at",
            "last_error",
            "parked_at",
            "parked_reason",
            "response_code",
            "response_body",
        ],
    ),
    ("processes", &["scope", "pid", "pid_started", "ended_at"]),
    ("rides", &["stripe_charge_id"]),
    ("audit_records", &[]),
    ("staged_jobs", &["lease_token", "process_id", "last_error"]),
    ("jobs", &["lease_token", "process_id", "last_error", "finished_at"]),
    ("receipts", &[]),
    ("refunds", &["stripe_refund_id"]),
    ("refund_receipts", &[]),
    ("dead_jobs", &[]),
    ("purged_jobs", &[]),
];

async fn strings(app: &TestApp, sql: &str) -> BTreeSet<String> {
    app.query(sql, &[]).await.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn all_are_listed() {
    let app = TestApp::start().await;
    let there = strings(
        &app,
        // Postgres' own names of constraints begin with the table. Names of ours may occur in two tables, and then get
        // a prefix.
        "SELECT CASE WHEN count(*) OVER (PARTITION BY conname) > 1 THEN conrelid::regclass || '.' ELSE '' END || conname
         FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
         UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
    )
    .await;
    let listed = REFUSED.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(there, listed);

    let nullable = strings(
        &app,
        "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
           AND NOT a.attnotnull",
    )
    .await;
    let listed = NULLABLE
        .iter()
        .flat_map(|(table, columns)| columns.iter().map(move |column| format!("{table}.{column}")))
        .collect();
    assert_eq!(nullable, listed);
}

/// Tries a change and rolls it back.
async fn attempt(app: &TestApp, table: &str, change: &str, row: &str) -> Result<(), tokio_postgres::Error> {
    let statement = match change.split_whitespace().next() {
        Some("INSERT" | "DELETE") => change.to_owned(),
        _ => format!("UPDATE {table} SET {change} {row}"),
    };
    app.execute("BEGIN").await;
    let done = app.database.batch_execute(&statement).await;
    app.execute("ROLLBACK").await;
    done
}

#[tokio::test]
async fn each_refuses_what_it_is_there_for() {
    let app = TestApp::start().await;
    app.database.batch_execute(ROWS).await.unwrap();
    for (name, table, changes) in REFUSED {
        let constraint = name.strip_prefix(&format!("{table}.")).unwrap_or(name);
        for (change, row) in *changes {
            let error = attempt(&app, table, change, row).await.expect_err(change);
            let refused = error.as_db_error().unwrap();
            assert_eq!(refused.constraint(), Some(constraint), "{change}: {refused}");
        }
    }
}

#[tokio::test]
async fn and_nothing_else() {
    let app = TestApp::start().await;
    app.database.batch_execute(ROWS).await.unwrap();
    for (table, change, row) in ALLOWED {
        attempt(&app, table, change, row).await.expect(change);
    }
    // A finished key may be removed.
    attempt(&app, "idempotency_keys", "DELETE FROM idempotency_keys WHERE id = 3", "").await.expect("allowed");
}

#[tokio::test]
async fn what_must_be_there_cannot_be_null() {
    let app = TestApp::start().await;
    app.database.batch_execute(ROWS).await.unwrap();
    let columns = app
        .query(
            "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
             WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND a.attidentity = ''",
            &[],
        )
        .await;
    let mut refused = 0;
    for column in &columns {
        let (table, column): (&str, &str) = (column.get(0), column.get(1));
        let (_, nullable) = NULLABLE.iter().find(|(name, _)| *name == table).expect("listed");
        if nullable.contains(&column) {
            continue;
        }
        let error = attempt(&app, table, &format!("{column} = NULL"), "").await.expect_err(column);
        assert_eq!(error.code(), Some(&SqlState::NOT_NULL_VIOLATION), "{table}.{column}");
        refused += 1;
    }
    assert!(refused > 40, "{refused} columns");
}
