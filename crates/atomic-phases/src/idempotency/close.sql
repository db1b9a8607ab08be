WITH closed AS (
    UPDATE idempotency_keys k
    SET recovery_point = 'finished', step = 32767, response_code = i.response_code,
        response_headers = i.response_headers, response_body = i.response_body::json, lease_token = NULL, locked_at = NULL, last_error = NULL
    FROM unnest($1::bigint[], $2::uuid[], $3::smallint[], $4::int[], $5::text[], $6::text[], $7::jsonb[],
                $8::jsonb[])
        AS i (key_id, lease_token, step, response_code, response_headers, response_body, data, jobs)
    WHERE k.id = i.key_id AND k.lease_token = i.lease_token AND k.step = i.step
    RETURNING k.id AS key_id, i.lease_token, k.user_id, k.request_params, k.origin_ip, k.state, i.data, i.jobs
), staged AS (
    INSERT INTO staged_jobs (job_name, job_args)
    SELECT job ->> 'name', job -> 'args' FROM closed, jsonb_array_elements(jobs) AS job
)
/* effects */
SELECT lease_token FROM closed
