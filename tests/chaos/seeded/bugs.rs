//! The table of bugs.

use uuid::Uuid;

use super::Guard::{Constraint, Trigger};
use super::{Bug, Scenario, Seeded};

/// The rules that must catch them.
mod rule {
    pub(super) const NOT_FORGOTTEN: &str = "every key is finished, parked or not long due";
    pub(super) const ENDED: &str = "every key has ended finished or parked";
    pub(super) const NOT_TOUCHED: &str = "a finished key is not written to";
    pub(super) const KNOWN_HOLDER: &str = "every lease on a key belongs to a known process";
    pub(super) const ONE_PLACE: &str = "a job is in one place";
    pub(super) const DELIVERED: &str = "every staged job has been delivered";
    pub(super) const RIDE: &str = "a ride is what its request asked for, and its answer says what became of it";
    pub(super) const RIDE_ONCE: &str = "a ride is made once";
    pub(super) const CHARGE: &str = "a ride that says so has one charge at Stripe, and no other has any";
    pub(super) const REFUND: &str = "a refund is of its user's paid ride, and made when it says so";
    pub(super) const REFUND_ONCE: &str = "a ride is refunded here if it is at Stripe, and once";
    pub(super) const RIDE_RECEIPT: &str = "a ride that was paid has one receipt, and no other has any";
    pub(super) const REFUND_RECEIPT: &str = "a refund that was made has one receipt, and no other has any";
}

const ONE_RIDE: super::Guard = Constraint("rides", "rides_idempotency_key_id_key");
const ONE_JOB: super::Guard = Constraint("jobs", "jobs_pkey");
const NEVER_MOVES_BACK: super::Guard = Trigger("recovery_point_never_moves_back");
const NEVER_CHANGES: super::Guard = Trigger("answer_never_changes");
const NEVER_REMOVED: super::Guard = Trigger("unfinished_is_never_removed");

/// Parts of statements that more than one bug is about.
const RELEASE: &str = "SET lease_token = NULL, locked_at = NULL, last_error = mine.error";
const FENCE: &str = "WHERE k.id = i.key_id AND k.lease_token = i.lease_token AND k.step = i.step";
const DELIVERED: &str = "FROM taken ORDER BY id";
const STAGED: &str = "SELECT job ->> 'name', job -> 'args' FROM closed, jsonb_array_elements(jobs) AS job";
const TAKEN_OVER: &str = "SET lease_token = i.token,";
const OPENED: &str = "origin_ip, token, $13, now()";
const RECORD: &str = "origin_ip, (state -> 'ride_id')::bigint, 'ride', user_id FROM opened";
const RECEIPT: &str =
    "SELECT (data -> 'ride_id')::bigint, job_id, data ->> 'message_id' FROM finished WHERE data ? 'ride_id'";

pub(super) const SEEDED: &[Seeded] = &[
    // The original's, as far as they leave a trace.
    Seeded {
        name: "original: the enqueuer deletes jobs that it never enqueued",
        bug: Bug::Sql(&[(DELIVERED, "FROM taken ORDER BY id LIMIT 2")]),
        lifted: &[],
        scenario: Scenario::Delivered,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "original: any error at Stripe is answered for good",
        bug: Bug::Sql(&[(
            RELEASE,
            "SET lease_token = NULL, locked_at = NULL, last_error = NULL, recovery_point = 'finished', step = 32767,
                 response_code = 503, response_body = '{}'",
        )]),
        lifted: &[],
        scenario: Scenario::Unanswered,
        caught_by: rule::RIDE,
    },
    Seeded {
        name: "original: a worker that outlives its lock repeats what follows",
        bug: Bug::Sql(&[(FENCE, "WHERE k.id = i.key_id")]),
        lifted: &[],
        scenario: Scenario::LateAnswer,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "original: unlocking does not ask whose lock it is",
        bug: Bug::Sql(&[("WHERE k.id = mine.id AND k.lease_token = mine.lease_token", "WHERE k.id = mine.id")]),
        lifted: &[],
        scenario: Scenario::LateRelease,
        caught_by: rule::NOT_TOUCHED,
    },
    Seeded {
        name: "original: the reaper removes unfinished keys",
        bug: Bug::Sql(&[("AND old.finished", ""), ("AND NOT old.finished", "AND false")]),
        lifted: &[NEVER_REMOVED],
        scenario: Scenario::OldUnfinished,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "original: the reaper removes keys that are locked",
        bug: Bug::Sql(&[
            ("AND (locked_at IS NULL OR locked_at <= now() - make_interval(secs => $2))", "AND $2::float8 > 0"),
            ("AND old.finished", ""),
            ("AND NOT old.finished", "AND false"),
        ]),
        lifted: &[NEVER_REMOVED],
        scenario: Scenario::OldUnderWay,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "original: the completer never gives up on a hopeless key",
        bug: Bug::Sql(&[(
            "k.completer_attempts >= $5 AS exhausted",
            "k.completer_attempts < least($5, 0) AS exhausted",
        )]),
        lifted: &[],
        scenario: Scenario::Hopeless,
        caught_by: rule::ENDED,
    },
    Seeded {
        name: "original: another address is recorded as the client's",
        bug: Bug::Sql(&[("user_id, request_params, origin_ip, state,", "user_id, request_params, inet '192.0.2.1' AS origin_ip, state,")]),
        lifted: &[],
        scenario: Scenario::Booked,
        caught_by: rule::RIDE_ONCE,
    },
    Seeded {
        name: "original: Stripe is asked within a transaction, which a failure rolls back",
        bug: Bug::Sql(&[(
            "UPDATE idempotency_keys k SET lease_token = NULL, locked_at = NULL, last_error",
            "WITH undone AS (
                    DELETE FROM rides WHERE idempotency_key_id = ANY($1::bigint[]) RETURNING id
                ), unrecorded AS (
                    DELETE FROM audit_records WHERE resource_id IN (SELECT id FROM undone)
                )
                UPDATE idempotency_keys k SET lease_token = NULL, locked_at = NULL, last_error",
        )]),
        lifted: &[],
        scenario: Scenario::Unanswered,
        caught_by: rule::RIDE,
    },
    // Leases and fences.
    Seeded {
        name: "the fence asks for the recovery point, but not for the lease's token",
        bug: Bug::Sql(&[(FENCE, "WHERE k.id = i.key_id AND k.step = i.step")]),
        lifted: &[],
        scenario: Scenario::LateDecline,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "a living process is taken for dead, and there is no fence",
        bug: Bug::Sql(&[
            ("AND last_beat_at <= now() - make_interval(secs => $2)", "AND $2::float8 IS NOT NULL"),
            (FENCE, "WHERE k.id = i.key_id"),
        ]),
        lifted: &[],
        scenario: Scenario::TakenForDead,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "a lease says that another process holds it, and is not given back",
        bug: Bug::Sql(&[
            (OPENED, "origin_ip, token, coalesce(gen_random_uuid(), $13), now()"),
            (RELEASE, "SET last_error = mine.error"),
        ]),
        lifted: &[],
        scenario: Scenario::Failed,
        caught_by: rule::KNOWN_HOLDER,
    },
    Seeded {
        name: "a lease that is taken over keeps its token",
        bug: Bug::Sql(&[
            (TAKEN_OVER, "SET lease_token = coalesce(k.lease_token, i.token),"),
            ("RETURNING k.id AS key_id, k.lease_token,", "RETURNING k.id AS key_id, i.token AS lease_token,"),
        ]),
        lifted: &[],
        scenario: Scenario::LateDecline,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "a finished request is executed again",
        bug: Bug::Sql(&[
            ("num_nulls(k.response_code, k.parked_at) = 2", "k.parked_at IS NULL"),
            ("WHEN response_code IS NOT NULL THEN 'finished'", ""),
            (
                TAKEN_OVER,
                "SET recovery_point = 'ride_created', step = 1, response_code = NULL, response_headers = '',
                     response_body = NULL, lease_token = i.token,",
            ),
        ]),
        lifted: &[NEVER_MOVES_BACK, NEVER_CHANGES],
        scenario: Scenario::Repeated,
        caught_by: rule::RIDE_RECEIPT,
    },
    // Money.
    Seeded {
        name: "each attempt sends Stripe a key of its own",
        bug: Bug::ToStripe(with_a_key_of_its_own),
        lifted: &[],
        scenario: Scenario::Unanswered,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "Stripe's key is made anew with each lease",
        bug: Bug::Sql(&[(TAKEN_OVER, "SET foreign_call_key = gen_random_uuid(), lease_token = i.token,")]),
        lifted: &[],
        scenario: Scenario::Unanswered,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "a 500 from Stripe is taken for a decline",
        bug: Bug::FromStripe(declined_for_500),
        lifted: &[],
        scenario: Scenario::Unanswered,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "a 500 from Stripe is taken for a success",
        bug: Bug::FromStripe(charged_for_500),
        lifted: &[],
        scenario: Scenario::Failed,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "the look-up finds nothing, whatever there is",
        bug: Bug::FromStripe(empty_list),
        lifted: &[],
        scenario: Scenario::Forgotten,
        caught_by: rule::CHARGE,
    },
    Seeded {
        name: "the ride does not learn its charge",
        bug: Bug::Sql(&[("SET stripe_charge_id = c.data ->> 'charge_id'", "SET stripe_charge_id = NULL")]),
        lifted: &[],
        scenario: Scenario::Booked,
        caught_by: rule::RIDE_RECEIPT,
    },
    // Answers and receipts.
    Seeded {
        name: "a decline is stored as a 201",
        bug: Bug::Sql(&[("response_code = i.response_code", "response_code = 201")]),
        lifted: &[],
        scenario: Scenario::Declined,
        caught_by: rule::RIDE,
    },
    Seeded {
        name: "a failure that was asked for is answered for good",
        bug: Bug::Sql(&[(
            RELEASE,
            "SET lease_token = NULL, locked_at = NULL, last_error = NULL, recovery_point = 'finished', step = 32767,
                 response_code = 500, response_body = '{}'",
        )]),
        lifted: &[],
        scenario: Scenario::Raised,
        caught_by: rule::RIDE,
    },
    Seeded {
        name: "the receipt is not staged",
        bug: Bug::Sql(&[(STAGED, "SELECT '', '{}'::jsonb WHERE false")]),
        lifted: &[],
        scenario: Scenario::Booked,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "a decline gets a receipt",
        bug: Bug::Sql(&[(
            STAGED,
            "SELECT 'send_ride_receipt', jsonb_build_object('ride_id', rides.id)
             FROM closed JOIN rides ON rides.idempotency_key_id = closed.key_id",
        )]),
        lifted: &[],
        scenario: Scenario::Declined,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "the enqueuer delivers a job twice",
        bug: Bug::Sql(&[(DELIVERED, "FROM taken, generate_series(1, 2) ORDER BY id")]),
        lifted: &[ONE_JOB],
        scenario: Scenario::Delivered,
        caught_by: rule::ONE_PLACE,
    },
    Seeded {
        name: "the enqueuer passes a job over for ever",
        bug: Bug::Sql(&[(
            "FROM staged_jobs WHERE next_attempt_at",
            "FROM staged_jobs WHERE id % 2 = 0 AND next_attempt_at",
        )]),
        lifted: &[],
        scenario: Scenario::Delivered,
        caught_by: rule::DELIVERED,
    },
    // Rides and who asked for them.
    Seeded {
        name: "the ride goes the other way",
        bug: Bug::Sql(&[
            ("(request_params -> 'origin_lat')::float8", "(request_params -> 'target_lat')::float8"),
        ]),
        lifted: &[],
        scenario: Scenario::Booked,
        caught_by: rule::RIDE,
    },
    Seeded {
        name: "a request makes two rides",
        bug: Bug::Sql(&[(
            "SELECT (state -> 'ride_id')::bigint, key_id,",
            "SELECT (state -> 'ride_id')::bigint + generate_series(0, 1) * 1000, key_id,",
        )]),
        lifted: &[ONE_RIDE],
        scenario: Scenario::Booked,
        caught_by: rule::RIDE,
    },
    Seeded {
        name: "a request is opened without its ride",
        bug: Bug::Sql(&[(
            "(request_params -> 'target_lon')::float8 FROM opened",
            "(request_params -> 'target_lon')::float8 FROM opened WHERE false",
        )]),
        lifted: &[],
        scenario: Scenario::Booked,
        caught_by: rule::RIDE,
    },
    Seeded {
        name: "the ride is recorded twice",
        bug: Bug::Sql(&[(RECORD, "origin_ip, (state -> 'ride_id')::bigint, 'ride', user_id FROM opened, generate_series(1, 2)")]),
        lifted: &[],
        scenario: Scenario::Booked,
        caught_by: rule::RIDE_ONCE,
    },
    Seeded {
        name: "the ride is not recorded",
        bug: Bug::Sql(&[(RECORD, "origin_ip, (state -> 'ride_id')::bigint, 'ride', user_id FROM opened WHERE false")]),
        lifted: &[],
        scenario: Scenario::Booked,
        caught_by: rule::RIDE_ONCE,
    },
    Seeded {
        name: "the completer never picks anything up",
        bug: Bug::Sql(&[("k.next_attempt_at <= now()", "k.next_attempt_at > 'infinity'")]),
        lifted: &[],
        scenario: Scenario::Abandoned,
        caught_by: rule::NOT_FORGOTTEN,
    },
    // Refunds.
    Seeded {
        name: "the refund does not learn what Stripe has made",
        bug: Bug::Sql(&[("SET stripe_refund_id = c.data ->> 'stripe_refund_id'", "SET stripe_refund_id = NULL")]),
        lifted: &[],
        scenario: Scenario::Refunded,
        caught_by: rule::REFUND,
    },
    Seeded {
        name: "the refund is another ride's",
        bug: Bug::Sql(&[(
            "SELECT (state -> 'refund_id')::bigint, key_id, (state -> 'ride_id')::bigint,",
            "SELECT (state -> 'refund_id')::bigint, key_id, (state -> 'ride_id')::bigint - 1,",
        )]),
        lifted: &[],
        scenario: Scenario::Refunded,
        caught_by: rule::REFUND_ONCE,
    },
    Seeded {
        name: "a 500 from Stripe is taken for a refund",
        bug: Bug::FromStripe(refunded_for_500),
        lifted: &[],
        scenario: Scenario::RefundFailed,
        caught_by: rule::REFUND_ONCE,
    },
    Seeded {
        name: "a user refunds another user's ride",
        bug: Bug::Sql(&[("AND r.user_id = f.user_id", "")]),
        lifted: &[],
        scenario: Scenario::RefundedByStranger,
        caught_by: rule::REFUND,
    },
    Seeded {
        name: "the refund's receipt is not staged",
        bug: Bug::Sql(&[(STAGED, "SELECT job ->> 'name', job -> 'args' FROM closed, jsonb_array_elements(jobs) AS job
             WHERE job ->> 'name' <> 'send_refund_receipt'")]),
        lifted: &[],
        scenario: Scenario::Refunded,
        caught_by: rule::REFUND_RECEIPT,
    },
    // Jobs and who works them.
    Seeded {
        name: "a job is finished without its receipt",
        bug: Bug::Sql(&[(RECEIPT, "SELECT 0, 0, '' WHERE false")]),
        lifted: &[],
        scenario: Scenario::Worked,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "the receipt is recorded with another ride, which was not paid",
        bug: Bug::Sql(&[(
            RECEIPT,
            "SELECT (data -> 'ride_id')::bigint - 1, job_id, data ->> 'message_id' FROM finished WHERE data ? 'ride_id'",
        )]),
        lifted: &[],
        scenario: Scenario::Worked,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "a receipt is recorded whoever has the lease on its job",
        bug: Bug::Sql(&[(
            RECEIPT,
            "SELECT (data -> 'ride_id')::bigint, job_id, data ->> 'message_id'
             FROM unnest($1::bigint[], $3::jsonb[]) AS i (job_id, data) WHERE data ? 'ride_id'",
        )]),
        lifted: &[],
        scenario: Scenario::LateReceipt,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "giving up a job does not ask whose it is",
        bug: Bug::Sql(&[(
            "WHERE staged_id = $1 AND lease_token = $2 FOR UPDATE",
            "WHERE staged_id = $1 AND $2::uuid IS NOT NULL FOR UPDATE",
        )]),
        lifted: &[],
        scenario: Scenario::LateFailure,
        caught_by: rule::RIDE_RECEIPT,
    },
    Seeded {
        name: "a job that failed is deleted, not tried again",
        bug: Bug::Sql(&[
            ("AND f.dies RETURNING j.*", "RETURNING j.*"),
            ("'queue', attempts, $3 FROM gone", "'queue', attempts, $3 FROM gone WHERE false"),
            ("AND NOT f.dies RETURNING", "AND false RETURNING"),
        ]),
        lifted: &[],
        scenario: Scenario::FailedOnce,
        caught_by: rule::RIDE_RECEIPT,
    },
];

fn with_a_key_of_its_own(request: &str) -> String {
    const HEADER: &str = "idempotency-key: ";
    let Some((before, key_and_rest)) = request.split_once(HEADER) else { return request.to_owned() };
    let (_, rest) = key_and_rest.split_once("\r\n").expect("a line");
    format!("{before}{HEADER}{}\r\n{rest}", Uuid::new_v4())
}

fn declined_for_500(reply: &str) -> String {
    const DECLINED: &str = "HTTP/1.1 402 Payment Required\r\ncontent-type: application/json\r\n\r\n\
        {\"error\":{\"type\":\"card_error\",\"code\":\"card_declined\",\"message\":\"Your card was declined.\"}}";
    if reply.starts_with("HTTP/1.1 500") { DECLINED.to_owned() } else { reply.to_owned() }
}

fn charged_for_500(reply: &str) -> String {
    const CHARGED: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n\
        {\"id\":\"ch_taken_for_granted\",\"status\":\"succeeded\"}";
    if reply.starts_with("HTTP/1.1 500") { CHARGED.to_owned() } else { reply.to_owned() }
}

fn refunded_for_500(reply: &str) -> String {
    const REFUNDED: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n\
        {\"id\":\"re_taken_for_granted\",\"charge\":\"ch_1\",\"amount\":2000,\"currency\":\"usd\",\"status\":\"succeeded\"}";
    if reply.starts_with("HTTP/1.1 500") { REFUNDED.to_owned() } else { reply.to_owned() }
}

fn empty_list(reply: &str) -> String {
    let Some((before, _)) = reply.split_once("\"data\":[") else { return reply.to_owned() };
    let (head, _) = before.split_once("\r\n\r\n").expect("a head");
    format!("{head}\r\n\r\n{{\"object\":\"list\",\"has_more\":false,\"data\":[]}}")
}
