//! Mutants of the program's SQL.
//!
//! In the tests, the program talks to Postgres through a tap (`tests/support/tap.rs`) that records which test causes
//! which statement, and can send a mutant in a statement's place. So no mutant needs a build, and only the tests that
//! send its statement are run.

mod accepted;
mod clauses;
mod known;
mod record;
mod report;
mod source;
mod statements;
mod syntax;
mod trial;
mod viable;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use accepted::Accepted;
use report::Report;
use statements::{Mutant, Statement};
use trial::Trial;

use crate::suite::{self, Failure};

/// The directory of everything that a run writes.
pub const DIR: &str = "target/mutants";
/// The tests are built once and run for hours.
const PROFILE: &str = "long";

/// What to try, and how.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only mutants whose file, statement or clause contains this
    #[arg(long)]
    statement: Option<String>,
    /// Only statements in files that differ from this git revision
    #[arg(long, value_name = "REVISION")]
    changed: Option<String>,
    /// Lists the mutants and runs none
    #[arg(long)]
    list: bool,
    /// Mutants under way at once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Keeps what was found out before the tests were built anew: for statements that read as before
    #[arg(long)]
    keep: bool,
    /// Only tests that this file names, `BINARY NAME` a line: what do these catch by themselves?
    #[arg(long, value_name = "FILE")]
    tests: Option<PathBuf>,
    /// Only each Nth mutant, from the Kth
    #[arg(long, value_name = "K/N", value_parser = shard)]
    shard: Option<(usize, usize)>,
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    numbers.filter(|(k, n)| (1..=*n).contains(k)).ok_or_else(|| "a shard is K/N, with K from 1 to N".to_owned())
}

/// Runs the mutants. Returns `false` if the report is not clean, for example because an unaccepted mutant survived.
pub async fn run(root: &Path, options: &Options) -> Result<bool, Failure> {
    std::fs::create_dir_all(root.join(DIR))?;
    let accepted = Accepted::read(root)?;
    eprintln!("building the tests");
    let binaries = suite::build(root, &root.join("target"), PROFILE, None).await?;
    suite::make_cluster(root).await?;
    let record = record::record(root, &binaries, options.jobs).await?;
    let mut found = statements::find(root, &record)?;
    if let Some(file) = &options.tests {
        let names = std::fs::read_to_string(file)?;
        let names: HashSet<&str> = names.lines().collect();
        for statement in &mut found.statements {
            statement.tests.retain(|test| names.contains(test.to_string().as_str()));
        }
    }
    let mut mutants = statements::mutants(&found.statements);
    accepted.must_match(&found, &mutants)?;
    if let Some(pattern) = &options.statement {
        mutants.retain(|mutant| mutant.title().contains(pattern));
    }
    if let Some(revision) = &options.changed {
        let changed = changed_files(root, revision).await?;
        mutants.retain(|mutant| {
            mutant.statements().any(|at| found.statements[at].files.iter().any(|file| changed.contains(file)))
        });
    }
    if let Some((k, n)) = options.shard {
        let mut number = 0;
        mutants.retain(|_| {
            number += 1;
            number % n == k % n
        });
    }
    if options.list {
        list(&found.statements, &mutants);
        return Ok(true);
    }
    let unviable = viable::refused(root, &found.statements, &mutants).await?;
    let mut trial = Trial::new(root, &binaries, &record, &found.statements, options.jobs, options.keep)?;
    trial.identity(&mutants).await?;
    let trusted = if options.keep { accepted.all_in(&mutants) } else { HashSet::new() };
    let outcomes = trial.run(&mutants, unviable, &trusted).await?;
    let everything = options.statement.is_none()
        && options.changed.is_none()
        && options.shard.is_none()
        && options.tests.is_none();
    let report = Report::new(&found, &mutants, &outcomes, &accepted, everything);
    report.write(&root.join(DIR).join("sql.json"))?;
    report.print();
    Ok(report.is_clean())
}

#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
fn list(statements: &[Statement], mutants: &[Mutant]) {
    for mutant in mutants {
        println!("{}", mutant.title());
    }
    println!("{} mutants of {} statements", mutants.len(), statements.len());
}

async fn changed_files(root: &Path, revision: &str) -> Result<Vec<String>, Failure> {
    let diff = tokio::process::Command::new("git")
        .args(["diff", "--name-only", revision, "--"])
        .current_dir(root)
        .output()
        .await?;
    if !diff.status.success() {
        return Err(String::from_utf8_lossy(&diff.stderr).into_owned().into());
    }
    Ok(String::from_utf8(diff.stdout)?.lines().map(str::to_owned).collect())
}
