WITH delivered AS (
    DELETE FROM staged_jobs WHERE id = ANY($2::bigint[]) AND lease_token = $1 RETURNING id
), failed AS (
    UPDATE staged_jobs s
    SET lease_token = NULL, attempts = s.attempts + 1, last_error = i.error,
        next_attempt_at = now() + make_interval(
            secs => least($8 * 2 ^ least(s.attempts, 30), $9) * (0.75 + random() / 2))
    FROM unnest($3::bigint[], $4::text[]) AS i (id, error) WHERE s.id = i.id AND s.lease_token = $1
    RETURNING s.id
), gone AS (
    DELETE FROM staged_jobs s
    USING unnest($5::bigint[], $6::text[]) AS i (id, error) WHERE s.id = i.id AND s.lease_token = $1
    RETURNING s.id, s.job_name, s.job_args, s.created_at, s.attempts, i.error
), dead AS (
    INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
    SELECT id, job_name, job_args, created_at, 'outbox', attempts + 1, error FROM gone
), released AS (
    UPDATE staged_jobs SET lease_token = NULL, next_attempt_at = now()
    WHERE id = ANY($7::bigint[]) AND lease_token = $1
)
SELECT (SELECT count(*) FROM delivered) AS delivered, (SELECT count(*) FROM failed) AS failed,
       (SELECT count(*) FROM gone) AS dead, (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later
