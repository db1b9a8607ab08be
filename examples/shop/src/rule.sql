SELECT o.id, CASE WHEN o.parcel IS NOT NULL AND o.payment IS NULL THEN 'order ' || o.id || ': shipped, and not paid for'
                  WHEN (o.parcel IS NOT NULL) <> (coalesce(k.response_code, 0) = 201) AND k.id IS NOT NULL
                  THEN 'order ' || o.id || ': answered ' || coalesce(k.response_code::text, 'nothing') END AS offence
FROM orders o LEFT JOIN idempotency_keys k ON k.id = o.key_id WHERE o.id > $1 ORDER BY o.id LIMIT $2
