, recorded AS (
    INSERT INTO receipts (ride_id, staged_id, message_id)
    SELECT (data -> 'ride_id')::bigint, job_id, data ->> 'message_id' FROM finished WHERE data ? 'ride_id'
    ON CONFLICT (ride_id) DO NOTHING
)
