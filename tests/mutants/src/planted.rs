//! Faults planted in the source, and the tests that must notice them.
//!
//! Each `.patch` in `tests/mutants/planted` is one fault: lines `# promise: …` and `# test: BINARY NAME` (one or more),
//! then the output of `git diff`. The faults are planted in a copy of the project, which is kept for the next run
//! together with its build. A test must be red with its fault each time, and green without it each time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::process::Command;

use crate::suite::{self, Binary, Failure, Run, Test};

/// Where the faults are.
const PATCHES: &str = "tests/mutants/planted";
/// The copy, and its build directory.
const COPY: &str = "target/mutants/copy";
const BUILT: &str = "target/mutants/built";
/// The tests are built again for each fault.
const PROFILE: &str = "mutants";
/// Runs of a test at once: most tests wait most of the time.
const AT_ONCE: usize = 3;
/// A test that has not ended by now waits for something that the fault prevents, and so has noticed it.
const DEADLINE: Duration = Duration::from_secs(120);

/// Which faults, and how often.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only faults whose name contains this
    #[arg(long)]
    fault: Option<String>,
    /// How often each test is run with its fault, and without
    #[arg(long, default_value_t = 10)]
    times: usize,
}

/// A patch, and the lines at its beginning.
struct Fault {
    name: String,
    path: PathBuf,
    promise: String,
    tests: Vec<Test>,
}

/// How often a test was red and green.
struct Line {
    fault: String,
    promise: String,
    test: Test,
    red: usize,
    green: usize,
}

/// Plants each fault and runs its tests. Returns `false` if one was not always red with it and green without.
pub async fn run(root: &Path, options: &Options) -> Result<bool, Failure> {
    let faults = read_all(root, options.fault.as_deref())?;
    let copy = root.join(COPY);
    suite::make_cluster(root).await?;
    mirror(root, &copy).await?;
    let all: BTreeSet<&Test> = faults.iter().flat_map(|fault| &fault.tests).collect();
    let built = build(root, &all.iter().map(|test| test.binary.as_str()).collect()).await?;
    let mut greens = BTreeMap::new();
    for test in all {
        let red = reds(root, &built, test, options.times).await?;
        eprintln!("{test}: green {} of {} without a fault", options.times - red, options.times);
        greens.insert(test, options.times - red);
    }
    let mut lines = Vec::new();
    for fault in &faults {
        mirror(root, &copy).await?;
        plant(&copy, fault).await?;
        let built = build(root, &fault.tests.iter().map(|test| test.binary.as_str()).collect())
            .await
            .map_err(|error| format!("{}: {error}", fault.name))?;
        for test in &fault.tests {
            let red = reds(root, &built, test, options.times).await?;
            eprintln!("{test}: red {red} of {} with {}", options.times, fault.name);
            let (fault, promise) = (fault.name.clone(), fault.promise.clone());
            lines.push(Line { fault, promise, test: test.clone(), red, green: greens[test] });
        }
    }
    mirror(root, &copy).await?;
    print(&lines, options.times);
    Ok(lines.iter().all(|line| line.red == options.times && line.green == options.times))
}

#[expect(clippy::print_stdout, reason = "the table is what the run is for")]
fn print(lines: &[Line], times: usize) {
    println!("| promise | fault | test | red with it | green without |\n|---|---|---|---|---|");
    for Line { fault, promise, test, red, green } in lines {
        println!("| {promise} | {fault} | `{test}` | {red} of {times} | {green} of {times} |");
    }
}

fn read_all(root: &Path, pattern: Option<&str>) -> Result<Vec<Fault>, Failure> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(root.join(PATCHES))? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "patch"));
    paths.sort();
    let mut faults = Vec::new();
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if pattern.is_some_and(|pattern| !name.contains(pattern)) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let values = |field: &str| -> Vec<String> {
            let prefix = format!("# {field}: ");
            text.lines()
                .filter_map(|line| line.strip_prefix(&prefix))
                .map(|value| value.trim().to_owned())
                .collect()
        };
        let tests: Option<Vec<Test>> = values("test").iter().map(|value| test(value)).collect();
        let (Some(promise), Some(tests)) = (values("promise").pop(), tests.filter(|tests| !tests.is_empty()))
        else {
            return Err(format!("{name}: needs a line `# promise: …` and lines `# test: BINARY NAME`").into());
        };
        let name = values("fault").pop().unwrap_or(name);
        faults.push(Fault { name, path, promise, tests });
    }
    Ok(faults)
}

fn test(text: &str) -> Option<Test> {
    let (binary, name) = text.split_once(' ')?;
    Some(Test { binary: binary.to_owned(), name: name.trim().to_owned() })
}

/// Makes the copy equal to the project: all files that git tracks or would add. Files that are equal are not written,
/// so that little is built again.
async fn mirror(root: &Path, copy: &Path) -> Result<(), Failure> {
    let files = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .await?;
    let files = String::from_utf8(files.stdout)?;
    let files: BTreeSet<&str> = files.split('\0').filter(|file| !file.is_empty()).collect();
    for file in &files {
        let (from, to) = (root.join(file), copy.join(file));
        // Git still lists a file that was deleted.
        let content = match std::fs::read(&from) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            content => content?,
        };
        if std::fs::read(&to).is_ok_and(|there| there == content) {
            continue;
        }
        std::fs::create_dir_all(to.parent().ok_or("a file without a directory")?)?;
        std::fs::write(&to, content)?;
    }
    remove_others(copy, copy, &files)
}

fn remove_others(copy: &Path, dir: &Path, files: &BTreeSet<&str>) -> Result<(), Failure> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(copy, &path, files)?;
        } else if !files.contains(path.strip_prefix(copy)?.to_string_lossy().as_ref()) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

async fn plant(copy: &Path, fault: &Fault) -> Result<(), Failure> {
    let applied = Command::new("git")
        .args(["apply", "--whitespace=nowarn"])
        .arg(&fault.path)
        .current_dir(copy)
        // The copy is in a directory of the project that git ignores, and git would ignore the patch as well.
        .env("GIT_CEILING_DIRECTORIES", copy.parent().unwrap_or(copy))
        .output()
        .await?;
    if applied.status.success() {
        return Ok(());
    }
    Err(format!("{} does not apply: {}", fault.name, String::from_utf8_lossy(&applied.stderr)).into())
}

async fn build(root: &Path, names: &BTreeSet<&str>) -> Result<Vec<Binary>, Failure> {
    let mut built = Vec::new();
    for name in names {
        built.extend(suite::build(&root.join(COPY), &root.join(BUILT), PROFILE, Some(name)).await?);
    }
    Ok(built)
}

/// Returns how often a test is red in this many runs.
async fn reds(root: &Path, built: &[Binary], test: &Test, times: usize) -> Result<usize, Failure> {
    let copy = root.join(COPY);
    // The unit tests of each package are a binary of their own.
    let mut binary = None;
    for named in built.iter().filter(|binary| binary.name == test.binary) {
        if suite::tests(&copy, named).await?.contains(test) {
            binary = Some(named);
        }
    }
    let binary = binary.ok_or_else(|| format!("there is no test {test}"))?;
    let run = Run {
        root: &copy,
        home: root,
        binary,
        tests: vec![&test.name],
        threads: 1,
        deadline: DEADLINE,
        environment: Vec::new(),
        to_the_end: true,
    };
    let runs = stream::iter(0..times).map(|_| suite::run(&run)).buffer_unordered(AT_ONCE);
    runs.try_fold(0, async |reds, ran| Ok(reds + usize::from(!ran.is_green()))).await
}
