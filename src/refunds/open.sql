, refund AS (
    INSERT INTO refunds (id, idempotency_key_id, ride_id, user_id)
    OVERRIDING SYSTEM VALUE
    SELECT (state -> 'refund_id')::bigint, key_id, (state -> 'ride_id')::bigint, user_id FROM opened
), audit AS (
    INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
    SELECT 'refund.created', request_params, origin_ip, (state -> 'refund_id')::bigint, 'refund', user_id FROM opened
)
