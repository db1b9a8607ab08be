WITH held AS MATERIALIZED (
    SELECT j.staged_id, j.lease_token
    FROM unnest($1::bigint[], $2::uuid[]) AS i (job_id, lease_token)
    JOIN jobs j ON j.staged_id = i.job_id AND j.lease_token = i.lease_token
), free AS MATERIALIZED (
    SELECT j.staged_id FROM held JOIN jobs j ON j.staged_id = held.staged_id AND j.lease_token = held.lease_token
    FOR UPDATE OF j SKIP LOCKED
), extended AS (
    UPDATE jobs j SET next_attempt_at = now() + make_interval(secs => $3)
    FROM free WHERE j.staged_id = free.staged_id
    RETURNING j.staged_id
)
SELECT held.lease_token, extended.staged_id IS NOT NULL AS kept
FROM held LEFT JOIN extended ON extended.staged_id = held.staged_id
