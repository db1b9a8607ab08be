SELECT p.id, p.name, p.version, p.host, p.pid, p.ended_at IS NOT NULL AS ended,
       extract(epoch FROM now() - p.started_at)::float8 AS age,
       extract(epoch FROM now() - p.last_beat_at)::float8 AS silent
FROM processes p ORDER BY p.id LIMIT $1
