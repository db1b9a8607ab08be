WITH fenced AS MATERIALIZED (
    SELECT staged_id, $4 OR attempts >= $5 AS dies FROM jobs
    WHERE staged_id = $1 AND lease_token = $2 FOR UPDATE
), gone AS (
    DELETE FROM jobs j USING fenced f WHERE j.staged_id = f.staged_id AND f.dies RETURNING j.*
), buried AS (
    INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
    SELECT staged_id, job_name, job_args, staged_at, 'queue', attempts, $3 FROM gone
), retried AS (
    UPDATE jobs j
    SET lease_token = NULL, last_error = $3,
        next_attempt_at = now() + make_interval(
            secs => least($6 * 2 ^ least(j.attempts - 1, 30), $7) * (0.75 + random() / 2))
    FROM fenced f WHERE j.staged_id = f.staged_id AND NOT f.dies
    RETURNING extract(epoch FROM j.next_attempt_at - now())::float8 AS pause
)
SELECT (SELECT pause FROM retried) AS pause FROM fenced
