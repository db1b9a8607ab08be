//! Results about mutants, stored as soon as they are known: a run that was stopped continues where it was, and with
//! `--keep` a run uses them although the tests were built again.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::DIR;
use super::record::Identities;
use super::trial::Outcome;
use crate::suite::{Failure, Test};

/// The results, by mutant.
#[derive(Debug)]
pub struct Known {
    outcomes: HashMap<Key, Outcome>,
    passed: HashMap<Key, HashSet<Test>>,
    file: Mutex<File>,
}

/// Identifies a mutant, by its title and by what is sent, so that a mutant of a changed statement is another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    title: String,
    text: u64,
}

impl Key {
    /// Returns the key of the mutant with this title that sends this text.
    pub fn new(title: String, text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self { title, text: hasher.finish() }
    }
}

/// A line of the file. The first names the binaries that the others are about.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Of(Identities),
    Ended { mutant: Key, outcome: Outcome },
    Passed { mutant: Key, tests: Vec<Test> },
}

impl Known {
    /// Reads the results about mutants of these binaries, and of others if `keep` is set.
    pub fn open(root: &Path, identities: &Identities, keep: bool) -> Result<Self, Failure> {
        let path = root.join(DIR).join("known.jsonl");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        // The last line may be incomplete.
        let mut lines = text.lines().map_while(|line| serde_json::from_str(line).ok());
        let same = matches!(lines.next(), Some(Line::Of(of)) if keep || of == *identities);
        let (mut outcomes, mut passed) = (HashMap::new(), HashMap::<Key, HashSet<Test>>::new());
        for line in lines.take_while(|_| same) {
            match line {
                Line::Of(_) => {}
                Line::Ended { mutant, outcome } => drop(outcomes.insert(mutant, outcome)),
                Line::Passed { mutant, tests } => passed.entry(mutant).or_default().extend(tests),
            }
        }
        let file = OpenOptions::new().create(true).append(same).write(true).truncate(!same).open(&path)?;
        let known = Self { outcomes, passed, file: Mutex::new(file) };
        if !same {
            known.write(&Line::Of(identities.clone()))?;
        }
        Ok(known)
    }

    /// Returns the outcome of this mutant in an earlier run.
    pub fn outcome(&self, mutant: &Key) -> Option<&Outcome> {
        self.outcomes.get(mutant)
    }

    /// Returns the tests that it passed in an earlier run.
    pub fn passed(&self, mutant: &Key) -> Option<&HashSet<Test>> {
        self.passed.get(mutant)
    }

    /// Stores the outcome of a mutant.
    pub fn ended(&self, mutant: Key, outcome: &Outcome) -> Result<(), Failure> {
        self.write(&Line::Ended { mutant, outcome: outcome.clone() })
    }

    /// Stores the tests that a mutant has passed.
    pub fn keep_passed<'a>(&self, mutant: Key, tests: impl IntoIterator<Item = &'a Test>) -> Result<(), Failure> {
        self.write(&Line::Passed { mutant, tests: tests.into_iter().cloned().collect() })
    }

    fn write(&self, line: &Line) -> Result<(), Failure> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        Ok(self.file.lock().expect("no panic while locked").write_all(&text)?)
    }
}
