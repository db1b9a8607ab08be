SELECT x.id, 'refund ' || x.id || ': ' || CASE
           WHEN r.stripe_charge_id IS NULL OR r.user_id <> x.user_id THEN 'of a ride that was not paid, or not by this user'
           WHEN k.response_code <> 201 THEN 'finished with ' || k.response_code
           WHEN (x.stripe_refund_id IS NOT NULL) <> (k.id IS NULL OR k.response_code IS NOT NULL)
               THEN 'finished or refunded, and not both' END AS offence
FROM refunds x JOIN rides r ON r.id = x.ride_id LEFT JOIN idempotency_keys k ON k.id = x.idempotency_key_id
WHERE x.id > $1 ORDER BY x.id LIMIT $2
