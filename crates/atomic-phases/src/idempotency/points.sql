SELECT operation, recovery_point, step, min(id) AS key_id, count(*) AS keys
FROM idempotency_keys
WHERE ((response_code IS NULL AND parked_at IS NULL) OR parked_at IS NOT NULL) AND operation = ANY($1)
GROUP BY operation, recovery_point, step
ORDER BY operation, step
