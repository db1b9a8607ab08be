//! The project's test binaries: building them, listing their tests, and running some of these while the output of
//! libtest is read, so that a run can end with its first failure.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rocket_rides_atomic::database::embedded::EmbeddedPostgres;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// The place of a stopped cluster.
const CLUSTER: &str = "target/mutants/cluster";
/// A Postgres without clients stops at once.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// An error that stops the tool.
pub type Failure = Box<dyn Error + Send + Sync>;

/// A test, by its binary and its path in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Test {
    /// The name of the binary, such as `integration`.
    pub binary: String,
    /// Its path, such as `engine::a_fence_is_shut`.
    pub name: String,
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.binary, self.name)
    }
}

/// A built test binary.
#[derive(Debug, Clone)]
pub struct Binary {
    /// Its name in Cargo.toml, or its file's.
    pub name: String,
    /// Where it was built.
    pub path: PathBuf,
}

/// Builds the test binaries of the program in `root`: only this one (`lib` for the unit tests), or all in `tests/`.
pub async fn build(
    root: &Path,
    target_dir: &Path,
    profile: &str,
    only: Option<&str>,
) -> Result<Vec<Binary>, Failure> {
    let which: &[&str] = match only {
        Some("lib") => &["--lib"],
        Some(name) => &["--test", name],
        None => &["--test", "*", "--package", "rocket-rides-atomic"],
    };
    let output = Command::new(env!("CARGO"))
        .args(["test", "--no-run", "--locked", "--message-format=json-render-diagnostics"])
        .args(which)
        .args(["--profile", profile])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await?;
    if !output.status.success() {
        return Err("the tests cannot be built".into());
    }
    let mut binaries = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["profile"]["test"] != true {
            continue;
        }
        if let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) {
            let name = if only == Some("lib") { "lib" } else { name };
            binaries.push(Binary { name: name.to_owned(), path: path.into() });
        }
    }
    binaries.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(binaries)
}

/// Returns the tests of a binary that are not ignored.
pub async fn tests(root: &Path, binary: &Binary) -> Result<Vec<Test>, Failure> {
    let list = async |more: &[&str]| -> Result<BTreeSet<String>, Failure> {
        let output = Command::new(&binary.path)
            .args(["--list", "--format=terse"])
            .args(more)
            .current_dir(root)
            .output()
            .await?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    };
    let (all, ignored) = (list(&[]).await?, list(&["--ignored"]).await?);
    Ok(all.difference(&ignored).map(|name| Test { binary: binary.name.clone(), name: name.clone() }).collect())
}

/// The task of one process.
#[derive(Debug)]
pub struct Run<'a> {
    /// The root of the project that is tested.
    pub root: &'a Path,
    /// The directory in which [`make_cluster`] has made the cluster.
    pub home: &'a Path,
    /// The binary that is run.
    pub binary: &'a Binary,
    /// The names of the tests to run.
    pub tests: Vec<&'a str>,
    /// How many tests run at once.
    pub threads: usize,
    /// The time after which the process is killed.
    pub deadline: Duration,
    /// Variables for the process.
    pub environment: Vec<(&'a str, PathBuf)>,
    /// Whether to go on after a failure.
    pub to_the_end: bool,
}

/// What a process did.
#[derive(Debug, Default)]
pub struct Ran {
    /// Tests that passed, and what each took, if one ran at a time.
    pub passed: Vec<(String, Duration)>,
    /// Tests that failed; the first one only, unless all were to be run.
    pub failed: Vec<String>,
    /// Tests that had not ended when the process was killed.
    pub unfinished: Vec<String>,
    /// What the process printed.
    pub output: String,
}

impl Ran {
    /// Returns whether every test has passed.
    pub fn is_green(&self) -> bool {
        self.failed.is_empty() && self.unfinished.is_empty()
    }
}

/// Runs tests of one binary in a separate process, and removes everything that it leaves behind.
pub async fn run(run: &Run<'_>) -> Result<Ran, Failure> {
    let scratch = Scratch::new(run.home)?;
    let mut child = Command::new(&run.binary.path)
        .arg("--exact")
        .args(&run.tests)
        .arg(format!("--test-threads={}", run.threads))
        .current_dir(run.root)
        .envs(run.environment.iter().map(|(name, value)| (name, value)))
        .env("TMPDIR", &scratch.0)
        .env("TEST_CLUSTERS", &scratch.0)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // The processes that it spawns end with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = Group(Pid::from_raw(i32::try_from(child.id().ok_or("no process")?)?));
    let mut ran = Ran::default();
    let read = read(child.stdout.take().ok_or("no output")?, run, &mut ran);
    let in_time = tokio::time::timeout(run.deadline, read).await;
    drop(group);
    child.wait().await?;
    let ended: BTreeSet<&str> =
        ran.passed.iter().map(|(name, _)| name.as_str()).chain(ran.failed.iter().map(String::as_str)).collect();
    let unfinished: Vec<String> =
        run.tests.iter().filter(|name| !ended.contains(*name)).map(|name| (*name).to_owned()).collect();
    // After a first failure the other tests were not waited for.
    if ran.failed.is_empty() || run.to_the_end {
        ran.unfinished = unfinished;
    }
    in_time.unwrap_or(Ok(()))?;
    Ok(ran)
}

/// Reads the lines of libtest: `test NAME ... ok`, whose first half comes before the test runs if one runs at a time.
async fn read(stdout: tokio::process::ChildStdout, run: &Run<'_>, ran: &mut Ran) -> Result<(), Failure> {
    let mut reader = BufReader::new(stdout);
    let (mut line, mut began) = (Vec::new(), Instant::now());
    loop {
        line.clear();
        // A test that prints does so in the middle of its line, so lines are searched, not compared.
        if reader.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        ran.output.push_str(&text);
        let Some((name, verdict)) = text.trim().strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        else {
            continue;
        };
        let name = name.strip_suffix(" - should panic").unwrap_or(name).to_owned();
        match verdict {
            "ok" => ran.passed.push((name, began.elapsed())),
            "FAILED" => {
                ran.failed.push(name);
                if !run.to_the_end {
                    return Ok(());
                }
            }
            _ => {}
        }
        began = Instant::now();
    }
}

/// A process and all that it has spawned, killed when this is dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // It has ended by itself, or ends now.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

/// Makes a stopped cluster, of which each process gets a copy: making one, or cleaning up after a process that was
/// killed, takes longer than a copy.
pub async fn make_cluster(root: &Path) -> Result<(), Failure> {
    let postgres = EmbeddedPostgres::start(&root.join(CLUSTER)).await?;
    postgres.stop(STOP_GRACE).await;
    Ok(())
}

/// A directory for temporary files, with a cluster in it. Its path is short, because the path of a Unix socket must be.
struct Scratch(PathBuf);

impl Scratch {
    fn new(root: &Path) -> Result<Self, Failure> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let scratch = Self(std::env::temp_dir().join(format!("mutants-{}-{number}", std::process::id())));
        std::fs::create_dir_all(&scratch.0)?;
        // If this process runs as root, Postgres runs as another user.
        std::fs::set_permissions(&scratch.0, Permissions::from_mode(0o755))?;
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([root.join(CLUSTER), scratch.0.join("postgres-0")])
            .status()?;
        if copied.success() { Ok(scratch) } else { Err("the cluster cannot be copied".into()) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
