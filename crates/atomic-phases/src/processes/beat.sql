WITH beat AS (
    INSERT INTO processes AS p (id, name, version, host, scope, pid, pid_started)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (id) DO UPDATE SET last_beat_at = now(), ended_at = NULL
)
SELECT p.id, p.name, p.host, p.scope, p.pid, p.pid_started, p.last_beat_at,
       extract(epoch FROM now() - p.last_beat_at)::float8 AS silent,
       (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later
FROM processes p WHERE p.ended_at IS NULL OR p.id = $1
