-- A request whose charge is recorded gets its answer, as its next attempt would have given it. One that is being worked on
-- is left to its worker.
WITH charged AS (
    SELECT id FROM idempotency_keys
    WHERE ((response_code IS NULL AND parked_at IS NULL) OR parked_at IS NOT NULL) AND recovery_point = 'charge_created'
    /* batch */
), answered AS (
    UPDATE idempotency_keys k
    SET recovery_point = 'finished', response_code = 201, response_headers = 'Location: /rides/' || r.id,
        response_body = '{"message":"Your ride is booked and paid. The pilot is on the way."}',
        lease_token = NULL, locked_at = NULL, last_error = NULL, parked_at = NULL, parked_reason = NULL
    FROM charged c JOIN rides r ON r.idempotency_key_id = c.id
    WHERE k.id = c.id
    RETURNING k.user_id, r.id AS ride_id
), staged AS (
    INSERT INTO staged_jobs (job_name, job_args)
    SELECT 'send_ride_receipt',
           jsonb_build_object('ride_id', ride_id, 'user_id', user_id, 'amount', 2000, 'currency', 'usd')
    FROM answered
)
SELECT count(*) AS changed FROM answered
