SELECT r.user_id, u.email, r.origin_lat, r.origin_lon, r.target_lat, r.target_lon, r.stripe_charge_id,
       EXISTS (SELECT FROM receipts s WHERE s.ride_id = r.id) AS receipted
FROM rides r JOIN users u ON u.id = r.user_id WHERE r.id = $1
