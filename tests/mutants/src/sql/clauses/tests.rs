use super::*;

/// Returns each change as it is listed, and the text that it makes.
fn mutants(text: &str) -> Vec<(String, String)> {
    let script = Script::parse(text).expect("SQL");
    let mutant = |(at, change): (usize, Change)| (change.clause(), apply(&script, &[at]).print());
    changes(&script).into_iter().enumerate().map(mutant).collect()
}

fn assert_mutants(text: &str, expected: &[(&str, &str)]) {
    let mutants = mutants(text);
    let mutants: Vec<(&str, &str)> = mutants.iter().map(|(what, text)| (what.as_str(), text.as_str())).collect();
    assert_eq!(mutants, expected);
}

#[test]
fn each_clause_of_a_poll_can_be_dropped() {
    assert_mutants(
        "SELECT id FROM jobs WHERE a AND t <= now() ORDER BY t LIMIT $1 FOR UPDATE SKIP LOCKED",
        &[
            ("drop WHERE a", "SELECT id FROM jobs WHERE t <= now() ORDER BY t LIMIT $1 FOR UPDATE SKIP LOCKED"),
            ("drop WHERE t <= now()", "SELECT id FROM jobs WHERE a ORDER BY t LIMIT $1 FOR UPDATE SKIP LOCKED"),
            (
                "< in t <= now()",
                "SELECT id FROM jobs WHERE a AND t < now() ORDER BY t LIMIT $1 FOR UPDATE SKIP LOCKED",
            ),
            ("drop ORDER BY t", "SELECT id FROM jobs WHERE a AND t <= now() LIMIT $1 FOR UPDATE SKIP LOCKED"),
            ("drop LIMIT $1", "SELECT id FROM jobs WHERE a AND t <= now() ORDER BY t FOR UPDATE SKIP LOCKED"),
            ("drop SKIP LOCKED", "SELECT id FROM jobs WHERE a AND t <= now() ORDER BY t LIMIT $1 FOR UPDATE"),
            ("drop FOR UPDATE SKIP LOCKED", "SELECT id FROM jobs WHERE a AND t <= now() ORDER BY t LIMIT $1"),
        ],
    );
}

#[test]
fn a_column_that_is_not_set_keeps_its_value_and_a_commit_can_lose_its_flush() {
    assert_mutants(
        "UPDATE keys k SET a = NULL, b = least(x, y) WHERE num_nulls(c, d) = 2",
        &[
            (
                "commit without a flush",
                "UPDATE keys k SET a = NULL, b = least(x, y) WHERE num_nulls(c, d) = 2 \
                 RETURNING (SELECT set_config('synchronous_commit', 'off', true)) AS commit_later",
            ),
            ("do not set a = NULL", "UPDATE keys k SET a = k.a, b = least(x, y) WHERE num_nulls(c, d) = 2"),
            ("do not set b = least(x, y)", "UPDATE keys k SET a = NULL, b = k.b WHERE num_nulls(c, d) = 2"),
            ("drop least x", "UPDATE keys k SET a = NULL, b = least(y) WHERE num_nulls(c, d) = 2"),
            ("drop least y", "UPDATE keys k SET a = NULL, b = least(x) WHERE num_nulls(c, d) = 2"),
            ("drop WHERE num_nulls(c, d) = 2", "UPDATE keys k SET a = NULL, b = least(x, y)"),
            ("drop num_nulls c", "UPDATE keys k SET a = NULL, b = least(x, y) WHERE num_nulls(d) = 1"),
            ("drop num_nulls d", "UPDATE keys k SET a = NULL, b = least(x, y) WHERE num_nulls(c) = 1"),
        ],
    );
}

#[test]
fn what_no_other_part_reads_is_dropped_and_what_one_reads_is_only_not_written() {
    let text = "WITH gone AS (DELETE FROM a WHERE x RETURNING id), noted AS (INSERT INTO b (id) SELECT id FROM gone) \
                SELECT count(*), (SELECT set_config('synchronous_commit', 'off', true)) AS later FROM gone";
    let whats: Vec<String> = mutants(text).into_iter().map(|(what, _)| what).collect();
    assert_eq!(
        whats,
        [
            "noted: drop the whole of it",
            "gone: select what is deleted from a",
            "gone: drop WHERE x",
            "wait for the flush of the commit",
        ]
    );
    let texts: Vec<String> = mutants(text).into_iter().map(|(_, text)| text).collect();
    assert!(
        texts[0].starts_with("WITH gone AS (DELETE FROM a WHERE x RETURNING id) SELECT count(*)"),
        "{}",
        texts[0]
    );
    assert!(texts[1].starts_with("WITH gone AS (SELECT id FROM a WHERE x), noted"), "{}", texts[1]);
    assert!(texts[3].ends_with("SELECT count(*) FROM gone"), "{}", texts[3]);
}

#[test]
fn settings_that_go_before_a_schema_can_be_dropped() {
    assert_mutants(
        "SET LOCAL lock_timeout = '30s'; CREATE TABLE t (a INT)",
        &[("SET LOCAL lock_timeout = '30s': drop SET LOCAL lock_timeout = '30s'", "CREATE TABLE t (a INT)")],
    );
}

#[test]
fn changes_of_different_scopes_go_together() {
    let script = Script::parse(
        "CREATE TABLE t (a INT NOT NULL DEFAULT 1, b TEXT UNIQUE CHECK (b IN ('x', 'y')));
         CREATE TRIGGER g BEFORE UPDATE OF a, b ON t FOR EACH ROW WHEN (OLD.a AND OLD.b) EXECUTE FUNCTION f('it''s')",
    )
    .expect("SQL");
    let all = changes(&script);
    let number = |clause: &str| all.iter().position(|change| change.clause() == clause).expect(clause);
    let chosen = [number("t.a: drop NOT NULL"), number("t.b: drop IN 'x'"), number("g: drop WHEN OLD.b")];
    assert_eq!(
        apply(&script, &chosen).print(),
        "CREATE TABLE t (a INT DEFAULT 1, b TEXT UNIQUE CHECK (b IN ('y')));\n\
         CREATE TRIGGER g BEFORE UPDATE OF a, b ON t FOR EACH ROW WHEN (OLD.a) EXECUTE FUNCTION f('it''s')"
    );
}
