INSERT INTO users (email, stripe_customer_id) VALUES ($1, $2)
ON CONFLICT (email) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id
