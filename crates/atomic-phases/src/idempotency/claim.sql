WITH due AS MATERIALIZED (
    SELECT k.id, k.completer_attempts >= $5 AS exhausted
    FROM idempotency_keys k
    WHERE k.response_code IS NULL AND k.parked_at IS NULL AND k.next_attempt_at <= now()
      AND k.operation = ANY($6)
      AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => $2))
    ORDER BY k.next_attempt_at
    LIMIT $1 FOR UPDATE SKIP LOCKED
), parked AS (
    UPDATE idempotency_keys k
    SET parked_at = now(), parked_reason = 'gave up after ' || k.completer_attempts || ' attempts',
        lease_token = NULL, locked_at = NULL
    FROM due WHERE k.id = due.id AND due.exhausted
    RETURNING k.id
), claimed AS (
    UPDATE idempotency_keys k
    SET lease_token = gen_random_uuid(), process_id = $7, locked_at = now(), last_run_at = now(),
        attempts = k.attempts + 1, completer_attempts = k.completer_attempts + 1,
        next_attempt_at = now() + make_interval(
            secs => least($3 * 2 ^ least(k.completer_attempts, 30), $4) * (0.75 + random() / 2))
    FROM due WHERE k.id = due.id AND NOT due.exhausted
    RETURNING k.*
)
SELECT id AS key_id, operation, lease_token, recovery_point, step, state::text AS state, attempts, foreign_call_key,
       foreign_call_intended_at, extract(epoch FROM now() - foreign_call_intended_at)::float8 AS foreign_call_age,
       user_id, request_params, origin_ip
FROM claimed
UNION ALL
SELECT id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM parked
