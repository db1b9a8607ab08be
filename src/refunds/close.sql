, refunded AS (
    UPDATE refunds SET stripe_refund_id = c.data ->> 'stripe_refund_id'
    FROM closed c WHERE refunds.idempotency_key_id = c.key_id
)
