-- What an unfinished request will send to Stripe, as the release before would have sent it.
WITH unfinished AS (
    SELECT k.id FROM idempotency_keys k
    WHERE ((k.response_code IS NULL AND k.parked_at IS NULL) OR k.parked_at IS NOT NULL)
      AND k.recovery_point = 'ride_created' AND k.state = '{}'
    /* batch */
), frozen AS (
    UPDATE idempotency_keys k
    SET step = 1,
        state = jsonb_build_object('ride_id', r.id, 'charge', jsonb_build_object(
            'amount', 2000, 'currency', 'usd', 'customer', u.stripe_customer_id,
            'description', 'Rocket ride ' || r.id))
    FROM unfinished d JOIN rides r ON r.idempotency_key_id = d.id JOIN users u ON u.id = r.user_id
    WHERE k.id = d.id
    RETURNING k.id
)
SELECT count(*) AS changed FROM frozen
