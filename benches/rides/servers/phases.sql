-- One ride's two statements for pgbench, as src/idempotency and src/rides do them, one row at a time. Both are flushed.

-- Open.
WITH fresh AS (
    SELECT nextval('rides_id_seq') AS ride_id,
           jsonb_build_object('origin_lat', :origin_lat::float8, 'origin_lon', :origin_lon::float8,
                              'target_lat', :target_lat::float8, 'target_lon', :target_lon::float8) AS params
), opened AS (
    INSERT INTO idempotency_keys (operation, recovery_point, step, state, user_id, idempotency_key, request_method,
                                  request_path, request_params, origin_ip, lease_token, locked_at, next_attempt_at)
    SELECT 'ride', 'ride_created', 1,
           jsonb_build_object('ride_id', ride_id, 'charge', jsonb_build_object(
               'amount', 2000, 'currency', 'usd', 'customer', u.stripe_customer_id,
               'description', 'Rocket ride ' || ride_id)),
           u.id, gen_random_uuid()::text, 'POST', '/rides', params, '127.0.0.1', gen_random_uuid(), now(),
           now() + interval '5 minutes'
    FROM fresh, users u WHERE u.id = 1
    ON CONFLICT (user_id, idempotency_key) DO NOTHING
    RETURNING id, lease_token, user_id, request_params, origin_ip, state
), ride AS (
    INSERT INTO rides (id, idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon)
    OVERRIDING SYSTEM VALUE
    SELECT (state -> 'ride_id')::bigint, id, user_id, :origin_lat, :origin_lon, :target_lat, :target_lon FROM opened
), audit AS (
    INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
    SELECT 'ride.created', request_params, origin_ip, (state -> 'ride_id')::bigint, 'ride', user_id FROM opened
)
SELECT id AS key_id, lease_token, state -> 'ride_id' AS ride_id FROM opened \gset

-- Close.
WITH closed AS (
    UPDATE idempotency_keys
    SET recovery_point = 'finished', step = 32767, response_code = 201,
        response_body = '{"message":"Your ride is booked and paid. The pilot is on the way."}',
        lease_token = NULL, locked_at = NULL, last_error = NULL
    WHERE id = :key_id AND lease_token = :lease_token AND step = 1
    RETURNING id, user_id
), paid AS (
    UPDATE rides SET stripe_charge_id = 'ch_' || gen_random_uuid() FROM closed
    WHERE rides.idempotency_key_id = closed.id
)
INSERT INTO staged_jobs (job_name, job_args)
SELECT 'send_ride_receipt',
       jsonb_build_object('ride_id', :ride_id::bigint, 'user_id', user_id, 'amount', 2000, 'currency', 'usd')
FROM closed RETURNING id AS job_id \gset
