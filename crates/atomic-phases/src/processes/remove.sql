WITH old AS MATERIALIZED (
    SELECT id FROM processes
    WHERE ended_at <= now() - make_interval(secs => $1)
    ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
DELETE FROM processes p USING old
WHERE p.id = old.id
  AND (SELECT k.id FROM idempotency_keys k
       WHERE k.response_code IS NULL AND k.parked_at IS NULL AND k.process_id = p.id AND k.lease_token IS NOT NULL
       ORDER BY k.next_attempt_at LIMIT 1) IS NULL
  AND (SELECT j.staged_id FROM jobs j
       WHERE j.finished_at IS NULL AND j.process_id = p.id AND j.lease_token IS NOT NULL
       ORDER BY j.next_attempt_at LIMIT 1) IS NULL
  AND (SELECT s.id FROM staged_jobs s WHERE s.process_id = p.id AND s.lease_token IS NOT NULL
       ORDER BY s.id LIMIT 1) IS NULL
RETURNING p.id, (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later
