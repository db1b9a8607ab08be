UPDATE idempotency_keys
SET lease_token = NULL, locked_at = NULL, parked_at = now(), parked_reason = $3, last_error = $3
WHERE id = $1 AND lease_token = $2
