CREATE TABLE IF NOT EXISTS processes (
    id           UUID        PRIMARY KEY,
    name         TEXT        NOT NULL CHECK (char_length(name) <= 255),
    version      TEXT        NOT NULL,
    host         TEXT        NOT NULL,
    scope        TEXT,
    pid          INT,
    pid_started  BIGINT,
    started_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_beat_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    ended_at     TIMESTAMPTZ
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS processes_living ON processes (started_at) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS processes_ended ON processes (ended_at) WHERE ended_at IS NOT NULL;
-- The release before writes no process on its leases: they run out as they did.
ALTER TABLE idempotency_keys ADD COLUMN IF NOT EXISTS process_id UUID;
ALTER TABLE staged_jobs ADD COLUMN IF NOT EXISTS process_id UUID;
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS process_id UUID;
UPDATE rocket_rides_schema SET version = 4 WHERE version = 3;
