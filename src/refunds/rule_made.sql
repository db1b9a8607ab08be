SELECT id, 'refund ' || stripe_refund_id AS item
FROM refunds WHERE id > $1 AND stripe_refund_id IS NOT NULL ORDER BY id LIMIT $2
