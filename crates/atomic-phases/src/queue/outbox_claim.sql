WITH due AS MATERIALIZED (
    SELECT id FROM staged_jobs WHERE id > $4 AND next_attempt_at <= now()
    ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE staged_jobs s SET lease_token = $2, process_id = $5, next_attempt_at = now() + make_interval(secs => $3)
FROM due WHERE s.id = due.id
RETURNING s.id, s.job_name, s.job_args, s.created_at, s.attempts,
          (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later
