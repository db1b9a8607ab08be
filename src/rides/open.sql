, ride AS (
    INSERT INTO rides (id, idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon)
    OVERRIDING SYSTEM VALUE
    SELECT (state -> 'ride_id')::bigint, key_id, user_id,
           (request_params -> 'origin_lat')::float8, (request_params -> 'origin_lon')::float8,
           (request_params -> 'target_lat')::float8, (request_params -> 'target_lon')::float8
    FROM opened
), audit AS (
    INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
    SELECT 'ride.created', request_params, origin_ip, (state -> 'ride_id')::bigint, 'ride', user_id
    FROM opened
)
