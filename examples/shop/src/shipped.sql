, shipped AS (
    UPDATE orders SET parcel = c.data ->> 'parcel' FROM closed c WHERE orders.key_id = c.key_id AND c.data ? 'parcel'
), returned AS (
    -- Declined: back on the shelf.
    UPDATE products p SET stock = p.stock + o.orders
    FROM (SELECT (request_params -> 'product_id')::bigint AS id, count(*) AS orders
          FROM closed WHERE NOT data ? 'parcel' GROUP BY 1) o
    WHERE p.id = o.id
)
