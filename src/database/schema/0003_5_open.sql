-- Requests that have only a key get their rides, as their next attempt would have made them. One that is being worked on
-- is left to its worker.
WITH started AS (
    SELECT k.id, k.user_id, k.request_params, k.origin_ip, nextval('rides_id_seq') AS ride_id, u.stripe_customer_id
    FROM idempotency_keys k JOIN users u ON u.id = k.user_id
    WHERE k.id IN (
        SELECT id FROM idempotency_keys
        WHERE ((response_code IS NULL AND parked_at IS NULL) OR parked_at IS NOT NULL) AND recovery_point = 'started'
        /* batch */
    )
), opened AS (
    UPDATE idempotency_keys k
    SET recovery_point = 'ride_created', foreign_call_intended_at = now(), lease_token = NULL, locked_at = NULL,
        state = jsonb_build_object('ride_id', s.ride_id, 'charge', jsonb_build_object(
            'amount', 2000, 'currency', 'usd', 'customer', s.stripe_customer_id,
            'description', 'Rocket ride ' || s.ride_id))
    FROM started s WHERE k.id = s.id
    RETURNING k.id, s.ride_id, s.user_id, s.request_params, s.origin_ip
), ride AS (
    INSERT INTO rides (id, idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon)
    OVERRIDING SYSTEM VALUE
    SELECT ride_id, id, user_id, (request_params -> 'origin_lat')::float8, (request_params -> 'origin_lon')::float8,
           (request_params -> 'target_lat')::float8, (request_params -> 'target_lon')::float8
    FROM opened
), audit AS (
    INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
    SELECT 'ride.created', request_params, origin_ip, ride_id, 'ride', user_id FROM opened
)
SELECT count(*) AS changed FROM opened
