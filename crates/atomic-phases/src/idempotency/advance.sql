WITH advanced AS (
    UPDATE idempotency_keys k
    SET recovery_point = $1, step = $2, state = i.state,
        foreign_call_key = gen_random_uuid(), foreign_call_intended_at = now()
    FROM unnest($3::bigint[], $4::uuid[], $5::smallint[], $6::jsonb[], $7::jsonb[])
        AS i (key_id, lease_token, step, state, data)
    WHERE k.id = i.key_id AND k.lease_token = i.lease_token AND k.step = i.step
    RETURNING k.id AS key_id, i.lease_token, k.user_id, k.request_params, k.origin_ip, k.state, i.data,
              k.foreign_call_key, k.foreign_call_intended_at
)
/* effects */
SELECT lease_token, foreign_call_key, foreign_call_intended_at FROM advanced
