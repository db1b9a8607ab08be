SELECT staged_id, job_name, died_in, attempts, error,
       greatest(extract(epoch FROM now() - died_at), 0)::float8 AS dead_for
FROM dead_jobs ORDER BY staged_id LIMIT $1
