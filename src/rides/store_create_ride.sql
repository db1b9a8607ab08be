, numbered AS MATERIALIZED (
    SELECT *, nextval('rides_id_seq') AS ride_id FROM fenced
), ride AS (
    INSERT INTO rides (id, idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon)
    OVERRIDING SYSTEM VALUE
    SELECT ride_id, key_id, user_id, origin_lat, origin_lon, target_lat, target_lon FROM numbered
), audit AS (
    INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
    SELECT 'ride.created',
           jsonb_build_object('origin_lat', origin_lat, 'origin_lon', origin_lon,
                              'target_lat', target_lat, 'target_lon', target_lon),
           origin_ip, ride_id, 'ride', user_id
    FROM numbered
)
SELECT lease_token, ride_id FROM numbered
