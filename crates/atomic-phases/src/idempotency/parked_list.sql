SELECT id, operation, idempotency_key, user_id, recovery_point, attempts, parked_reason, last_error,
       extract(epoch FROM now() - parked_at)::float8 AS waiting
FROM idempotency_keys WHERE parked_at IS NOT NULL ORDER BY parked_at LIMIT $1
