UPDATE idempotency_keys k
SET lease_token = NULL, locked_at = NULL, last_error = mine.error
FROM unnest($1::bigint[], $2::uuid[], $3::text[]) AS mine (id, lease_token, error)
WHERE k.id = mine.id AND k.lease_token = mine.lease_token
RETURNING k.id, (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later
