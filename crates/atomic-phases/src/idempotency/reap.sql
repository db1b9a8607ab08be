WITH old AS MATERIALIZED (
    SELECT id, response_code IS NOT NULL AS finished
    FROM idempotency_keys
    WHERE created_at <= now() - make_interval(secs => $1) AND parked_at IS NULL
      AND (locked_at IS NULL OR locked_at <= now() - make_interval(secs => $2))
      AND last_run_at <= now() - make_interval(secs => $1)
    ORDER BY created_at
    LIMIT $3 FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM idempotency_keys k USING old WHERE k.id = old.id AND old.finished RETURNING k.id
), parked AS (
    UPDATE idempotency_keys k
    SET parked_at = now(), parked_reason = 'unfinished when its retention ended',
        lease_token = NULL, locked_at = NULL
    FROM old WHERE k.id = old.id AND NOT old.finished
    RETURNING k.id
)
SELECT (SELECT count(*) FROM removed) AS removed, (SELECT count(*) FROM parked) AS parked,
       (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later
