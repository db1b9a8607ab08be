//! Finds `initdb` and `postgres`, of the version that a cluster needs.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::child::Account;
use super::error::EmbeddedError;

/// The oldest major version accepted: 14 is the oldest that the Postgres project itself still supports.
const OLDEST_MAJOR: u32 = 14;

/// Where packagers put one directory per version: (parent, prefix of the name). In `PATH` there is often only `psql` of
/// these, and Homebrew does not link versioned formulae at all.
const VERSIONED: [(&str, &str); 6] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql@"),
    ("/Applications/Postgres.app/Contents/Versions", ""),
];

/// One installation of Postgres.
#[derive(Debug)]
pub(super) struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// Returns the first installation that `account` can run and that fits: one of exactly the major version of
    /// `cluster` (the directory and its version) if there is a cluster already, else any that is recent enough.
    ///
    /// If `pg_bin` is given, no other directory is searched.
    pub(super) fn find(
        account: &Account,
        cluster: Option<(&Path, u32)>,
        pg_bin: Option<PathBuf>,
    ) -> Result<Self, EmbeddedError> {
        let candidates = match pg_bin {
            Some(dir) if is_complete(&dir) => vec![dir],
            Some(dir) => return Err(EmbeddedError::WrongPgBin { dir }),
            None => installed(),
        };
        let fits = |major| cluster.is_none_or(|(_, needed)| needed == major);

        let (mut unfit, mut failure) = (Vec::new(), None);
        for dir in candidates {
            match Self::probe(account, dir) {
                Ok(found) if fits(found.major) && found.major >= OLDEST_MAJOR => return Ok(found),
                Ok(found) => unfit.push(found),
                Err(error) => failure = Some(error),
            }
        }
        if let Some(old) = unfit.iter().position(|found| fits(found.major)) {
            let Self { dir, major } = unfit.swap_remove(old);
            return Err(EmbeddedError::TooOld { dir, major, oldest: OLDEST_MAJOR });
        }
        match cluster {
            Some((data_dir, needed)) if !unfit.is_empty() => {
                let installed: Vec<String> = unfit.iter().map(|found| found.major.to_string()).collect();
                let installed = installed.join(", ");
                Err(EmbeddedError::WrongMajor { data_dir: data_dir.to_owned(), needed, installed })
            }
            _ => Err(failure.unwrap_or(EmbeddedError::NotInstalled)),
        }
    }

    /// Returns the path of one program.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the path of `psql`, or its bare name where the client tools are in another directory.
    pub(super) fn psql(&self) -> PathBuf {
        let beside = self.program("psql");
        if beside.is_file() { beside } else { "psql".into() }
    }

    /// Runs the server to read its version, which also proves that `account` may run it.
    fn probe(account: &Account, dir: PathBuf) -> Result<Self, EmbeddedError> {
        let program = dir.join("postgres");
        let output = account.command(&program, Path::new("/")).arg("--version").output();
        let major = output.and_then(|output| {
            parse_major(&String::from_utf8_lossy(&output.stdout))
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it does not tell its version"))
        });
        match major {
            Ok(major) => Ok(Self { dir, major }),
            Err(source) => Err(EmbeddedError::CannotRun { program, user: account.name().to_owned(), source }),
        }
    }
}

/// Returns the major version in `postgres (PostgreSQL) 17.2 (Debian 17.2-1)`, or in `18beta1`.
fn parse_major(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("(PostgreSQL) ")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Returns the directories that hold both programs: those in `PATH` first, then the packagers', newest version first.
fn installed() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // A link in PATH leads to the directory where `initdb` finds its `postgres` and both find their shared files.
    let linked = env::split_paths(&path)
        .filter_map(|dir| Some(dir.join("initdb").canonicalize().ok()?.parent()?.to_owned()));

    let mut versioned: Vec<(u32, PathBuf)> =
        VERSIONED.iter().flat_map(|(parent, prefix)| versions_below(Path::new(parent), prefix)).collect();
    versioned.sort_by_key(|(major, _)| std::cmp::Reverse(*major));

    let mut found: Vec<PathBuf> = Vec::new();
    for dir in linked.chain(versioned.into_iter().map(|(_, dir)| dir)) {
        if is_complete(&dir) && !found.contains(&dir) {
            found.push(dir);
        }
    }
    found
}

/// Returns the `bin` directories in `parent/<prefix><version>`, with the major part of the version.
fn versions_below(parent: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let version = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let major = name.to_str()?.strip_prefix(prefix)?.split('.').next()?.parse().ok()?;
        Some((major, entry.path().join("bin")))
    };
    entries.filter_map(|entry| version(entry.ok()?)).collect()
}

fn is_complete(dir: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_major_version_of_releases_and_betas() {
        assert_eq!(parse_major("postgres (PostgreSQL) 17.2 (Debian 17.2-1.pgdg120+1)\n"), Some(17));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major("postgres (PostgreSQL) 9.6.24\n"), Some(9));
        assert_eq!(parse_major("something else\n"), None);
    }

    #[test]
    fn a_wrong_pg_bin_is_an_error_even_where_postgres_is_installed() {
        let account = Account::current().unwrap();
        let error = Binaries::find(&account, None, Some("/nowhere".into())).unwrap_err();
        assert!(matches!(error, EmbeddedError::WrongPgBin { .. }), "{error}");
    }

    #[test]
    fn a_cluster_of_a_missing_version_names_the_version_it_needs() {
        let account = Account::current().unwrap();
        let error = Binaries::find(&account, Some((Path::new("/data"), 99)), None).unwrap_err();
        assert!(error.to_string().contains("install version 99"), "{error}");
    }
}
