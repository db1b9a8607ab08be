//! The engine's own rules: what holds for every key, whatever its operation.

use super::Rule;

/// The triggers guard promises about changes, which rows as they are now cannot show.
const GUARDED: &str = "
    SELECT g.id, CASE WHEN t.tgname IS NULL THEN 'the trigger ' || g.name || ' is missing or disabled' END AS offence
    FROM (VALUES (1::bigint, 'recovery_point_never_moves_back'), (2, 'answer_never_changes'),
                 (3, 'unfinished_is_never_removed')) AS g (id, name)
    LEFT JOIN pg_trigger t ON t.tgrelid = 'idempotency_keys'::regclass AND t.tgname = g.name AND t.tgenabled = 'O'
    WHERE g.id > $1 ORDER BY g.id LIMIT $2";

/// A key has been forgotten if it is unfinished an hour after the moment when the completer should have taken it.
const NOT_FORGOTTEN: &str = "
    SELECT k.id, CASE WHEN k.response_code IS NULL AND k.parked_at IS NULL
                           AND greatest(k.next_attempt_at, k.locked_at) <= now() - interval '1 hour'
                      THEN 'key ' || k.id || ': at ' || k.recovery_point || ', due since ' || k.next_attempt_at END AS offence
    FROM idempotency_keys k WHERE k.id > $1 ORDER BY k.id LIMIT $2";

const ENDED: &str = "
    SELECT k.id, CASE WHEN k.response_code IS NULL AND k.parked_at IS NULL
                      THEN 'key ' || k.id || ': at ' || k.recovery_point END AS offence
    FROM idempotency_keys k WHERE k.id > $1 ORDER BY k.id LIMIT $2";

/// Finishing stores a whole answer, clears the last error and ends the lease; no later statement may write to the key.
const NOT_TOUCHED: &str = "
    SELECT k.id, CASE WHEN k.response_code IS NOT NULL AND (k.response_body IS NULL OR k.last_error IS NOT NULL OR k.lease_token IS NOT NULL)
                      THEN 'key ' || k.id || ': not finished as a whole, or written to after it was' END AS offence
    FROM idempotency_keys k WHERE k.id > $1 ORDER BY k.id LIMIT $2";

/// What a process that nobody knows is at work on would be handed back by nobody when it dies.
const KNOWN_HOLDER: &str = "
    SELECT k.id, CASE WHEN k.lease_token IS NOT NULL AND k.process_id IS NOT NULL
                           AND NOT EXISTS (SELECT FROM processes p WHERE p.id = k.process_id)
                      THEN 'key ' || k.id || ': leased by the process ' || k.process_id || ', which nobody knows' END AS offence
    FROM idempotency_keys k WHERE k.id > $1 ORDER BY k.id LIMIT $2";

/// The rules of idempotency keys.
pub fn engine() -> Vec<Rule> {
    vec![
        Rule::rows("the database refuses to turn a key back, change its answer, or remove it unfinished", GUARDED),
        Rule::rows("every key is finished, parked or not long due", NOT_FORGOTTEN),
        Rule::rows_at_rest("every key has ended finished or parked", ENDED),
        Rule::rows("a finished key is not written to", NOT_TOUCHED),
        Rule::rows("every lease on a key belongs to a known process", KNOWN_HOLDER),
    ]
}
