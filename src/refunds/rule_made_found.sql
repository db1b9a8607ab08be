SELECT ARRAY['refund ' || i.id] AS items, ARRAY['a refund of ride ' || r.id] AS once,
       CASE WHEN x.id IS NULL THEN 'ride ' || r.id || ': refunded at Stripe by ' || i.id || ', and not here'
            WHEN x.stripe_refund_id <> i.id THEN 'refund ' || x.id || ': ' || i.id || ' at Stripe' END AS offence
FROM unnest($1::jsonb[]) AS e (entry)
CROSS JOIN LATERAL jsonb_to_record(e.entry) AS i (id TEXT, charge_id TEXT, succeeded BOOLEAN)
JOIN rides r ON r.stripe_charge_id = i.charge_id LEFT JOIN refunds x ON x.ride_id = r.id
WHERE i.succeeded
