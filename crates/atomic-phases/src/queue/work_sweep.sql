WITH old AS MATERIALIZED (
    SELECT staged_id FROM jobs WHERE finished_at <= now() - make_interval(secs => $1)
    ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM jobs j USING old WHERE j.staged_id = old.staged_id RETURNING j.staged_id
)
SELECT count(*) AS swept FROM gone
