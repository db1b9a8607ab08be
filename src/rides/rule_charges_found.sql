-- Another database may use the same account; its customers are not ours.
SELECT CASE WHEN i.succeeded THEN ARRAY['charge ' || i.id || ' of ride ' || i.ride_id]
            ELSE ARRAY['the decline of ride ' || i.ride_id] END AS items,
       CASE WHEN i.succeeded THEN ARRAY['the charge with the key ' || i.idempotency_key] ELSE '{}' END AS once,
       CASE WHEN NOT i.succeeded OR r.stripe_charge_id = i.id THEN NULL
            WHEN k.response_code = 402 THEN 'ride ' || i.ride_id || ': 402 and charge ' || i.id
            WHEN k.response_code IS NOT NULL THEN 'ride ' || i.ride_id || ': finished, and does not know charge ' || i.id
            WHEN r.stripe_charge_id IS NOT NULL THEN 'ride ' || i.ride_id || ': charges ' || i.id || ' and ' || r.stripe_charge_id
            WHEN k.id IS NULL THEN 'charge ' || i.id || ': its key is gone, and no ride knows it' END AS offence
FROM unnest($1::jsonb[]) AS e (entry)
CROSS JOIN LATERAL jsonb_to_record(e.entry)
    AS i (id TEXT, succeeded BOOLEAN, idempotency_key UUID, customer TEXT, ride_id BIGINT)
JOIN users u ON u.stripe_customer_id = i.customer
LEFT JOIN rides r ON r.id = i.ride_id AND r.user_id = u.id
LEFT JOIN idempotency_keys k ON k.id = r.idempotency_key_id AND k.foreign_call_key = i.idempotency_key
