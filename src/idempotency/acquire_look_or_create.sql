WITH known AS MATERIALIZED (
    SELECT i.*, k.id, k.response_code, k.response_body, k.parked_at,
           k.request_method = i.request_method AND k.request_path = i.request_path
               AND k.request_params = i.request_params AS same,
           num_nulls(k.response_code, k.parked_at) = 2
               AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => i.lock_timeout))
               AS free
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::inet[], $7::uuid[],
                $8::float8[], $9::float8[])
        AS i (user_id, idempotency_key, request_method, request_path, request_params, origin_ip, token,
              lock_timeout, grace)
    LEFT JOIN idempotency_keys k ON k.user_id = i.user_id AND k.idempotency_key = i.idempotency_key
), created AS (
    INSERT INTO idempotency_keys (user_id, idempotency_key, request_method, request_path, request_params,
                                  origin_ip, lease_token, locked_at, next_attempt_at)
    SELECT user_id, idempotency_key, request_method, request_path, request_params,
           origin_ip, token, now(), now() + make_interval(secs => grace)
    FROM known WHERE id IS NULL
    ON CONFLICT (user_id, idempotency_key) DO NOTHING
    RETURNING id, lease_token, recovery_point, attempts, foreign_call_key, foreign_call_intended_at,
              (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later
)
SELECT 'created' AS verdict, id, lease_token, recovery_point, attempts, foreign_call_key,
       foreign_call_intended_at, NULL::float8 AS foreign_call_age,
       NULL::int AS response_code, NULL::text AS response_body
FROM created
UNION ALL
SELECT CASE WHEN NOT same THEN 'mismatch'
            WHEN response_code IS NOT NULL THEN 'finished'
            WHEN parked_at IS NOT NULL THEN 'parked'
            WHEN free THEN 'free'
            ELSE 'in_progress' END,
       id, token, NULL, NULL, NULL, NULL, NULL, response_code, response_body::text
FROM known WHERE id IS NOT NULL
