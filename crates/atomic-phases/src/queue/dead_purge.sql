WITH gone AS (
    DELETE FROM dead_jobs WHERE staged_id = ANY($1) RETURNING staged_id, job_name, job_args, error
)
INSERT INTO purged_jobs (staged_id, job_name, job_args, error)
SELECT staged_id, job_name, job_args, error FROM gone
RETURNING staged_id
