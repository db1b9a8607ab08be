//! The program's statements, found among all that was sent, and their mutants.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use super::clauses::{self, Change};
use super::record::Record;
use super::source::{self, Fragment};
use super::syntax::Script;
use crate::suite::{Failure, Test};

/// Tests that have faulty statements sent on purpose: what only they send is not the program's.
const PLANTING: &[&str] = &["seeded::", "lockstep::faults_"];

/// What only the tests' proxies say.
const OF_PROXIES: &[&str] = &["DISCARD ALL"];

/// A statement of the program, or a script of several.
#[derive(Debug)]
pub struct Statement {
    /// Where it stands.
    pub file: String,
    /// The file's name without its ending, or the constant's or function's.
    pub name: String,
    /// All files that have a part in it.
    pub files: Vec<String>,
    /// As the program sends it.
    pub text: String,
    /// As a tree.
    pub script: Script,
    /// Those that have it sent.
    pub tests: BTreeSet<Test>,
}

impl Statement {
    /// How a change of it is called.
    pub fn title(&self, change: &Change) -> String {
        format!("{} {}: {}", self.file, self.name, change.clause())
    }
}

/// A change of one clause of one statement.
#[derive(Debug)]
pub struct Mutant {
    /// Its place among the statements.
    pub statement: usize,
    /// Its number among the statement's changes.
    pub number: usize,
    /// What is changed.
    pub change: Change,
    /// What is sent in the statement's place.
    pub text: String,
}

/// What the record and the source come to.
#[derive(Debug)]
pub struct Found {
    /// Sorted by where they stand.
    pub statements: Vec<Statement>,
    /// Where statements stand that no test has sent.
    pub never_sent: Vec<String>,
    /// Those that the parser cannot read: they have no mutants.
    pub unread: Vec<Unread>,
}

/// A script that the parser cannot read.
#[derive(Debug)]
pub struct Unread {
    /// Where it stands.
    pub file: String,
    /// As with a statement.
    pub name: String,
    /// What the parser says.
    pub why: String,
}

/// Finds the program's statements.
pub fn find(root: &Path, record: &Record) -> Result<Found, Failure> {
    let ours = source::fragments(root, &["src", "crates/atomic-phases", "schema.sql"])?;
    let of_tests = source::fragments(root, &["tests"])?;
    let sent: Vec<(&String, String, &BTreeSet<Test>)> = record
        .statements
        .iter()
        .filter(|(text, _)| !OF_PROXIES.contains(&text.as_str()))
        .filter(|(_, tests)| !tests.iter().all(|test| PLANTING.iter().any(|prefix| test.name.starts_with(prefix))))
        .map(|(text, tests)| (text, source::single_spaced(text), tests))
        .collect();
    // A part that is in many statements tells them apart less than one that is in few.
    let common = |fragment: &Fragment| sent.iter().filter(|(_, text, _)| fragment.share_of(text).is_some()).count();
    let counts: Vec<usize> = ours.iter().map(common).collect();
    let mut statements = Vec::new();
    let mut unread = Vec::new();
    let mut met: HashSet<usize> = HashSet::new();
    for (text, spaced, tests) in &sent {
        let mut shares: Vec<(usize, std::cmp::Reverse<usize>, usize)> = ours
            .iter()
            .enumerate()
            .filter_map(|(at, fragment)| Some((counts[at], std::cmp::Reverse(fragment.share_of(spaced)?), at)))
            .collect();
        shares.sort_unstable();
        met.extend(shares.iter().map(|(.., at)| at));
        let known: usize = shares.iter().map(|(_, share, _)| share.0).sum();
        if known * 2 < spaced.len() {
            if of_tests.iter().any(|fragment| fragment.share_of(spaced).is_some()) {
                continue;
            }
            return Err(format!("a statement was sent that does not stand in the code: {spaced}").into());
        }
        let home = &ours[shares[0].2];
        let script = match Script::parse(text) {
            Ok(script) => script,
            Err(error) => {
                unread.push(Unread { file: home.file.clone(), name: home.name.clone(), why: error.to_string() });
                continue;
            }
        };
        let files: BTreeSet<&String> = shares.iter().map(|(.., at)| &ours[*at].file).collect();
        statements.push(Statement {
            file: home.file.clone(),
            name: home.name.clone(),
            files: files.into_iter().cloned().collect(),
            text: (*text).clone(),
            script,
            tests: (*tests).clone(),
        });
    }
    statements.sort_by(|one, two| (&one.file, &one.name, &one.text).cmp(&(&two.file, &two.name, &two.text)));
    let never_sent = ours
        .iter()
        .enumerate()
        .filter(|(at, fragment)| fragment.is_whole() && !met.contains(at))
        .map(|(_, fragment)| format!("{} {}", fragment.file, fragment.name))
        .collect();
    Ok(Found { statements, never_sent, unread })
}

/// All mutants of these statements; those that read like another one, or like the statement, count once or not at all.
pub fn mutants(statements: &[Statement]) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (at, statement) in statements.iter().enumerate() {
        let mut texts = HashSet::from([statement.script.print()]);
        for (number, change) in clauses::changes(&statement.script).into_iter().enumerate() {
            let text = clauses::apply(&statement.script, &[number]).print();
            if texts.insert(text.clone()) {
                mutants.push(Mutant { statement: at, number, change, text });
            }
        }
    }
    mutants
}
