WITH fenced AS (
    UPDATE idempotency_keys k
    SET recovery_point = 'finished', response_code = i.response_code, response_body = i.response_body::json,
        lease_token = NULL, locked_at = NULL, last_error = NULL
    FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[], $7::jsonb[])
        AS i (key_id, lease_token, recovery_point, response_code, response_body, job_name, job_args)
    WHERE k.id = i.key_id AND k.lease_token = i.lease_token AND k.recovery_point = i.recovery_point
    RETURNING i.lease_token, i.job_name, i.job_args
), staged AS (
    INSERT INTO staged_jobs (job_name, job_args)
    SELECT job_name, job_args FROM fenced WHERE job_name IS NOT NULL
)
SELECT lease_token FROM fenced
