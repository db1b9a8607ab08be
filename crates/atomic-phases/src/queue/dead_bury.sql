WITH gone AS (
    DELETE FROM staged_jobs WHERE id = $1 AND next_attempt_at <= now()
    RETURNING id, job_name, job_args, created_at, attempts
)
INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
SELECT id, job_name, job_args, created_at, 'outbox', attempts + 1, $2 FROM gone
RETURNING staged_id
