    SELECT f.*, CASE WHEN u.id IS NULL THEN 'unknown_user' END AS refusal,
           jsonb_build_object('ride_id', f.ride_id, 'charge', f.terms || jsonb_build_object(
               'customer', u.stripe_customer_id, 'description', 'Rocket ride ' || f.ride_id)) AS state
    FROM (SELECT *, nextval('rides_id_seq') AS ride_id FROM fresh) f
    LEFT JOIN users u ON u.id = f.user_id
