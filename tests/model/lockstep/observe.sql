-- All that there is to see after a step. A key that is not there gives a row of nulls; $1 is the last commit seen before.
SELECT k.id, k.lease_token, k.process_id, k.recovery_point, k.step, k.response_code, k.response_body::text AS response_body,
       k.parked_at IS NOT NULL AS parked, k.completer_attempts, k.foreign_call_key, k.attempts,
       extract(epoch FROM now() - k.created_at)::float8 AS created,
       extract(epoch FROM now() - k.locked_at)::float8 AS locked,
       extract(epoch FROM now() - k.last_run_at)::float8 AS last_run,
       extract(epoch FROM now() - k.next_attempt_at)::float8 AS due,
       extract(epoch FROM now() - k.foreign_call_intended_at)::float8 AS intended,
       ROW(k.operation, k.state, k.idempotency_key, k.user_id, k.request_method, k.request_path, k.request_params, k.origin_ip)::text
           AS request,
       (SELECT count(*) FROM rides) AS rides, (SELECT max(stripe_charge_id) FROM rides) AS charge,
       (SELECT count(*) FROM audit_records) AS audit_records, (SELECT count(*) FROM staged_jobs) AS jobs,
       (SELECT coalesce(array_agg(c.seq ORDER BY c.seq), '{}') FROM lockstep.commits c WHERE c.seq > $1) AS commits,
       (SELECT coalesce(array_agg(c.flushed ORDER BY c.seq), '{}') FROM lockstep.commits c WHERE c.seq > $1) AS flushed
FROM (VALUES (1)) one LEFT JOIN idempotency_keys k ON true
