, paid AS (
    UPDATE orders SET payment = a.data ->> 'payment' FROM advanced a WHERE orders.key_id = a.key_id
)
