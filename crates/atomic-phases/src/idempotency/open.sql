WITH known AS MATERIALIZED (
    SELECT i.*, k.id AS key_id, k.response_code, k.response_headers, k.response_body, k.parked_at,
           k.operation = $1 AND k.request_method = i.request_method AND k.request_path = i.request_path
               AND k.request_params = i.request_params AS same,
           k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => $4) AS free
    FROM unnest($6::bigint[], $7::text[], $8::text[], $9::text[], $10::jsonb[], $11::inet[], $12::uuid[])
        AS i (user_id, idempotency_key, request_method, request_path, request_params, origin_ip, token)
    LEFT JOIN idempotency_keys k ON k.user_id = i.user_id AND k.idempotency_key = i.idempotency_key
), fresh AS (
    SELECT user_id, idempotency_key, request_method, request_path, request_params, origin_ip, token, $3::jsonb AS terms
    FROM known WHERE key_id IS NULL
), admitted AS MATERIALIZED (
/* admit */
), opened AS (
    INSERT INTO idempotency_keys (operation, recovery_point, step, state, user_id, idempotency_key, request_method,
                                  request_path, request_params, origin_ip, lease_token, process_id, locked_at,
                                  next_attempt_at)
    SELECT $1, $2, 1, state, user_id, idempotency_key, request_method,
           request_path, request_params, origin_ip, token, $13, now(), now() + make_interval(secs => $5)
    FROM admitted WHERE refusal IS NULL
    ON CONFLICT (user_id, idempotency_key) DO NOTHING
    RETURNING id AS key_id, lease_token, user_id, request_params, origin_ip, state, foreign_call_key,
              foreign_call_intended_at
)
/* effects */
SELECT 'opened' AS verdict, key_id, lease_token, state::text AS state, foreign_call_key, foreign_call_intended_at,
       NULL::text AS refusal, NULL::int AS response_code, NULL::text AS response_headers, NULL::text AS response_body
FROM opened
UNION ALL
SELECT 'refused', NULL, token, NULL, NULL, NULL, refusal, NULL, NULL, NULL
FROM admitted WHERE refusal IS NOT NULL
UNION ALL
SELECT CASE WHEN NOT same THEN 'mismatch'
            WHEN response_code IS NOT NULL THEN 'finished'
            WHEN parked_at IS NOT NULL THEN 'parked'
            WHEN free THEN 'free'
            ELSE 'in_progress' END,
       key_id, token, NULL, NULL, NULL, NULL, response_code, response_headers, response_body::text
FROM known WHERE key_id IS NOT NULL
