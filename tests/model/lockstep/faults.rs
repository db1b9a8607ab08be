//! Faults as engineers make them. They are planted in the program's statements on their way to Postgres, one at a time,
//! and the walk must disagree with the model within a limited number of steps.
//!
//! Each leaves a clause of a statement out, or weakens it. Faults that the schema refuses are included: an error is a
//! disagreement like any other.

use crate::wire::Bug;

/// A fault, named by what it makes the program do.
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) bug: Bug,
}

const fn sql(name: &'static str, parts: &'static [(&'static str, &'static str)]) -> Fault {
    Fault { name, bug: Bug::Sql(parts) }
}

pub(super) const FAULTS: &[Fault] = &[
    // A client's way to a lease.
    sql(
        "a new key is due for the completer at once",
        &[(
            "now(), now() + make_interval(secs => $5) FROM admitted",
            "now(), now() + make_interval(secs => $5::float8 * 0) FROM admitted",
        )],
    ),
    sql(
        "a new key does not wait for the disk",
        &[(
            "foreign_call_key, foreign_call_intended_at )",
            "foreign_call_key, foreign_call_intended_at, (SELECT set_config('synchronous_commit', 'off', true)) )",
        )],
    ),
    sql("the same key on another path gets the answer", &[("AND k.request_path = i.request_path ", "")]),
    sql("other parameters get the answer", &[("AND k.request_params = i.request_params AS same", "AS same")]),
    sql(
        "a take-over keeps the old locked_at",
        &[(
            "i.token, process_id = $5, locked_at = now(),",
            "i.token, process_id = $5, locked_at = coalesce(k.locked_at, now()),",
        )],
    ),
    sql(
        "a take-over does not set last_run_at",
        &[(
            "last_run_at = now(), attempts = k.attempts + 1, next_attempt_at = now() + make_interval(secs => $4)",
            "attempts = k.attempts + 1, next_attempt_at = now() + make_interval(secs => $4)",
        )],
    ),
    sql(
        "a take-over gives no new grace",
        &[(
            "next_attempt_at = now() + make_interval(secs => $4) FROM unnest",
            "next_attempt_at = CASE WHEN $4::float8 < 0 THEN now() ELSE k.next_attempt_at END FROM unnest",
        )],
    ),
    sql(
        "a take-over is not counted",
        &[(
            "attempts = k.attempts + 1, next_attempt_at = now() + make_interval(secs => $4)",
            "next_attempt_at = now() + make_interval(secs => $4)",
        )],
    ),
    sql(
        "a take-over keeps the token",
        &[(
            "SET lease_token = i.token, process_id = $5, locked_at",
            "SET lease_token = coalesce(k.lease_token, i.token), process_id = $5, locked_at",
        )],
    ),
    sql(
        "a take-over does not wait for the disk",
        &[(
            "k.foreign_call_intended_at)::float8 AS foreign_call_age",
            "k.foreign_call_intended_at)::float8 AS foreign_call_age, (SELECT set_config('synchronous_commit', 'off', true))",
        )],
    ),
    sql(
        "a take-over does not ask whether it is finished meanwhile",
        &[("AND num_nulls(k.response_code, k.parked_at) = 2 AND", "AND num_nulls(k.parked_at) = 1 AND")],
    ),
    sql(
        "a take-over does not ask whether it is parked meanwhile",
        &[("AND num_nulls(k.response_code, k.parked_at) = 2 AND", "AND num_nulls(k.response_code) = 1 AND")],
    ),
    sql(
        "a take-over does not ask whether the lease was taken meanwhile",
        &[(
            "= 2 AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => $3)) RETURNING",
            "= 2 AND $3::float8 > 0 RETURNING",
        )],
    ),
    sql(
        "a lease is taken over a second early",
        &[("make_interval(secs => $3)", "make_interval(secs => $3::float8 - 1)")],
    ),
    sql(
        "a lease is taken over a second late",
        &[("make_interval(secs => $3)", "make_interval(secs => $3::float8 + 1)")],
    ),
    // The completer's way to a lease.
    sql(
        "a claim does not set last_run_at",
        &[(
            "locked_at = now(), last_run_at = now(), attempts = k.attempts + 1, completer_attempts",
            "locked_at = now(), attempts = k.attempts + 1, completer_attempts",
        )],
    ),
    sql("a claim is not counted", &[("completer_attempts = k.completer_attempts + 1, ", "")]),
    sql(
        "a claim does not wait for the disk",
        &[("RETURNING k.* )", "RETURNING k.*, set_config('synchronous_commit', 'off', true) )")],
    ),
    sql(
        "the completer's pause has no upper bound",
        &[("least(k.completer_attempts, 30), $4)", "least(k.completer_attempts, 30), $4::float8 * 1e9::float8)")],
    ),
    sql(
        "the completer's pause does not grow",
        &[("2 ^ least(k.completer_attempts, 30)", "2 ^ least(k.completer_attempts, 0)")],
    ),
    sql("the completer does not wait until a key is due", &[("AND k.next_attempt_at <= now() AND", "AND")]),
    sql(
        "the completer takes what is under lease",
        &[(
            "AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => $2)) ORDER BY k.next_attempt_at",
            "AND $2::float8 > 0 ORDER BY k.next_attempt_at",
        )],
    ),
    sql(
        "the completer takes what is parked",
        &[(
            "k.response_code IS NULL AND k.parked_at IS NULL AND k.next_attempt_at",
            "k.response_code IS NULL AND k.next_attempt_at",
        )],
    ),
    sql(
        "the completer waits for rows that are locked",
        &[(
            "ORDER BY k.next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED",
            "ORDER BY k.next_attempt_at LIMIT $1 FOR UPDATE",
        )],
    ),
    sql(
        "the completer tries once too often",
        &[("k.completer_attempts >= $5 AS exhausted", "k.completer_attempts > $5 AS exhausted")],
    ),
    // The phases.
    sql(
        "a phase does not ask for the token",
        &[(
            "WHERE k.id = i.key_id AND k.lease_token = i.lease_token AND k.step",
            "WHERE k.id = i.key_id AND k.step",
        )],
    ),
    // The ends of a lease.
    sql(
        "an answer does not wait for the disk",
        &[(
            "k.state, i.data, i.jobs )",
            "k.state, i.data, i.jobs, set_config('synchronous_commit', 'off', true) )",
        )],
    ),
    sql(
        "a receipt is not staged",
        &[("jsonb_array_elements(jobs) AS job", "jsonb_array_elements(jobs) AS job WHERE false")],
    ),
    sql("the charge is not noted on the ride", &[("AND c.data ? 'charge_id'", "AND c.data ? 'nothing'")]),
    sql(
        "a release does not ask for the token",
        &[("WHERE k.id = mine.id AND k.lease_token = mine.lease_token", "WHERE k.id = mine.id")],
    ),
    sql(
        "a release keeps the lease",
        &[("SET lease_token = NULL, locked_at = NULL, last_error = mine.error", "SET last_error = mine.error")],
    ),
    sql(
        "parking does not ask for the token",
        &[(
            "WHERE id = $1 AND lease_token = $2",
            "WHERE id = $1 AND $2::uuid IS NOT NULL AND response_code IS NULL",
        )],
    ),
    // Whose lease it is, and the end of a dead process's.
    sql(
        "a new lease says that nobody holds it",
        &[("origin_ip, token, $13, now()", "origin_ip, token, nullif($13::uuid, $13), now()")],
    ),
    sql(
        "a take-over does not say who holds the lease",
        &[("i.token, process_id = $5, locked_at", "i.token, process_id = coalesce(k.process_id, $5), locked_at")],
    ),
    sql(
        "a claim does not say who holds the lease",
        &[("gen_random_uuid(), process_id = $7,", "gen_random_uuid(), process_id = coalesce(k.process_id, $7),")],
    ),
    sql(
        "a living process's leases are handed back",
        &[("AND last_beat_at <= now() - make_interval(secs => $2)", "AND $2::float8 IS NOT NULL")],
    ),
    sql(
        "leases are handed back whosever they are",
        &[
            (
                "AND k.process_id = (SELECT id FROM dead) AND k.lease_token IS NOT NULL ORDER",
                "AND k.lease_token IS NOT NULL ORDER",
            ),
            (
                "WHERE k.process_id = (SELECT id FROM dead) AND k.lease_token IS NOT NULL FOR",
                "WHERE k.lease_token IS NOT NULL FOR",
            ),
        ],
    ),
    sql(
        "what is handed back keeps its lease",
        &[("SET lease_token = NULL, locked_at = NULL, last_error = $4,", "SET last_error = $4,")],
    ),
    sql(
        "what is handed back is due at once",
        &[(
            "least(k.next_attempt_at, greatest(now(), k.last_run_at + make_interval(secs => $3 * 2 ^ least(k.completer_attempts, 30))))",
            "CASE WHEN $3::float8 < 0 THEN k.next_attempt_at ELSE now() END",
        )],
    ),
    sql(
        "what is handed back keeps its grace",
        &[(
            "least(k.next_attempt_at, greatest(now(), k.last_run_at + make_interval(secs => $3 * 2 ^ least(k.completer_attempts, 30))))",
            "CASE WHEN $3::float8 < 0 THEN now() ELSE k.next_attempt_at END",
        )],
    ),
    sql(
        "what outlived many processes is due as soon as any",
        &[("$3 * 2 ^ least(k.completer_attempts, 30)", "$3::float8")],
    ),
    sql("who hands back waits for rows that are locked", &[("FOR UPDATE OF k SKIP LOCKED", "FOR UPDATE OF k")]),
    sql(
        "who hands back waits for the disk",
        &[(
            "FROM ended) AS ended, (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later",
            "FROM ended) AS ended",
        )],
    ),
    // The reaper, and a person's retry.
    sql(
        "the reaper removes unfinished keys",
        &[("AND old.finished RETURNING", "RETURNING"), ("AND NOT old.finished RETURNING", "AND false RETURNING")],
    ),
    sql(
        "the reaper takes what was taken up lately",
        &[("AND last_run_at <= now() - make_interval(secs => $1) ", "")],
    ),
    sql(
        "the reaper takes what is young",
        &[
            (
                "WHERE created_at <= now() - make_interval(secs => $1) AND parked_at IS NULL",
                "WHERE parked_at IS NULL",
            ),
            ("AND last_run_at <= now() - make_interval(secs => $1) ", "AND $1::float8 > 0 "),
        ],
    ),
    sql("the reaper waits for rows that are locked", &[("LIMIT $3 FOR UPDATE SKIP LOCKED", "LIMIT $3 FOR UPDATE")]),
    sql(
        "the reaper waits for the disk",
        &[("AS parked, (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later", "AS parked")],
    ),
    sql(
        "a person's retry does not set last_run_at",
        &[(
            "next_attempt_at = now(), last_run_at = now() WHERE id = ANY",
            "next_attempt_at = now() WHERE id = ANY",
        )],
    ),
    sql(
        "a person's retry does not count anew",
        &[("parked_reason = NULL, completer_attempts = 0,", "parked_reason = NULL,")],
    ),
    sql(
        "a person's retry is not due at once",
        &[("completer_attempts = 0, next_attempt_at = now(), last_run_at", "completer_attempts = 0, last_run_at")],
    ),
];
