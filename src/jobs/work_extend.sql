UPDATE jobs j SET next_attempt_at = now() + make_interval(secs => $3)
FROM unnest($1::bigint[], $2::uuid[]) AS held (job_id, lease_token)
WHERE j.staged_id = held.job_id AND j.lease_token = held.lease_token
RETURNING j.lease_token
