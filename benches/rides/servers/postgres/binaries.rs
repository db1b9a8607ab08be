//! Finding Postgres' programs, and a private Postgres with room for 256 clients of pgbench.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// 256 clients, two pools and a few of our own.
const MAX_CONNECTIONS: u32 = 400;
/// Set once the process has been started again; holds the directory of the real programs.
const REAL_BINARIES: &str = "ROCKET_RIDES_BENCH_POSTGRES";
const NEEDED: [&str; 3] = ["initdb", "postgres", "pgbench"];

/// Returns the directory of the programs, in a process whose private Postgres takes [`MAX_CONNECTIONS`].
///
/// The library passes its settings on the command line, where they override every file. So `PG_BIN` is set to a
/// directory with a `postgres` that appends one more setting. A process cannot safely change its own environment: so it
/// replaces itself with a new start of the same program (`exec`).
pub(crate) fn with_room_for_many_clients() -> Result<PathBuf, String> {
    if let Some(real) = env::var_os(REAL_BINARIES) {
        return Ok(PathBuf::from(real));
    }
    let real = find().ok_or(
        "pgbench, initdb and postgres were not found in one place. On Debian: apt-get install -y postgresql \
         postgresql-contrib; elsewhere set PG_BIN to their directory.",
    )?;
    let wrapper = wrapper();
    wrap(&real, &wrapper).map_err(|error| format!("cannot write {}: {error}", wrapper.display()))?;
    let myself = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let error =
        Command::new(myself).args(env::args_os().skip(1)).env("PG_BIN", &wrapper).env(REAL_BINARIES, &real).exec();
    Err(format!("cannot start this program anew: {error}"))
}

/// Returns the wrapper's directory. `exec` keeps the process id, so the path stays the same.
fn wrapper() -> PathBuf {
    env::temp_dir().join(format!("rocket-rides-bench-{}", std::process::id()))
}

/// Removes the wrapper, which is not needed once Postgres runs.
pub(crate) fn remove_wrapper() {
    let _ = fs::remove_dir_all(wrapper());
}

fn wrap(real: &Path, wrapper: &Path) -> std::io::Result<()> {
    fs::create_dir_all(wrapper)?;
    // If this process runs as root, Postgres runs as another user, to which a strict umask would deny access.
    fs::set_permissions(wrapper, fs::Permissions::from_mode(0o755))?;
    symlink(real.join("initdb"), wrapper.join("initdb"))?;
    let script = wrapper.join("postgres");
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o755).open(&script)?;
    write!(file, "#!/bin/sh\nexec '{}/postgres' \"$@\" -c max_connections={MAX_CONNECTIONS}\n", real.display())?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
}

/// Searches `PG_BIN`, or if it is not set `PATH` and then the packagers' directories, the newest version first.
fn find() -> Option<PathBuf> {
    let ordered = env::var_os("PG_BIN").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if let Some(dir) = ordered {
        return is_complete(&dir).then_some(dir);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let linked = env::split_paths(&path)
        .filter_map(|dir| Some(dir.join("initdb").canonicalize().ok()?.parent()?.to_owned()))
        .collect::<Vec<_>>();
    let mut versioned: Vec<(u32, PathBuf)> = [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
    ]
    .into_iter()
    .flat_map(|(parent, prefix)| versions_below(Path::new(parent), prefix))
    .collect();
    versioned.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    linked.into_iter().chain(versioned.into_iter().map(|(_, dir)| dir)).find(|dir| is_complete(dir))
}

fn versions_below(parent: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect()
}

fn is_complete(dir: &Path) -> bool {
    NEEDED.iter().all(|program| dir.join(program).is_file())
}
