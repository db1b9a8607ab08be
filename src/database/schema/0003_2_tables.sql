CREATE TABLE IF NOT EXISTS refunds (
    id                 BIGINT      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    created_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    idempotency_key_id BIGINT      NOT NULL UNIQUE,
    ride_id            BIGINT      NOT NULL UNIQUE REFERENCES rides ON DELETE RESTRICT,
    user_id            BIGINT      NOT NULL,
    stripe_refund_id   TEXT        UNIQUE CHECK (char_length(stripe_refund_id) BETWEEN 1 AND 255)
);
CREATE TABLE IF NOT EXISTS refund_receipts (
    refund_id  BIGINT      PRIMARY KEY,
    staged_id  BIGINT      NOT NULL,
    message_id TEXT        NOT NULL,
    sent_at    TIMESTAMPTZ NOT NULL DEFAULT now()
);
