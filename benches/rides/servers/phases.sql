-- One ride's four phases for pgbench, as src/rides and src/idempotency do them, one row at a time.
--
-- Commits that need not wait for the disk say so in their own transaction, as the service's do; RETURNING is the
-- cheapest place for that.

-- Acquire.
INSERT INTO idempotency_keys (user_id, idempotency_key, request_method, request_path, request_params, origin_ip,
                              lease_token, locked_at, next_attempt_at)
VALUES (1, gen_random_uuid()::text, 'POST', '/rides',
        jsonb_build_object('origin_lat', :origin_lat::float8, 'origin_lon', :origin_lon::float8,
                           'target_lat', :target_lat::float8, 'target_lon', :target_lon::float8),
        '127.0.0.1', gen_random_uuid(), now(), now() + interval '5 minutes')
ON CONFLICT (user_id, idempotency_key) DO NOTHING
RETURNING id AS key_id, lease_token, set_config('synchronous_commit', 'off', true) AS commit_later \gset

-- Create ride: flushed.
WITH fenced AS (
    UPDATE idempotency_keys
    SET recovery_point = 'ride_created', foreign_call_intended_at = coalesce(foreign_call_intended_at, now())
    WHERE id = :key_id AND lease_token = :lease_token AND recovery_point = 'started'
    RETURNING id, user_id, origin_ip
), ride AS (
    INSERT INTO rides (idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon)
    SELECT id, user_id, :origin_lat, :origin_lon, :target_lat, :target_lon FROM fenced
    RETURNING id
), audit AS (
    INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
    SELECT 'ride.created',
           jsonb_build_object('origin_lat', :origin_lat::float8, 'origin_lon', :origin_lon::float8,
                              'target_lat', :target_lat::float8, 'target_lon', :target_lon::float8),
           fenced.origin_ip, ride.id, 'ride', fenced.user_id
    FROM fenced, ride
)
SELECT id AS ride_id FROM ride \gset

-- Record charge.
WITH fenced AS (
    UPDATE idempotency_keys SET recovery_point = 'charge_created'
    WHERE id = :key_id AND lease_token = :lease_token AND recovery_point = 'ride_created'
    RETURNING id
)
UPDATE rides SET stripe_charge_id = 'ch_' || gen_random_uuid() FROM fenced
WHERE rides.idempotency_key_id = fenced.id
RETURNING rides.id AS charged, set_config('synchronous_commit', 'off', true) AS commit_later \gset

-- Finish: flushed.
WITH fenced AS (
    UPDATE idempotency_keys
    SET recovery_point = 'finished', response_code = 201,
        response_body = '{"message":"Your ride is booked and paid. The pilot is on the way."}',
        lease_token = NULL, locked_at = NULL, last_error = NULL
    WHERE id = :key_id AND lease_token = :lease_token AND recovery_point = 'charge_created'
    RETURNING user_id
)
INSERT INTO staged_jobs (job_name, job_args)
SELECT 'send_ride_receipt',
       jsonb_build_object('ride_id', :ride_id::bigint, 'user_id', user_id, 'amount', 2000, 'currency', 'usd')
FROM fenced RETURNING id AS job_id \gset
