-- A ride and its record are written together; a second record is a second execution.
SELECT a.id, a.id AS thing, ARRAY['ride ' || a.resource_id] AS items, ARRAY['the record of ride ' || a.resource_id] AS once,
       'ride ' || a.resource_id || ': ' || CASE
           WHEN r.id IS NULL THEN 'recorded, not there'
           WHEN k.origin_ip <> a.origin_ip THEN 'recorded with another address than its client''s'
       END AS offence
FROM audit_records a
LEFT JOIN rides r ON r.id = a.resource_id
LEFT JOIN idempotency_keys k ON k.id = r.idempotency_key_id
WHERE a.id > $1 AND a.action = 'ride.created' ORDER BY a.id LIMIT $2
