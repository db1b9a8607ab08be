WITH due AS MATERIALIZED (
    SELECT staged_id, attempts >= $3 AS exhausted
    FROM jobs WHERE finished_at IS NULL AND next_attempt_at <= now()
    ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM jobs j USING due WHERE j.staged_id = due.staged_id AND due.exhausted RETURNING j.*
), buried AS (
    INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
    SELECT staged_id, job_name, job_args, staged_at, 'queue', attempts,
           'its worker never came back' || coalesce('; an earlier attempt: ' || last_error, '')
    FROM gone
    RETURNING staged_id
), claimed AS (
    UPDATE jobs j
    SET lease_token = gen_random_uuid(), process_id = $4, attempts = j.attempts + 1,
        next_attempt_at = now() + make_interval(secs => $2)
    FROM due WHERE j.staged_id = due.staged_id AND NOT due.exhausted
    RETURNING j.*
)
SELECT staged_id, lease_token, job_name, job_args, staged_at, attempts FROM claimed
UNION ALL
SELECT staged_id, NULL, NULL, NULL, NULL, NULL FROM buried
