//! The queue's own rules: what holds for every job, whatever it does.

use super::Rule;

/// One statement sees one moment, in which a job is in one table only. Each table is read a page at a time.
const ONE_PLACE: &str = "
    SELECT i.id, CASE WHEN count(*) > 1
                      THEN 'staged job ' || i.id || ': ' || string_agg(i.place, ' and ' ORDER BY i.place) END AS offence
    FROM (
        (SELECT id, 'staged' AS place FROM staged_jobs WHERE id > $1 ORDER BY id LIMIT $2)
        UNION ALL
        (SELECT staged_id, 'queued' FROM jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2)
        UNION ALL
        (SELECT staged_id, 'dead' FROM dead_jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2)
        UNION ALL
        (SELECT staged_id, 'given up' FROM purged_jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2)
    ) i
    GROUP BY i.id ORDER BY i.id LIMIT $2";

const DELIVERED: &str = "
    SELECT s.id, 'staged job ' || s.id AS offence FROM staged_jobs s WHERE s.id > $1 ORDER BY s.id LIMIT $2";
const WORKED: &str = "
    SELECT j.staged_id AS id, CASE WHEN j.finished_at IS NULL THEN 'staged job ' || j.staged_id END AS offence
    FROM jobs j WHERE j.staged_id > $1 ORDER BY j.staged_id LIMIT $2";

/// As for keys. Each table is read a page at a time.
const KNOWN_HOLDER: &str = "
    SELECT i.id, CASE WHEN i.lease_token IS NOT NULL AND i.process_id IS NOT NULL
                           AND NOT EXISTS (SELECT FROM processes p WHERE p.id = i.process_id)
                      THEN 'staged job ' || i.id || ': leased by the process ' || i.process_id || ', which nobody knows' END AS offence
    FROM (
        (SELECT id, lease_token, process_id FROM staged_jobs WHERE id > $1 ORDER BY id LIMIT $2)
        UNION ALL
        (SELECT staged_id, lease_token, process_id FROM jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2)
    ) i
    ORDER BY i.id LIMIT $2";

/// The rules of outbox, queue and dead letters.
pub fn queue() -> Vec<Rule> {
    vec![
        Rule::rows("a job is in one place", ONE_PLACE),
        Rule::rows("every lease on a job belongs to a known process", KNOWN_HOLDER),
        Rule::rows_at_rest("every staged job has been delivered", DELIVERED),
        Rule::rows_at_rest("every queued job has been worked", WORKED),
    ]
}
