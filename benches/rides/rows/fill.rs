//! Fills the tables, by SQL and in seconds, as years of rides would.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use futures_util::StreamExt;
use tokio_postgres::Client;

use super::Bench;
use crate::servers::postgres::Database;
use crate::servers::process::Process;

/// The columns of a key that are the same in every state.
const KEY: &str = "operation, idempotency_key, user_id, request_method, request_path, request_params, origin_ip";
const KEY_VALUES: &str = r#"'ride', gen_random_uuid(), 1, 'POST', '/rides', '{"origin_lat": 37.7749, "origin_lon": -122.4194,
    "target_lat": 34.0522, "target_lon": -118.2437}', '127.0.0.1'"#;

/// Name and arguments of the job of the ride number `g`.
const RECEIPT: &str = "'send_ride_receipt',
    jsonb_build_object('ride_id', g, 'user_id', 1, 'amount', 2000, 'currency', 'usd')";

impl Bench {
    /// Creates a database with the schema and the two users, and returns it with a connection.
    pub(super) async fn seeded(&self, part: &str) -> (Database, Client) {
        let database = self.postgres.fresh(part).await;
        Process::start("api", &database, self.sandbox, &[]).await.stop().await;
        let client = database.connect().await;
        (database, client)
    }
}

/// Inserts finished keys with their rides. `age` is SQL for the age of the key number `g` of `count`.
pub(super) async fn finished_keys(client: &Client, count: u32, age: &str) {
    let keys = format!(
        "INSERT INTO idempotency_keys ({KEY}, created_at, last_run_at, next_attempt_at, foreign_call_intended_at,
             recovery_point, step, state, response_code, response_body)
         SELECT {KEY_VALUES}, at, at, at + interval '5 minutes', at, 'finished', 32767, '{{}}', 201,
             '{{\"message\":\"Your ride is booked and paid. The pilot is on the way.\"}}'
         FROM (SELECT now() - ({age}) AS at FROM generate_series(1, {count}) AS g) AS keys"
    );
    fill(client, &format!("{keys}; {}", rides("'ch_' || gen_random_uuid()"))).await;
}

/// Inserts finished keys with all rows that belong to them: rides, audit records and receipts.
pub(super) async fn whole_rides(client: &Client, count: u32) {
    finished_keys(client, count, "interval '1 hour'").await;
    let rest = "
        INSERT INTO audit_records (created_at, action, data, origin_ip, resource_id, resource_type, user_id)
        SELECT r.created_at, 'ride.created', k.request_params, k.origin_ip, r.id, 'ride', r.user_id
        FROM rides r JOIN idempotency_keys k ON k.id = r.idempotency_key_id ORDER BY r.id;
        INSERT INTO receipts (ride_id, staged_id, message_id) SELECT id, id, '<' || id || '@bench>' FROM rides ORDER BY id;
        VACUUM (ANALYZE) audit_records, receipts";
    for statement in rest.split(';') {
        client.batch_execute(statement).await.expect("fill the tables");
    }
}

/// Writes the ledger that the sandbox holds after these rides have been charged.
pub(super) async fn ledger(client: &Client, path: &Path) {
    const LINES: &str = "
        COPY (
            SELECT json_build_object('customer', json_build_object('id', stripe_customer_id, 'created_ms', 0,
                'terms', json_build_object('email', email, 'source', 'tok_visa')))
            FROM users
            UNION ALL
            SELECT json_build_object('charge', json_build_object('id', r.stripe_charge_id,
                'created_ms', floor(extract(epoch FROM r.created_at) * 1000)::bigint, 'status', 'succeeded',
                'terms', json_build_object('amount', 2000, 'currency', 'usd', 'customer', u.stripe_customer_id,
                    'description', 'Rocket ride ' || r.id,
                    'metadata', json_build_object('idempotency_key', k.foreign_call_key, 'ride_id', r.id::text)),
                'idempotency_key', k.foreign_call_key))
            FROM rides r JOIN users u ON u.id = r.user_id JOIN idempotency_keys k ON k.id = r.idempotency_key_id
        ) TO STDOUT";
    let mut file = BufWriter::new(File::create(path).expect("create the ledger"));
    let lines = client.copy_out(LINES).await.expect("copy the ledger's lines");
    let mut lines = std::pin::pin!(lines);
    while let Some(line) = lines.next().await {
        file.write_all(&line.expect("a line")).expect("write the ledger");
    }
    file.flush().expect("write the ledger");
}

/// Inserts keys whose clients gave up between the ride and the charge, ten minutes ago.
pub(super) async fn abandoned_keys(client: &Client, count: u32) {
    let keys = format!(
        "INSERT INTO idempotency_keys ({KEY}, created_at, last_run_at, next_attempt_at, foreign_call_intended_at,
             recovery_point, step, state)
         SELECT {KEY_VALUES}, at, at, at + interval '5 minutes', at, 'ride_created', 1, '{{}}'
         FROM (SELECT now() - interval '10 minutes' AS at FROM generate_series(1, {count})) AS keys"
    );
    let states = "
        UPDATE idempotency_keys k
        SET state = jsonb_build_object('ride_id', r.id, 'charge', jsonb_build_object('amount', 2000, 'currency', 'usd',
            'customer', u.stripe_customer_id, 'description', 'Rocket ride ' || r.id))
        FROM rides r JOIN users u ON u.id = r.user_id WHERE r.idempotency_key_id = k.id";
    fill(client, &format!("{keys}; {}; {states}", rides("NULL"))).await;
}

/// Inserts jobs that wait in the outbox.
pub(super) async fn staged_jobs(client: &Client, count: u32) {
    let jobs = format!(
        "INSERT INTO staged_jobs (job_name, job_args) SELECT {RECEIPT} FROM generate_series(1, {count}) AS g"
    );
    fill(client, &jobs).await;
}

/// Inserts jobs that wait in the table `jobs`, with their rides. The tables have been emptied, so rides are numbered
/// from 1.
pub(super) async fn queued_receipts(client: &Client, count: u32) {
    finished_keys(client, count, "interval '1 minute'").await;
    let jobs = format!(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
         SELECT g, {RECEIPT}, now() FROM generate_series(1, {count}) AS g"
    );
    fill(client, &jobs).await;
}

/// Removes all rows but the users.
pub(super) async fn empty(client: &Client) {
    let sql = "TRUNCATE idempotency_keys, rides, audit_records, staged_jobs, jobs, receipts, dead_jobs
        RESTART IDENTITY CASCADE";
    client.batch_execute(sql).await.expect("empty the tables");
}

/// Returns SQL that inserts a ride for each key.
fn rides(charge: &str) -> String {
    format!(
        "INSERT INTO rides (created_at, idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon,
             stripe_charge_id)
         SELECT created_at, id, user_id, 37.7749, -122.4194, 34.0522, -118.2437, {charge}
         FROM idempotency_keys ORDER BY id"
    )
}

/// Drops the tables' indexes, runs the inserts, and creates the indexes again, which takes a fifth of the time. Then
/// vacuums and makes a checkpoint, so that neither happens in the middle of a measurement.
async fn fill(client: &Client, inserts: &str) {
    const CONSTRAINTS: &str = "
        SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
               format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
        FROM pg_constraint
        WHERE contype IN ('p', 'u', 'f') AND conrelid::regclass::text IN ('idempotency_keys', 'rides', 'refunds', 'staged_jobs', 'jobs')
        ORDER BY contype = 'f' DESC";
    const INDEXES: &str = "
        SELECT format('DROP INDEX %I', indexname), indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename IN ('idempotency_keys', 'rides', 'refunds', 'staged_jobs', 'jobs')
          AND NOT EXISTS (SELECT FROM pg_constraint WHERE conname = indexname)";
    let mut found = client.query(CONSTRAINTS, &[]).await.expect("list the constraints");
    found.extend(client.query(INDEXES, &[]).await.expect("list the indexes"));
    let drop_them = found.iter().map(|row| row.get::<_, String>(0));
    // Foreign keys need other tables' indexes: they are dropped first and added last.
    let make_them = found.iter().rev().map(|row| row.get::<_, String>(1));

    let settings = ["SET maintenance_work_mem = '512MB'; SET synchronous_commit = off".to_owned()];
    let inserts = [inserts.to_owned()];
    let all: Vec<String> = settings.into_iter().chain(drop_them).chain(inserts).chain(make_them).collect();
    client.batch_execute(&all.join(";\n")).await.expect("fill the tables");
    client.batch_execute("VACUUM (ANALYZE)").await.expect("vacuum");
    client.batch_execute("CHECKPOINT").await.expect("a checkpoint");
}
