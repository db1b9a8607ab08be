, recorded AS (
    INSERT INTO refund_receipts (refund_id, staged_id, message_id)
    SELECT (data -> 'refund_id')::bigint, job_id, data ->> 'message_id' FROM finished WHERE data ? 'refund_id'
    ON CONFLICT (refund_id) DO NOTHING
)
