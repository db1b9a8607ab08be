    SELECT f.*, CASE WHEN p.id IS NULL THEN 'no such product' WHEN p.stock = 0 THEN 'sold out' END AS refusal,
           jsonb_build_object('order_id', nextval('orders_id_seq'), 'price', p.price,
                              'card', f.request_params -> 'card', 'address', f.request_params -> 'address') AS state
    FROM fresh f LEFT JOIN products p ON p.id = (f.request_params -> 'product_id')::bigint
