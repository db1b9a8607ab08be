UPDATE rides SET stripe_charge_id = f.stripe_charge_id
FROM fenced f WHERE rides.idempotency_key_id = f.key_id
RETURNING f.lease_token
