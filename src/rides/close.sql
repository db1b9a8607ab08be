, paid AS (
    UPDATE rides SET stripe_charge_id = c.data ->> 'charge_id'
    FROM closed c WHERE rides.idempotency_key_id = c.key_id AND c.data ? 'charge_id'
)
