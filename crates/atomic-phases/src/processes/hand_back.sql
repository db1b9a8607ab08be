WITH dead AS MATERIALIZED (
    SELECT id FROM processes
    WHERE id = $1 AND ended_at IS NULL AND last_beat_at <= now() - make_interval(secs => $2)
    FOR UPDATE SKIP LOCKED
), requests_held AS MATERIALIZED (
    SELECT k.id FROM idempotency_keys k
    WHERE k.response_code IS NULL AND k.parked_at IS NULL
      AND k.process_id = (SELECT id FROM dead) AND k.lease_token IS NOT NULL
    ORDER BY k.next_attempt_at
), requests AS MATERIALIZED (
    SELECT k.id FROM requests_held h JOIN idempotency_keys k ON k.id = h.id
    WHERE k.process_id = (SELECT id FROM dead) AND k.lease_token IS NOT NULL
    FOR UPDATE OF k SKIP LOCKED
), requests_back AS (
    UPDATE idempotency_keys k
    SET lease_token = NULL, locked_at = NULL, last_error = $4,
        next_attempt_at = least(k.next_attempt_at, greatest(now(),
            k.last_run_at + make_interval(secs => $3 * 2 ^ least(k.completer_attempts, 30))))
    FROM requests WHERE k.id = requests.id
), queued_held AS MATERIALIZED (
    SELECT j.staged_id FROM jobs j
    WHERE j.finished_at IS NULL AND j.process_id = (SELECT id FROM dead) AND j.lease_token IS NOT NULL
    ORDER BY j.next_attempt_at
), queued AS MATERIALIZED (
    SELECT j.staged_id FROM queued_held h JOIN jobs j ON j.staged_id = h.staged_id
    WHERE j.process_id = (SELECT id FROM dead) AND j.lease_token IS NOT NULL
    FOR UPDATE OF j SKIP LOCKED
), queued_back AS (
    UPDATE jobs j SET lease_token = NULL, last_error = $4, next_attempt_at = now()
    FROM queued WHERE j.staged_id = queued.staged_id
), staged_held AS MATERIALIZED (
    SELECT s.id FROM staged_jobs s
    WHERE s.process_id = (SELECT id FROM dead) AND s.lease_token IS NOT NULL
    ORDER BY s.id
), staged AS MATERIALIZED (
    SELECT s.id FROM staged_held h JOIN staged_jobs s ON s.id = h.id
    WHERE s.process_id = (SELECT id FROM dead) AND s.lease_token IS NOT NULL
    FOR UPDATE OF s SKIP LOCKED
), staged_back AS (
    UPDATE staged_jobs s SET lease_token = NULL, next_attempt_at = now()
    FROM staged WHERE s.id = staged.id
), ended AS (
    UPDATE processes p SET ended_at = now()
    FROM dead
    WHERE p.id = dead.id AND p.last_beat_at <= now() - make_interval(secs => $5)
      AND (SELECT count(*) FROM requests_held) = (SELECT count(*) FROM requests)
      AND (SELECT count(*) FROM queued_held) = (SELECT count(*) FROM queued)
      AND (SELECT count(*) FROM staged_held) = (SELECT count(*) FROM staged)
    RETURNING p.id
)
SELECT (SELECT count(*) FROM requests) AS requests, (SELECT count(*) FROM queued) AS queued,
       (SELECT count(*) FROM staged) AS staged, EXISTS (SELECT FROM ended) AS ended,
       (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later
