//! Records which test causes which statements, and how long each test takes: one run of all tests without a mutant,
//! which must be green.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::DIR;
use crate::suite::{self, Binary, Failure, Run, Test};

/// No binary's tests take this long, one after the other.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Up to this many tests of a binary get a process each.
const FEW: usize = 20;
/// How often a test must be red to count as red: the machine may be busy.
const TRIES: usize = 3;

/// The binaries: path, build time in seconds and size of each.
pub type Identities = Vec<(PathBuf, u64, u64)>;

/// What was recorded.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The binaries that were run.
    pub binaries: Identities,
    /// Each test and its duration in seconds, one test at a time.
    pub tests: Vec<(Test, f64)>,
    /// Each statement as sent, and the tests that cause it.
    pub statements: Vec<(String, BTreeSet<Test>)>,
}

/// Returns the record of these binaries, and runs the tests only if there is none yet.
pub async fn record(root: &Path, binaries: &[Binary], jobs: usize) -> Result<Record, Failure> {
    let kept = root.join(DIR).join("record.json");
    let identities = identities(binaries)?;
    if let Ok(text) = std::fs::read(&kept)
        && let Ok(record) = serde_json::from_slice::<Record>(&text)
        && record.binaries == identities
    {
        return Ok(record);
    }
    let began = Instant::now();
    let mut parts = Vec::new();
    for binary in binaries {
        let tests = suite::tests(root, binary).await?;
        for job in 0..jobs {
            let part: Vec<Test> = tests.iter().skip(job).step_by(jobs).cloned().collect();
            parts.push((binary.clone(), part));
        }
    }
    eprintln!(
        "recording which of {} tests sends which statement",
        parts.iter().map(|(_, tests)| tests.len()).sum::<usize>()
    );
    let mut record = Record { binaries: identities, tests: Vec::new(), statements: Vec::new() };
    let mut statements: BTreeMap<String, BTreeSet<Test>> = BTreeMap::new();
    let mut parts = parts.into_iter().enumerate();
    let mut running = JoinSet::new();
    loop {
        while running.len() < jobs
            && let Some((number, (binary, tests))) = parts.next()
        {
            let file = root.join(DIR).join(format!("record-{number}.jsonl"));
            running.spawn(record_part(root.to_path_buf(), binary, tests, file));
        }
        let Some(recorded) = running.join_next().await else { break };
        let (tests, lines) = recorded??;
        record.tests.extend(tests);
        for (test, sql) in lines {
            statements.entry(sql).or_default().insert(test);
        }
    }
    record.statements = statements.into_iter().collect();
    record.tests.sort_by(|(_, one), (_, two)| one.total_cmp(two));
    std::fs::write(&kept, serde_json::to_vec_pretty(&record)?)?;
    eprintln!("recorded {} statements in {:.0} s", record.statements.len(), began.elapsed().as_secs_f64());
    Ok(record)
}

type Recorded = (Vec<(Test, f64)>, Vec<(Test, String)>);

#[derive(Deserialize)]
struct Line {
    test: String,
    sql: String,
}

/// Records some tests of a binary: in one process, or each in its own. A test that creates databases on its own threads
/// can be identified only if it is alone in its process.
async fn record_part(root: PathBuf, binary: Binary, tests: Vec<Test>, file: PathBuf) -> Result<Recorded, Failure> {
    let names: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
    let size = if names.len() <= FEW { 1 } else { names.len() };
    let (mut passed, mut lines) = (Vec::new(), Vec::new());
    for names in names.chunks(size) {
        let recorded = record_process(&root, &binary, names, &file).await?;
        passed.extend(recorded.0);
        lines.extend(recorded.1);
    }
    match lines.iter().find(|(test, _)| !tests.contains(test)) {
        Some((test, _)) => Err(format!("statements were recorded for {test}, which is no test").into()),
        None => Ok((passed, lines)),
    }
}

async fn record_process(root: &Path, binary: &Binary, names: &[&str], file: &Path) -> Result<Recorded, Failure> {
    // A run that was stopped may have left its file.
    let _ = std::fs::remove_file(file);
    let mut passed = Vec::new();
    let mut left = names.to_vec();
    for _ in 0..TRIES {
        if left.is_empty() {
            break;
        }
        let run = Run {
            root,
            home: root,
            binary,
            tests: left.clone(),
            threads: 1,
            deadline: DEADLINE,
            environment: vec![("SQL_TAP_RECORD", file.to_path_buf())],
            to_the_end: true,
        };
        let ran = suite::run(&run).await?;
        left.retain(|name| !ran.passed.iter().any(|(passed, _)| passed == name));
        if !left.is_empty() {
            eprintln!("not green without a mutant: {}", left.join(", "));
        }
        passed.extend(ran.passed);
    }
    if !left.is_empty() {
        return Err(format!("not green without a mutant, {TRIES} times: {}", left.join(", ")).into());
    }
    let test = |name: String| Test { binary: binary.name.clone(), name };
    let mut lines = Vec::new();
    // A binary without a test that uses the database records nothing.
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        let Line { test: name, sql } = serde_json::from_str(line)?;
        lines.push((test(name), sql));
    }
    let _ = std::fs::remove_file(file);
    Ok((passed.into_iter().map(|(name, took)| (test(name), took.as_secs_f64())).collect(), lines))
}

fn identities(binaries: &[Binary]) -> Result<Identities, Failure> {
    let mut identities = Vec::new();
    for binary in binaries {
        let metadata = std::fs::metadata(&binary.path)?;
        let built = metadata.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
        identities.push((binary.path.clone(), built, metadata.len()));
    }
    Ok(identities)
}
