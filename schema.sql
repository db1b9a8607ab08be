-- The whole schema, and the only DDL. Applied to an empty database at start, in one transaction.
--
-- Every invariant that a constraint can express stands here, so that no bug in the program can break it.

-- One row: which version of this file the database was made from, the oldest version whose programs may work on it still,
-- and a name of its own for this database, so that identifiers derived from row ids do not repeat when the database is
-- made anew.
CREATE TABLE rocket_rides_schema (
    singleton    BOOLEAN PRIMARY KEY DEFAULT true CHECK (singleton),
    version      INT     NOT NULL,
    usable_from  INT     NOT NULL,
    installation UUID    NOT NULL DEFAULT gen_random_uuid(),
    CONSTRAINT usable_by_its_own_version CHECK (usable_from <= version)
);
INSERT INTO rocket_rides_schema (version, usable_from) VALUES (4, 3);

CREATE TABLE users (
    id                 BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    email              TEXT NOT NULL UNIQUE CHECK (char_length(email) <= 255),
    stripe_customer_id TEXT NOT NULL UNIQUE CHECK (char_length(stripe_customer_id) <= 50)
);

-- The processes, each with its own row. A beat changes no column that is indexed, so it writes no index.
CREATE TABLE processes (
    id           UUID        PRIMARY KEY,
    name         TEXT        NOT NULL CHECK (char_length(name) <= 255),
    version      TEXT        NOT NULL,
    -- Where it runs: a process on the same host can check whether it still runs. A number identifies a process only
    -- within its scope.
    host         TEXT        NOT NULL,
    scope        TEXT,
    pid          INT,
    pid_started  BIGINT,
    started_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_beat_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- It has ended, or died, and none of its leases is left.
    ended_at     TIMESTAMPTZ
) WITH (fillfactor = 50);
CREATE INDEX processes_living ON processes (started_at) WHERE ended_at IS NULL;
CREATE INDEX processes_ended ON processes (ended_at) WHERE ended_at IS NOT NULL;

-- A request, who works on it, how far it has come, and what was answered.
--
-- Half of each page is left for the version that follows within milliseconds.
CREATE TABLE idempotency_keys (
    id              BIGINT      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    idempotency_key TEXT        NOT NULL CHECK (char_length(idempotency_key) BETWEEN 20 AND 100),
    user_id         BIGINT      NOT NULL,

    -- What is to be done, and the request, as far as it decides whether a repetition is the same request, and whence it
    -- first came.
    operation       TEXT        NOT NULL CHECK (char_length(operation) BETWEEN 1 AND 50),
    request_method  TEXT        NOT NULL CHECK (char_length(request_method) <= 10),
    request_path    TEXT        NOT NULL CHECK (char_length(request_path) <= 100),
    request_params  JSONB       NOT NULL,
    origin_ip       INET        NOT NULL,

    -- The lease. Its token is random for each acquisition and is what every phase's fence compares. Then which process
    -- took it last; no foreign key, which would lock the row of the process.
    lease_token     UUID,
    process_id      UUID,
    locked_at       TIMESTAMPTZ,
    last_run_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    attempts        INT         NOT NULL DEFAULT 1 CHECK (attempts > 0),

    -- How far it has come: the recovery point for people, its place in the operation's order for triggers and fences, and
    -- what the attempts from there on need. Then the foreign call that comes next: the idempotency key that goes with it,
    -- and when it first became possible.
    recovery_point           TEXT        NOT NULL CHECK (char_length(recovery_point) BETWEEN 1 AND 50),
    step                     SMALLINT    NOT NULL CHECK (step > 0),
    state                    JSONB       NOT NULL,
    foreign_call_key         UUID        NOT NULL DEFAULT gen_random_uuid(),
    foreign_call_intended_at TIMESTAMPTZ NOT NULL DEFAULT now(),

    -- The completer's side: when it may take the request, how often it has, and what went wrong last.
    next_attempt_at    TIMESTAMPTZ NOT NULL,
    completer_attempts INT         NOT NULL DEFAULT 0 CHECK (completer_attempts >= 0),
    last_error         TEXT,

    -- Parked: never retried, never removed, until a person has looked at it.
    parked_at       TIMESTAMPTZ,
    parked_reason   TEXT,

    -- The answer. Its headers are lines as they are sent. JSON rather than JSONB, because it keeps the text byte for byte.
    response_code    INT  CHECK (response_code BETWEEN 100 AND 599),
    response_headers TEXT NOT NULL DEFAULT '' CHECK (char_length(response_headers) <= 2000),
    response_body    JSON,

    CONSTRAINT one_key_per_user_and_name UNIQUE (user_id, idempotency_key),
    CONSTRAINT leased_as_a_whole   CHECK ((lease_token IS NULL) = (locked_at IS NULL)),
    CONSTRAINT answered_as_a_whole CHECK ((response_code IS NULL) = (response_body IS NULL)),
    CONSTRAINT headers_of_an_answer CHECK (response_headers = '' OR response_code IS NOT NULL),
    CONSTRAINT finished_is_last CHECK ((recovery_point = 'finished') = (step = 32767)),
    CONSTRAINT finished_is_answered CHECK ((step = 32767) = (response_code IS NOT NULL)),
    CONSTRAINT finished_holds_no_lease CHECK (response_code IS NULL OR lease_token IS NULL),
    CONSTRAINT parked_says_why     CHECK ((parked_at IS NULL) = (parked_reason IS NULL)),
    CONSTRAINT parked_is_idle      CHECK (parked_at IS NULL OR (lease_token IS NULL AND response_code IS NULL))
) WITH (fillfactor = 50);

-- What no statement may do to a key, however wrong the program is. The conditions are evaluated without a call, and
-- only where the named columns are set, so an update pays about a microsecond for them.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'key %: %', OLD.id, TG_ARGV[0] USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME;
END $$;
CREATE TRIGGER recovery_point_never_moves_back
    BEFORE UPDATE OF step, recovery_point ON idempotency_keys FOR EACH ROW
    WHEN (NEW.step < OLD.step OR (NEW.step = OLD.step) <> (NEW.recovery_point = OLD.recovery_point))
    EXECUTE FUNCTION refuse('a recovery point moves with its step, and never back');
CREATE TRIGGER answer_never_changes
    BEFORE UPDATE OF response_code, response_headers, response_body ON idempotency_keys FOR EACH ROW
    WHEN (OLD.response_code IS NOT NULL AND (NEW.response_code IS DISTINCT FROM OLD.response_code
        OR NEW.response_headers <> OLD.response_headers
        OR NEW.response_body::text IS DISTINCT FROM OLD.response_body::text))
    EXECUTE FUNCTION refuse('a finished response never changes');
CREATE TRIGGER unfinished_is_never_removed
    BEFORE DELETE ON idempotency_keys FOR EACH ROW
    WHEN (OLD.response_code IS NULL)
    EXECUTE FUNCTION refuse('an unfinished request is never removed');

-- The completer's poll: only unfinished requests are in it, so its cost does not grow with the table.
CREATE INDEX idempotency_keys_unfinished ON idempotency_keys (next_attempt_at)
    WHERE response_code IS NULL AND parked_at IS NULL;
-- The reaper's poll. Parked keys stay out: they would pile up at its front.
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at) WHERE parked_at IS NULL;
-- What waits for a person.
CREATE INDEX idempotency_keys_parked ON idempotency_keys (parked_at) WHERE parked_at IS NOT NULL;

CREATE TABLE rides (
    id                 BIGINT      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    created_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- One ride per key. A ride outlives its key and keeps its id, which is given to no other. No foreign key: it would
    -- have the reaper look for, and rewrite, each ride of a key that it removes.
    idempotency_key_id BIGINT      NOT NULL UNIQUE,
    user_id            BIGINT      NOT NULL REFERENCES users ON DELETE RESTRICT,
    origin_lat         DOUBLE PRECISION NOT NULL CHECK (origin_lat BETWEEN -90 AND 90),
    origin_lon         DOUBLE PRECISION NOT NULL CHECK (origin_lon BETWEEN -180 AND 180),
    target_lat         DOUBLE PRECISION NOT NULL CHECK (target_lat BETWEEN -90 AND 90),
    target_lon         DOUBLE PRECISION NOT NULL CHECK (target_lon BETWEEN -180 AND 180),
    -- Two rides never share a charge; this also tells if two keys ever shared a foreign_call_key, which has no index of
    -- its own: random, it would be the most expensive of all once it outgrows memory.
    stripe_charge_id   TEXT        UNIQUE CHECK (char_length(stripe_charge_id) BETWEEN 1 AND 255)
);

-- A ride is refunded once, by one key; no other begins while this row is there.
CREATE TABLE refunds (
    id                 BIGINT      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    created_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    idempotency_key_id BIGINT      NOT NULL UNIQUE,
    ride_id            BIGINT      NOT NULL UNIQUE REFERENCES rides ON DELETE RESTRICT,
    user_id            BIGINT      NOT NULL,
    stripe_refund_id   TEXT        UNIQUE CHECK (char_length(stripe_refund_id) BETWEEN 1 AND 255)
);

-- Who did what, from where. No foreign keys: a record outlives what it speaks of.
CREATE TABLE audit_records (
    id            BIGINT      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    created_at    TIMESTAMPTZ NOT NULL DEFAULT now(),
    action        TEXT        NOT NULL CHECK (char_length(action) <= 50),
    data          JSONB       NOT NULL,
    origin_ip     INET        NOT NULL,
    resource_id   BIGINT      NOT NULL,
    resource_type TEXT        NOT NULL CHECK (char_length(resource_type) <= 50),
    user_id       BIGINT      NOT NULL
);

-- The outbox: a job is staged by the transaction that finishes its request, and moved on afterwards. Its id goes with
-- it to whatever queue there is, so that a consumer can drop repeats.
CREATE TABLE staged_jobs (
    id              BIGINT      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    job_name        TEXT        NOT NULL CHECK (char_length(job_name) BETWEEN 1 AND 100),
    job_args        JSONB       NOT NULL,
    -- While an enqueuer pushes it to a queue outside this database: whose it is, which process took it last, and when it
    -- is anybody's again.
    lease_token     UUID,
    process_id      UUID,
    next_attempt_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    attempts        INT         NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    last_error      TEXT
    -- Half of each page is left free, so that taking a lease writes the row's new version beside the old one and needs
    -- no new index entry: measured, that halves what a lease costs, and costs the way to `jobs` nothing.
) WITH (fillfactor = 50);

-- The default queue. A staged job gets here once: its own id is the key.
CREATE TABLE jobs (
    staged_id       BIGINT      PRIMARY KEY,
    job_name        TEXT        NOT NULL,
    job_args        JSONB       NOT NULL,
    staged_at       TIMESTAMPTZ NOT NULL,
    enqueued_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The worker's lease, random for each attempt, which process took it last, and when anybody may take the job (again).
    lease_token     UUID,
    process_id      UUID,
    next_attempt_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    attempts        INT         NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    last_error      TEXT,
    finished_at     TIMESTAMPTZ,
    CONSTRAINT finished_holds_no_lease CHECK (finished_at IS NULL OR lease_token IS NULL)
);
-- The worker's poll, and the sweep of what was finished long ago.
CREATE INDEX jobs_unfinished ON jobs (next_attempt_at) WHERE finished_at IS NULL;
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;

-- Receipts that were sent: one for each ride, recorded by the statement that finishes the job.
CREATE TABLE receipts (
    ride_id    BIGINT      PRIMARY KEY,
    staged_id  BIGINT      NOT NULL,
    message_id TEXT        NOT NULL,
    sent_at    TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- The same for refunds.
CREATE TABLE refund_receipts (
    refund_id  BIGINT      PRIMARY KEY,
    staged_id  BIGINT      NOT NULL,
    message_id TEXT        NOT NULL,
    sent_at    TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- Dead letters: jobs that no retry helps, kept for a person. They died in the outbox, on their way to a queue, or in
-- the queue `jobs`, being worked.
CREATE TABLE dead_jobs (
    staged_id BIGINT      PRIMARY KEY,
    job_name  TEXT        NOT NULL,
    job_args  JSONB       NOT NULL,
    staged_at TIMESTAMPTZ NOT NULL,
    died_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    died_in   TEXT        NOT NULL CHECK (died_in IN ('outbox', 'queue')),
    attempts  INT         NOT NULL,
    error     TEXT        NOT NULL
);

-- Dead letters that a person gave up. Nothing works them any more; that they are here says that their receipts are not
-- missing by mistake.
CREATE TABLE purged_jobs (
    staged_id BIGINT      PRIMARY KEY,
    job_name  TEXT        NOT NULL,
    job_args  JSONB       NOT NULL,
    purged_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    error     TEXT        NOT NULL
);
