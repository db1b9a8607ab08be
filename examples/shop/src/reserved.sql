, reserved AS (
    -- The constraint on the stock decides between two that want the last one.
    UPDATE products p SET stock = p.stock - o.orders
    FROM (SELECT (request_params -> 'product_id')::bigint AS id, count(*) AS orders FROM opened GROUP BY 1) o
    WHERE p.id = o.id
), ordered AS (
    INSERT INTO orders (id, key_id, product_id) OVERRIDING SYSTEM VALUE
    SELECT (state -> 'order_id')::bigint, key_id, (request_params -> 'product_id')::bigint FROM opened
)
