-- From here on processes of the release before can neither begin requests nor bring them on: they know of no operation and
-- of no step. What they left unfinished a moment ago is brought to where the others are.
LOCK TABLE idempotency_keys IN ACCESS EXCLUSIVE MODE;
/* answer */;
/* open */;
/* freeze */;
DROP TRIGGER step_follows_recovery_point ON idempotency_keys;
DROP FUNCTION step_of_recovery_point();
DROP TRIGGER recovery_point_never_moves_back ON idempotency_keys;
CREATE TRIGGER recovery_point_never_moves_back
    BEFORE UPDATE OF step, recovery_point ON idempotency_keys FOR EACH ROW
    WHEN (NEW.step < OLD.step OR (NEW.step = OLD.step) <> (NEW.recovery_point = OLD.recovery_point))
    EXECUTE FUNCTION refuse('a recovery point moves with its step, and never back');
DROP TRIGGER answer_never_changes ON idempotency_keys;
CREATE TRIGGER answer_never_changes
    BEFORE UPDATE OF response_code, response_headers, response_body ON idempotency_keys FOR EACH ROW
    WHEN (OLD.response_code IS NOT NULL AND (NEW.response_code IS DISTINCT FROM OLD.response_code
        OR NEW.response_headers <> OLD.response_headers
        OR NEW.response_body::text IS DISTINCT FROM OLD.response_body::text))
    EXECUTE FUNCTION refuse('a finished response never changes');
DROP TRIGGER unfinished_is_never_removed ON idempotency_keys;
CREATE TRIGGER unfinished_is_never_removed
    BEFORE DELETE ON idempotency_keys FOR EACH ROW
    WHEN (OLD.response_code IS NULL)
    EXECUTE FUNCTION refuse('an unfinished request is never removed');
ALTER TABLE idempotency_keys
    ALTER COLUMN operation DROP DEFAULT,
    ALTER COLUMN step DROP DEFAULT,
    ALTER COLUMN state DROP DEFAULT,
    ALTER COLUMN recovery_point DROP DEFAULT,
    ALTER COLUMN foreign_call_intended_at SET DEFAULT now(),
    DROP CONSTRAINT idempotency_keys_recovery_point_check,
    DROP CONSTRAINT charge_was_intended,
    DROP CONSTRAINT finished_is_answered,
    ADD CONSTRAINT idempotency_keys_recovery_point_check CHECK (char_length(recovery_point) BETWEEN 1 AND 50) NOT VALID,
    ADD CONSTRAINT idempotency_keys_operation_check CHECK (char_length(operation) BETWEEN 1 AND 50) NOT VALID,
    ADD CONSTRAINT idempotency_keys_step_check CHECK (step > 0) NOT VALID,
    ADD CONSTRAINT idempotency_keys_response_headers_check CHECK (char_length(response_headers) <= 2000) NOT VALID,
    ADD CONSTRAINT finished_is_last CHECK ((recovery_point = 'finished') = (step = 32767)) NOT VALID,
    ADD CONSTRAINT finished_is_answered CHECK ((step = 32767) = (response_code IS NOT NULL)) NOT VALID,
    ADD CONSTRAINT headers_of_an_answer CHECK (response_headers = '' OR response_code IS NOT NULL) NOT VALID,
    ADD CONSTRAINT call_was_intended CHECK (foreign_call_intended_at IS NOT NULL) NOT VALID;
ALTER TABLE rocket_rides_schema ADD COLUMN usable_from INT;
UPDATE rocket_rides_schema SET version = 3, usable_from = 3;
ALTER TABLE rocket_rides_schema ALTER COLUMN usable_from SET NOT NULL,
    ADD CONSTRAINT usable_by_its_own_version CHECK (usable_from <= version);
