-- Reads the whole table, and stops no writer.
UPDATE idempotency_keys SET foreign_call_intended_at = created_at WHERE foreign_call_intended_at IS NULL;
DO $$
DECLARE
    name TEXT;
BEGIN
    FOR name IN SELECT conname FROM pg_constraint
                WHERE conrelid = 'idempotency_keys'::regclass AND NOT convalidated LOOP
        EXECUTE format('ALTER TABLE idempotency_keys VALIDATE CONSTRAINT %I', name);
    END LOOP;
END $$;
