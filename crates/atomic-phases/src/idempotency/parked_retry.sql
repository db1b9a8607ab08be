UPDATE idempotency_keys
SET parked_at = NULL, parked_reason = NULL, completer_attempts = 0,
    next_attempt_at = now(), last_run_at = now()
WHERE id = ANY($1) AND parked_at IS NOT NULL
RETURNING id
