-- What a crash of Postgres would lose, told without a crash: the state after each commit, and whether the commit waited
-- for the disk. A crash that keeps some of the commits is then a matter of putting the state after the last of them back.

CREATE SCHEMA lockstep;
CREATE TABLE lockstep.commits (
    seq      BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    flushed  BOOLEAN NOT NULL,
    key      idempotency_keys,
    -- One key has one ride, one audit record and one job at most, and none of them is ever changed but for the charge.
    ride_id  BIGINT,
    charge   TEXT,
    audit_id BIGINT,
    job_id   BIGINT
);

-- Deferred, so that it sees the setting that the commit goes by, and all that the transaction has written.
CREATE FUNCTION lockstep.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lockstep.commits (flushed, key, ride_id, charge, audit_id, job_id)
    VALUES (current_setting('synchronous_commit') <> 'off', CASE WHEN TG_OP <> 'DELETE' THEN NEW END,
            (SELECT max(id) FROM rides), (SELECT max(stripe_charge_id) FROM rides),
            (SELECT max(id) FROM audit_records), (SELECT max(id) FROM staged_jobs));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON idempotency_keys
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION lockstep.note();

-- Forgets the last key, and returns the number of the state in which there is none.
CREATE FUNCTION lockstep.begin() RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    number BIGINT;
BEGIN
    DELETE FROM lockstep.commits;
    DELETE FROM idempotency_keys;
    DELETE FROM rides;
    DELETE FROM audit_records;
    DELETE FROM staged_jobs;
    INSERT INTO lockstep.commits (flushed) VALUES (true) RETURNING seq INTO number;
    RETURN number;
END $$;

-- So much time passes: everything is that much longer ago.
CREATE FUNCTION lockstep.pass(passed FLOAT8) RETURNS void LANGUAGE sql AS $$
    UPDATE idempotency_keys SET
        created_at = created_at - make_interval(secs => passed),
        locked_at = locked_at - make_interval(secs => passed),
        last_run_at = last_run_at - make_interval(secs => passed),
        next_attempt_at = next_attempt_at - make_interval(secs => passed),
        parked_at = parked_at - make_interval(secs => passed),
        foreign_call_intended_at = foreign_call_intended_at - make_interval(secs => passed)
$$;

-- The crash. `passed` is how much time has passed since the commit that is now the last.
CREATE FUNCTION lockstep.crash(kept BIGINT, passed FLOAT8) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    state lockstep.commits;
    key idempotency_keys;
BEGIN
    SELECT * INTO STRICT state FROM lockstep.commits WHERE seq = kept;
    key := state.key;
    DELETE FROM idempotency_keys;
    IF key.id IS NOT NULL THEN
        INSERT INTO idempotency_keys OVERRIDING SYSTEM VALUE VALUES (key.*);
        PERFORM lockstep.pass(passed);
    END IF;
    DELETE FROM rides WHERE state.ride_id IS NULL OR id > state.ride_id;
    UPDATE rides SET stripe_charge_id = state.charge WHERE stripe_charge_id IS DISTINCT FROM state.charge;
    DELETE FROM audit_records WHERE state.audit_id IS NULL OR id > state.audit_id;
    DELETE FROM staged_jobs WHERE state.job_id IS NULL OR id > state.job_id;
END $$;
