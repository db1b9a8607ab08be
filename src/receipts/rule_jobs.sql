SELECT j.{key} AS id, j.{key} AS thing, ARRAY['the receipt of {what} ' || a.id] AS items,
       ARRAY['the receipt of {what} ' || a.id] AS once,
       '{what} ' || a.id || ': ' || CASE
           WHEN p.id IS NULL THEN 'a receipt without a 201 and its money'
           WHEN {finished} AND NOT EXISTS (SELECT FROM {receipts} s WHERE s.{what}_id = a.id)
               THEN 'its job is finished, and no receipt was recorded' END AS offence
FROM {jobs} j
-- A dead letter may name none.
CROSS JOIN LATERAL (
    SELECT CASE WHEN j.job_args ->> '{what}_id' ~ '^[0-9]{1,18}$' THEN (j.job_args ->> '{what}_id')::bigint END AS id
) a
LEFT JOIN LATERAL (
    SELECT b.id FROM {books} b LEFT JOIN idempotency_keys k ON k.id = b.idempotency_key_id
    WHERE b.id = a.id AND b.{paid} IS NOT NULL AND (k.id IS NULL OR k.response_code = 201)
) p ON true
WHERE j.{key} > $1 AND j.job_name = '{job}' ORDER BY j.{key} LIMIT $2
