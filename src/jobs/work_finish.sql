WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::text[])
        AS i (job_id, lease_token, ride_id, message_id)
), fenced AS (
    UPDATE jobs j SET finished_at = now(), lease_token = NULL, last_error = NULL
    FROM input i WHERE j.staged_id = i.job_id AND j.lease_token = i.lease_token
    RETURNING i.job_id, i.lease_token, i.ride_id, i.message_id
), recorded AS (
    INSERT INTO receipts (ride_id, staged_id, message_id)
    SELECT ride_id, job_id, message_id FROM fenced WHERE ride_id IS NOT NULL
    ON CONFLICT (ride_id) DO NOTHING
)
SELECT lease_token FROM fenced
