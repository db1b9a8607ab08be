//! Running mutants against the tests that touch their statements.
//!
//! A mutant first runs alone with the quickest of its tests; most are caught there. The mutants that are left run with
//! their other tests in groups: if all tests are green with a dozen mutants at once, each of them has survived. If one
//! is red, it is run again with halves of the group to find the mutants that make it red, and the group goes on without
//! those.

mod groups;
mod identity;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use groups::Left;

use super::known::Known;
use super::record::Record;
use super::statements::{Mutant, Statement};
use super::syntax::Script;
use super::{DIR, clauses, source};
use crate::suite::{self, Binary, Failure, Run, Test};

/// Tests that run at once in a process: most of them wait most of the time.
const THREADS: usize = 3;
/// Seconds of tests, one after the other, for which a mutant runs alone: in a first process, and in a second.
const ALONE: [f64; 2] = [4.0, 12.0];
/// The time of the slowest failure: a condition that is waited for and does not come true, twice.
const SLOWEST_FAILURE: Duration = Duration::from_secs(75);
/// How much longer than by itself a test may take beside others.
const SLOWED_DOWN: f64 = 4.0;

/// The outcome of a mutant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// A test failed.
    Caught {
        /// The first that did.
        by: String,
    },
    /// A test did not end.
    Timeout {
        /// One that did not.
        by: String,
    },
    /// Postgres does not understand it.
    Unviable {
        /// Postgres' error.
        why: String,
    },
    /// All tests were green.
    Survived,
}

/// Everything that a run of mutants needs.
pub struct Trial<'a> {
    root: &'a Path,
    binaries: &'a [Binary],
    statements: &'a [Statement],
    /// The duration of each test by itself, in seconds.
    durations: HashMap<Test, f64>,
    jobs: usize,
    /// How many mutants of a statement each test has caught, to choose the tests of later mutants.
    caught: Mutex<HashMap<(usize, &'a Test), usize>>,
    began: Instant,
    files: AtomicUsize,
    known: Known,
    /// Tests that are sometimes red without a mutant.
    left_out: HashSet<&'a Test>,
}

/// How tests ended.
#[derive(Clone, Copy)]
enum Ended<'a> {
    Green,
    Red(&'a Test),
    Hung(&'a Test),
}

struct Tested<'a> {
    passed: Vec<&'a Test>,
    ended: Ended<'a>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caught { by } => write!(f, "caught by {by}"),
            Self::Timeout { by } => write!(f, "hung in {by}"),
            Self::Unviable { why } => write!(f, "not understood: {why}"),
            Self::Survived => f.write_str("SURVIVED"),
        }
    }
}

impl<'a> Trial<'a> {
    /// Prepares; nothing runs yet.
    pub fn new(
        root: &'a Path,
        binaries: &'a [Binary],
        record: &Record,
        statements: &'a [Statement],
        jobs: usize,
        keep: bool,
    ) -> Result<Self, Failure> {
        Ok(Self {
            root,
            binaries,
            statements,
            durations: record.tests.iter().cloned().collect(),
            jobs,
            caught: Mutex::default(),
            began: Instant::now(),
            files: AtomicUsize::new(0),
            known: Known::open(root, &record.binaries, keep)?,
            left_out: HashSet::new(),
        })
    }

    /// Returns the outcome of each of these mutants. Those that are refused are not run; those that are trusted to survive
    /// meet no groups.
    pub async fn run(
        &self,
        mutants: &[Mutant],
        refused: HashMap<usize, String>,
        trusted: &HashSet<usize>,
    ) -> Result<Vec<Outcome>, Failure> {
        self.log(&format!("{} mutants, {} of them not understood by Postgres", mutants.len(), refused.len()));
        let mut outcomes: HashMap<usize, Outcome> =
            refused.into_iter().map(|(at, why)| (at, Outcome::Unviable { why })).collect();
        let viable: Vec<usize> = (0..mutants.len()).filter(|at| !outcomes.contains_key(at)).collect();
        let total = viable.len();
        let alone: Vec<_> = stream::iter(viable.into_iter().enumerate())
            .map(async |(number, at)| {
                let tried = self.alone_or_known(&mutants[at]).await?;
                let verdict = tried.as_ref().map_or_else(|_| "not caught yet".to_owned(), ToString::to_string);
                self.tell(&mutants[at], &format!("{verdict} [{}/{total}]", number + 1));
                Ok::<_, Failure>((at, tried))
            })
            .buffer_unordered(self.jobs)
            .try_collect()
            .await?;
        let mut left = Vec::new();
        for (at, tried) in alone {
            match tried {
                Ok(outcome) => drop(outcomes.insert(at, outcome)),
                Err(_) if trusted.contains(&at) => drop(outcomes.insert(at, Outcome::Survived)),
                Err(passed) => left.push(Left { mutant: at, passed }),
            }
        }
        self.log(&format!("{} mutants meet their other tests in groups", left.len()));
        let grouped: Vec<_> = stream::iter(self.groups(mutants, left))
            .map(|group| self.group(mutants, group))
            .buffer_unordered(self.jobs)
            .try_collect()
            .await?;
        outcomes.extend(grouped.into_iter().flatten());
        Ok((0..mutants.len()).map(|at| outcomes.remove(&at).unwrap_or(Outcome::Survived)).collect())
    }

    fn tell(&self, mutant: &Mutant, verdict: &str) {
        self.log(&format!("{}: {verdict}", mutant.title()));
    }

    fn log(&self, line: &str) {
        eprintln!("[{:>5} s] {line}", self.began.elapsed().as_secs());
    }

    async fn alone_or_known(&self, mutant: &Mutant) -> Result<Result<Outcome, HashSet<&'a Test>>, Failure> {
        let key = mutant.key();
        if let Some(outcome) = self.known.outcome(&key) {
            return Ok(Ok(outcome.clone()));
        }
        if let Some(passed) = self.known.passed(&key) {
            return Ok(Err(self.touching(mutant).filter(|test| passed.contains(*test)).collect()));
        }
        let tried = self.alone(mutant).await?;
        match &tried {
            Ok(outcome) => self.known.ended(key, outcome)?,
            Err(passed) => self.known.keep_passed(key, passed.iter().copied())?,
        }
        Ok(tried)
    }

    /// Runs a mutant with the quickest of its tests. Returns its outcome, or else the tests that it has passed.
    async fn alone(&self, mutant: &Mutant) -> Result<Result<Outcome, HashSet<&'a Test>>, Failure> {
        let replaced = self.replaced(&[mutant]);
        let mut passed = HashSet::new();
        for mut tests in self.quickest(mutant) {
            while !tests.is_empty() {
                let ran = self.tests(&replaced, &tests, THREADS).await?;
                let (Ended::Red(test) | Ended::Hung(test)) = ran.ended else {
                    passed.extend(tests);
                    break;
                };
                // Beside others, on a busy machine, a test may be red for another reason.
                if let Some(outcome) = self.whose(mutant, test).await? {
                    let mut caught = self.caught.lock().expect("no panic while locked");
                    *caught.entry((mutant.places[0].0, test)).or_default() += 1;
                    return Ok(Ok(outcome));
                }
                passed.extend(ran.passed);
                passed.insert(test);
                tests.retain(|test| !passed.contains(test));
            }
        }
        Ok(Err(passed))
    }

    /// Returns tests of a mutant, a list for each process: those that have caught mutants of its statement before, then
    /// the quickest.
    fn quickest(&self, mutant: &Mutant) -> Vec<Vec<&'a Test>> {
        let caught = self.caught.lock().expect("no panic while locked");
        let rank = |test: &'a Test| {
            let caught = caught.get(&(mutant.places[0].0, test)).copied().unwrap_or_default();
            (Reverse(caught), self.durations[test], test)
        };
        let mut tests: Vec<_> = self.touching(mutant).map(rank).collect();
        tests.sort_by(|one, two| one.0.cmp(&two.0).then(one.1.total_cmp(&two.1)));
        let mut tests = tests.into_iter().peekable();
        ALONE
            .iter()
            .map(|seconds| {
                let (mut chunk, mut spent) = (Vec::new(), 0.0);
                while let Some((_, duration, test)) =
                    tests.next_if(|(_, duration, _)| chunk.is_empty() || spent + duration <= *seconds)
                {
                    chunk.push(test);
                    spent += duration;
                }
                chunk
            })
            .filter(|chunk| !chunk.is_empty())
            .collect()
    }

    /// Returns the tests that send a mutant's statements.
    fn touching(&self, mutant: &Mutant) -> impl Iterator<Item = &'a Test> {
        let tests: BTreeSet<&'a Test> = mutant.statements().flat_map(|at| &self.statements[at].tests).collect();
        tests.into_iter().filter(|test| !self.left_out.contains(test))
    }

    fn touches(&self, mutant: &Mutant, test: &Test) -> bool {
        mutant.statements().any(|at| self.statements[at].tests.contains(test))
    }

    /// Runs this test, which was red beside others or with other mutants, by itself with this mutant. Returns the
    /// outcome if it is red again.
    async fn whose(&self, mutant: &Mutant, test: &'a Test) -> Result<Option<Outcome>, Failure> {
        if !self.touches(mutant, test) {
            return Ok(None);
        }
        Ok(match self.tests(&self.replaced(&[mutant]), &[test], 1).await?.ended {
            Ended::Green => None,
            Ended::Red(test) => Some(Outcome::Caught { by: test.to_string() }),
            Ended::Hung(test) => Some(Outcome::Timeout { by: test.to_string() }),
        })
    }

    /// Returns the statements that these mutants replace, each with the text that is sent in its place.
    fn replaced(&self, mutants: &[&Mutant]) -> HashMap<String, String> {
        let mut numbers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for mutant in mutants {
            for (statement, number) in &mutant.places {
                numbers.entry(*statement).or_default().push(*number);
            }
        }
        let replace = |(at, numbers): (usize, Vec<usize>)| {
            let statement = &self.statements[at];
            replacement(statement, &clauses::apply(&statement.script, &numbers))
        };
        numbers.into_iter().map(replace).collect()
    }

    /// Runs these tests, a process for each binary one after the other, up to the first that is red.
    async fn tests(
        &self,
        replaced: &HashMap<String, String>,
        tests: &[&'a Test],
        threads: usize,
    ) -> Result<Tested<'a>, Failure> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let file = self.root.join(DIR).join(format!("replace-{}-{number}.json", std::process::id()));
        std::fs::write(&file, serde_json::to_vec(replaced)?)?;
        let mut tested = Tested { passed: Vec::new(), ended: Ended::Green };
        let of = |binary: &'a Binary| {
            let tests: Vec<&'a Test> = tests.iter().filter(|test| test.binary == binary.name).copied().collect();
            let seconds: f64 = tests.iter().map(|test| self.durations[*test]).sum();
            (binary, tests, seconds)
        };
        let mut binaries: Vec<_> = self.binaries.iter().map(of).filter(|(_, tests, _)| !tests.is_empty()).collect();
        // Most mutants are caught by a quick test.
        binaries.sort_by(|(.., one), (.., two)| one.total_cmp(two));
        for (binary, of_binary, seconds) in binaries {
            let run = Run {
                root: self.root,
                home: self.root,
                binary,
                tests: of_binary.iter().map(|test| test.name.as_str()).collect(),
                threads,
                deadline: SLOWEST_FAILURE + Duration::from_secs_f64(seconds * SLOWED_DOWN),
                environment: vec![("SQL_TAP_REPLACE", file.clone())],
                to_the_end: false,
            };
            let ran = suite::run(&run).await?;
            let named = |name: &String| of_binary.iter().find(|test| test.name == *name).copied();
            tested.passed.extend(ran.passed.iter().filter_map(|(name, _)| named(name)));
            if let Some(test) = ran.failed.first().and_then(named) {
                tested.ended = Ended::Red(test);
                break;
            }
            if let Some(test) = ran.unfinished.first().and_then(named) {
                tested.ended = Ended::Hung(test);
                break;
            }
        }
        std::fs::remove_file(&file)?;
        Ok(tested)
    }
}

/// Returns the statement as sent, and the text in its place. That text ends in the original, as a comment on one line:
/// a test that asks Postgres for the current statement identifies it by its text, and must not fail for that reason.
fn replacement(statement: &Statement, changed: &Script) -> (String, String) {
    (statement.text.clone(), format!("{} -- {}", changed.print(), source::single_spaced(&statement.text)))
}
