WITH risen AS (
    DELETE FROM dead_jobs WHERE staged_id = ANY($1)
    RETURNING staged_id, job_name, job_args, staged_at, died_in
), staged AS (
    INSERT INTO staged_jobs (id, created_at, job_name, job_args) OVERRIDING SYSTEM VALUE
    SELECT staged_id, staged_at, job_name, job_args FROM risen WHERE died_in = 'outbox'
), queued AS (
    INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
    SELECT staged_id, job_name, job_args, staged_at FROM risen WHERE died_in = 'queue'
)
SELECT staged_id FROM risen
