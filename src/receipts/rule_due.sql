-- Only a finished request's key is ever removed, and this one had its money: it said 201.
SELECT b.id, 'the receipt of {what} ' || b.id AS item
FROM {books} b LEFT JOIN idempotency_keys k ON k.id = b.idempotency_key_id
WHERE b.id > $1 AND b.{paid} IS NOT NULL AND (k.id IS NULL OR k.response_code = 201) ORDER BY b.id LIMIT $2
