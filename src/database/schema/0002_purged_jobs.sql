CREATE TABLE IF NOT EXISTS purged_jobs (
    staged_id BIGINT      PRIMARY KEY,
    job_name  TEXT        NOT NULL,
    job_args  JSONB       NOT NULL,
    purged_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    error     TEXT        NOT NULL
);
UPDATE rocket_rides_schema SET version = 2 WHERE version = 1;
