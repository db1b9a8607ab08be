WITH finished AS (
    UPDATE jobs j SET finished_at = now(), lease_token = NULL, last_error = NULL
    FROM unnest($1::bigint[], $2::uuid[], $3::jsonb[]) AS i (job_id, lease_token, data)
    WHERE j.staged_id = i.job_id AND j.lease_token = i.lease_token
    RETURNING i.job_id, i.lease_token, i.data
)
/* effects */
SELECT lease_token FROM finished
