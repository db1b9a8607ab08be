SELECT k.id, 'key ' || k.id || ': ' || CASE
           WHEN r.rides <> 1 THEN r.rides || ' rides'
           WHEN NOT r.same THEN 'its ride is another one'
           WHEN k.response_code IS NULL AND k.recovery_point <> 'ride_created' THEN 'unfinished at ' || k.recovery_point
           WHEN k.response_code IS NULL AND r.charges > 0 THEN 'charged, and unfinished'
           WHEN k.response_code NOT IN (201, 402) THEN 'finished with ' || k.response_code
           WHEN (k.response_code = 201) <> (r.charges = 1) THEN k.response_code || ' with ' || r.charges || ' charges'
       END AS offence
FROM idempotency_keys k
CROSS JOIN LATERAL (
    SELECT count(*) AS rides, count(r.stripe_charge_id) AS charges,
           bool_and(r.user_id = k.user_id
               AND to_jsonb(r.origin_lat) = k.request_params -> 'origin_lat'
               AND to_jsonb(r.origin_lon) = k.request_params -> 'origin_lon'
               AND to_jsonb(r.target_lat) = k.request_params -> 'target_lat'
               AND to_jsonb(r.target_lon) = k.request_params -> 'target_lon') AS same
    FROM rides r WHERE r.idempotency_key_id = k.id
) r
WHERE k.id > $1 AND k.operation = 'ride' ORDER BY k.id LIMIT $2
