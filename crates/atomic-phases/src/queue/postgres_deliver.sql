WITH due AS MATERIALIZED (
    SELECT id FROM staged_jobs WHERE next_attempt_at <= now() AND /* which */
    FOR UPDATE SKIP LOCKED
), taken AS (
    DELETE FROM staged_jobs s USING due WHERE s.id = due.id
    RETURNING s.id, s.job_name, s.job_args, s.created_at
), delivered AS (
    INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
    SELECT id, job_name, job_args, created_at FROM taken ORDER BY id
    RETURNING staged_id
)
SELECT count(*) AS delivered, max(staged_id) AS last FROM delivered
