    SELECT f.*,
           CASE WHEN r.id IS NULL THEN 'no_such_ride'
                WHEN r.stripe_charge_id IS NULL THEN 'not_paid'
                WHEN x.id IS NOT NULL THEN 'refunded_by_another' END AS refusal,
           jsonb_build_object('refund_id', nextval('refunds_id_seq'), 'ride_id', r.id,
                              'charge_id', r.stripe_charge_id) AS state
    FROM fresh f
    LEFT JOIN rides r ON r.id = (f.request_params -> 'ride_id')::bigint AND r.user_id = f.user_id
    LEFT JOIN refunds x ON x.ride_id = r.id
