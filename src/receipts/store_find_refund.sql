SELECT r.user_id, u.email, r.origin_lat, r.origin_lon, r.target_lat, r.target_lon, r.stripe_charge_id,
       x.ride_id, x.stripe_refund_id,
       EXISTS (SELECT FROM refund_receipts s WHERE s.refund_id = x.id) AS receipted
FROM refunds x JOIN rides r ON r.id = x.ride_id JOIN users u ON u.id = r.user_id WHERE x.id = $1
