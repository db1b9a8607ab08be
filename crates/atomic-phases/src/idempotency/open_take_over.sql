UPDATE idempotency_keys k
SET lease_token = i.token, process_id = $5, locked_at = now(), last_run_at = now(),
    attempts = k.attempts + 1, next_attempt_at = now() + make_interval(secs => $4)
FROM unnest($1::bigint[], $2::uuid[]) AS i (key_id, token)
WHERE k.id = i.key_id AND num_nulls(k.response_code, k.parked_at) = 2
  AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => $3))
RETURNING k.id AS key_id, k.lease_token, k.recovery_point, k.step, k.state::text AS state, k.attempts,
          k.foreign_call_key, k.foreign_call_intended_at,
          extract(epoch FROM now() - k.foreign_call_intended_at)::float8 AS foreign_call_age
