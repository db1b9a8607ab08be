//! The program's statements, found among all that was sent, and their mutants.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use super::clauses::{self, Change};
use super::known::Key;
use super::record::Record;
use super::source::{self, Fragment};
use super::syntax::Script;
use crate::suite::{Failure, Test};

/// Tests that send faulty statements on purpose: a statement that only they send is not the program's.
const PLANTING: &[&str] = &["seeded::", "lockstep::faults_"];

/// Statements that only the tests' proxies send.
const OF_PROXIES: &[&str] = &["DISCARD ALL"];

/// A statement of the program, or a script of several.
#[derive(Debug)]
pub struct Statement {
    /// The file that contains it.
    pub file: String,
    /// The file's name without its extension, or the constant's or function's.
    pub name: String,
    /// All files that contain a part of it.
    pub files: Vec<String>,
    /// Its text, as the program sends it.
    pub text: String,
    /// Its syntax tree.
    pub script: Script,
    /// The tests that send it.
    pub tests: BTreeSet<Test>,
    /// The template that it was made from, if any.
    template: Option<Template>,
}

/// A statement with placeholders for other parts.
#[derive(Debug, Clone)]
struct Template {
    file: String,
    name: String,
    ctes: Vec<String>,
}

impl Statement {
    /// Returns file and name under which a clause is listed: those of the template, if it is the template's own.
    fn home(&self, change: &Change) -> (String, String) {
        let cte = change.scope.split('.').next().unwrap_or_default();
        match &self.template {
            Some(template) if cte.is_empty() || template.ctes.iter().any(|own| own == cte) => {
                (template.file.clone(), template.name.clone())
            }
            _ => (self.file.clone(), self.name.clone()),
        }
    }
}

/// A change of one clause, in each statement that has it: a template's clause is one clause, whatever is put in.
#[derive(Debug)]
pub struct Mutant {
    /// The indexes of its statements, and the change's number among the changes of each.
    pub places: Vec<(usize, usize)>,
    /// The file that contains the clause.
    pub file: String,
    /// The statement's name in that file.
    pub name: String,
    /// What is changed.
    pub change: Change,
    /// What is sent in the first statement's place.
    pub text: String,
}

impl Mutant {
    /// Returns its title: file, statement and clause.
    pub fn title(&self) -> String {
        format!("{} {}: {}", self.file, self.name, self.change.clause())
    }

    /// Returns the key under which its results are stored.
    pub fn key(&self) -> Key {
        Key::new(self.title(), &self.text)
    }

    /// Returns the indexes of its statements.
    pub fn statements(&self) -> impl Iterator<Item = usize> {
        self.places.iter().map(|(statement, _)| *statement)
    }
}

/// What was found in the record and in the source.
#[derive(Debug)]
pub struct Found {
    /// Sorted by file, name and text.
    pub statements: Vec<Statement>,
    /// Files and names of statements that no test has sent.
    pub never_sent: Vec<String>,
    /// The scripts that the parser cannot read: they have no mutants.
    pub unread: Vec<Unread>,
}

/// A script that the parser cannot read.
#[derive(Debug)]
pub struct Unread {
    /// The file that contains it.
    pub file: String,
    /// Its name, as with a statement.
    pub name: String,
    /// The parser's error.
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
    // A part that is in few statements identifies one better than a part that is in many.
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
            template: shares.iter().find_map(|(.., at)| {
                let Fragment { file, name, .. } = &ours[*at];
                let ctes = ours[*at].ctes_of_template()?;
                Some(Template { file: file.clone(), name: name.clone(), ctes })
            }),
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

/// Returns all mutants of these statements. Those with the same text count once, and those with the statement's own not
/// at all.
pub fn mutants(statements: &[Statement]) -> Vec<Mutant> {
    let mut mutants: Vec<Mutant> = Vec::new();
    let mut by_title: HashMap<String, usize> = HashMap::new();
    for (at, statement) in statements.iter().enumerate() {
        let mut texts = HashSet::from([statement.script.print()]);
        for (number, change) in clauses::changes(&statement.script).into_iter().enumerate() {
            let text = clauses::apply(&statement.script, &[number]).print();
            if texts.insert(text.clone()) {
                let (file, name) = statement.home(&change);
                let mutant = Mutant { places: vec![(at, number)], file, name, change, text };
                match by_title.entry(mutant.title()) {
                    Entry::Occupied(known) if !mutants[*known.get()].statements().any(|other| other == at) => {
                        mutants[*known.get()].places.push((at, number));
                    }
                    Entry::Occupied(_) => mutants.push(mutant),
                    Entry::Vacant(new) => {
                        new.insert(mutants.len());
                        mutants.push(mutant);
                    }
                }
            }
        }
    }
    mutants
}
