//! What was found out about mutants, kept as it is found out: a run that was stopped goes on where it was.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::DIR;
use super::record::Identities;
use super::trial::Outcome;
use crate::suite::{Failure, Test};

/// By a mutant's title.
#[derive(Debug)]
pub struct Known {
    outcomes: HashMap<String, Outcome>,
    passed: HashMap<String, HashSet<Test>>,
    file: Mutex<File>,
}

/// A line of the file. The first says of which binaries the others are.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Of(Identities),
    Ended { title: String, outcome: Outcome },
    Passed { title: String, tests: Vec<Test> },
}

impl Known {
    /// What is known of mutants of these binaries; of others nothing.
    pub fn open(root: &Path, identities: &Identities) -> Result<Self, Failure> {
        let path = root.join(DIR).join("known.jsonl");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        // The last line may be torn.
        let mut lines = text.lines().map_while(|line| serde_json::from_str(line).ok());
        let same = matches!(lines.next(), Some(Line::Of(of)) if of == *identities);
        let (mut outcomes, mut passed) = (HashMap::new(), HashMap::<String, HashSet<Test>>::new());
        for line in lines.take_while(|_| same) {
            match line {
                Line::Of(_) => {}
                Line::Ended { title, outcome } => drop(outcomes.insert(title, outcome)),
                Line::Passed { title, tests } => passed.entry(title).or_default().extend(tests),
            }
        }
        let file = OpenOptions::new().create(true).append(same).write(true).truncate(!same).open(&path)?;
        let known = Self { outcomes, passed, file: Mutex::new(file) };
        if !same {
            known.write(&Line::Of(identities.clone()))?;
        }
        Ok(known)
    }

    /// How this mutant ended in an earlier run.
    pub fn outcome(&self, title: &str) -> Option<&Outcome> {
        self.outcomes.get(title)
    }

    /// What it passed in an earlier run.
    pub fn passed(&self, title: &str) -> Option<&HashSet<Test>> {
        self.passed.get(title)
    }

    /// Keeps how a mutant ended.
    pub fn ended(&self, title: String, outcome: &Outcome) -> Result<(), Failure> {
        self.write(&Line::Ended { title, outcome: outcome.clone() })
    }

    /// Keeps what it has passed.
    pub fn keep_passed<'a>(&self, title: String, tests: impl IntoIterator<Item = &'a Test>) -> Result<(), Failure> {
        self.write(&Line::Passed { title, tests: tests.into_iter().cloned().collect() })
    }

    fn write(&self, line: &Line) -> Result<(), Failure> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        Ok(self.file.lock().expect("no panic while locked").write_all(&text)?)
    }
}
