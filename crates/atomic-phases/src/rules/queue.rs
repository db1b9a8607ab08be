//! The queue's own rules: a job's life, whatever it does.

use super::{Found, Rule};

/// One statement sees one moment, in which a job is in one table only.
const STAGED: &str = "
    SELECT s.id, s.id AS thing, '{}'::text[] AS items, '{}'::text[] AS once,
           CASE WHEN EXISTS (SELECT FROM jobs j WHERE j.staged_id = s.id)
                  OR EXISTS (SELECT FROM dead_jobs d WHERE d.staged_id = s.id)
                  OR EXISTS (SELECT FROM purged_jobs p WHERE p.staged_id = s.id)
                THEN 'staged job ' || s.id || ': delivered, and still staged' END AS offence
    FROM staged_jobs s WHERE s.id > $1 ORDER BY s.id LIMIT $2";
const QUEUED: &str = "
    SELECT j.staged_id AS id, j.staged_id AS thing, '{}'::text[] AS items, '{}'::text[] AS once,
           CASE WHEN EXISTS (SELECT FROM dead_jobs d WHERE d.staged_id = j.staged_id)
                  OR EXISTS (SELECT FROM purged_jobs p WHERE p.staged_id = j.staged_id)
                THEN 'staged job ' || j.staged_id || ': dead, and still queued'
                WHEN (SELECT count(*) FROM jobs o WHERE o.staged_id = j.staged_id) > 1
                THEN 'staged job ' || j.staged_id || ': queued twice' END AS offence
    FROM jobs j WHERE j.staged_id > $1 ORDER BY j.staged_id LIMIT $2";
const DEAD: &str = "
    SELECT d.staged_id AS id, d.staged_id AS thing, '{}'::text[] AS items, '{}'::text[] AS once,
           CASE WHEN EXISTS (SELECT FROM purged_jobs p WHERE p.staged_id = d.staged_id)
                THEN 'staged job ' || d.staged_id || ': given up, and still a dead letter' END AS offence
    FROM dead_jobs d WHERE d.staged_id > $1 ORDER BY d.staged_id LIMIT $2";

const DELIVERED: &str = "
    SELECT s.id, 'staged job ' || s.id AS offence FROM staged_jobs s WHERE s.id > $1 ORDER BY s.id LIMIT $2";
const WORKED: &str = "
    SELECT j.staged_id AS id, CASE WHEN j.finished_at IS NULL THEN 'staged job ' || j.staged_id END AS offence
    FROM jobs j WHERE j.staged_id > $1 ORDER BY j.staged_id LIMIT $2";

/// The rules of outbox, queue and dead letters.
pub fn queue() -> Vec<Rule> {
    let found = vec![Found::Rows(STAGED), Found::Rows(QUEUED), Found::Rows(DEAD)];
    vec![
        Rule::pairs("a job is in one place", None, found),
        Rule::rows_at_rest("every staged job has been delivered", DELIVERED),
        Rule::rows_at_rest("every queued job has been worked", WORKED),
    ]
}
