SELECT
    (SELECT count(*) FROM (SELECT FROM idempotency_keys WHERE response_code IS NULL AND parked_at IS NULL
                           ORDER BY next_attempt_at LIMIT $1) k) AS keys_unfinished,
    (SELECT count(*) FROM (SELECT FROM idempotency_keys WHERE parked_at IS NOT NULL
                           ORDER BY parked_at LIMIT $1) k) AS keys_parked,
    (SELECT count(*) FROM (SELECT FROM staged_jobs ORDER BY id LIMIT $1) s) AS staged_jobs,
    (SELECT extract(epoch FROM now() - created_at)::float8 FROM staged_jobs ORDER BY id LIMIT 1) AS staged_age,
    queued.jobs AS queued_jobs, queued.age AS queued_age,
    (SELECT count(*) FROM (SELECT FROM dead_jobs ORDER BY staged_id LIMIT $1) d) AS dead_jobs,
    (SELECT count(*) FROM processes WHERE ended_at IS NULL) AS processes
FROM (
    SELECT count(*) AS jobs, extract(epoch FROM now() - min(enqueued_at))::float8 AS age
    FROM (SELECT enqueued_at FROM jobs WHERE finished_at IS NULL ORDER BY next_attempt_at LIMIT $1) j
) AS queued
