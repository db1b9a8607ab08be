ALTER TABLE idempotency_keys
    ADD COLUMN IF NOT EXISTS operation        TEXT     NOT NULL DEFAULT 'ride',
    ADD COLUMN IF NOT EXISTS step             SMALLINT NOT NULL DEFAULT 32767,
    ADD COLUMN IF NOT EXISTS state            JSONB    NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS response_headers TEXT     NOT NULL DEFAULT '';
-- Until the switch, processes of the release before go on writing keys, and know of no steps.
CREATE OR REPLACE FUNCTION step_of_recovery_point() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.step := CASE NEW.recovery_point WHEN 'started' THEN 0 WHEN 'finished' THEN 32767 ELSE 1 END;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER step_follows_recovery_point BEFORE INSERT OR UPDATE OF recovery_point ON idempotency_keys
    FOR EACH ROW EXECUTE FUNCTION step_of_recovery_point();
