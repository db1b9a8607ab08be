-- The constraint spares this the reading of the table.
ALTER TABLE idempotency_keys ALTER COLUMN foreign_call_intended_at SET NOT NULL;
ALTER TABLE idempotency_keys DROP CONSTRAINT IF EXISTS call_was_intended;
