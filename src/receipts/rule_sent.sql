SELECT s.{what}_id AS id, s.staged_id AS thing, ARRAY['the receipt of {what} ' || s.{what}_id] AS items,
       ARRAY['the receipt of {what} ' || s.{what}_id] AS once,
       '{what} ' || s.{what}_id || ': ' || CASE
           WHEN NOT EXISTS (
               SELECT FROM {books} b LEFT JOIN idempotency_keys k ON k.id = b.idempotency_key_id
               WHERE b.id = s.{what}_id AND b.{paid} IS NOT NULL AND (k.id IS NULL OR k.response_code = 201)
           ) THEN 'a receipt without a 201 and its money'
           WHEN EXISTS (SELECT FROM staged_jobs j WHERE j.id = s.staged_id)
             OR EXISTS (SELECT FROM jobs j WHERE j.staged_id = s.staged_id AND j.finished_at IS NULL)
             OR EXISTS (SELECT FROM dead_jobs j WHERE j.staged_id = s.staged_id)
               THEN 'its receipt was sent, and job ' || s.staged_id || ' is still to be worked' END AS offence
FROM {receipts} s WHERE s.{what}_id > $1 ORDER BY s.{what}_id LIMIT $2
