-- Only a finished request's key is ever removed: without a charge it was declined.
SELECT r.id, CASE WHEN r.stripe_charge_id IS NOT NULL THEN 'charge ' || r.stripe_charge_id || ' of ride ' || r.id
                  ELSE 'the decline of ride ' || r.id END AS item
FROM rides r
WHERE r.id > $1 AND (r.stripe_charge_id IS NOT NULL
    OR NOT EXISTS (SELECT FROM idempotency_keys k WHERE k.id = r.idempotency_key_id))
ORDER BY r.id LIMIT $2
