//! Runs Postgres' programs: the account that they run as, how they are tied to this process, and which processes are
//! running.

use std::convert::Infallible;
use std::env;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{self, SigHandler, Signal};
use nix::unistd::{Gid, Pid, Uid, User, getegid, geteuid, getpid};
use tokio::process::Child;
use tokio::runtime::Handle;

use super::error::EmbeddedError;

/// The accounts that Postgres runs as for root: the user that packages of Postgres create, else the one with no rights
/// at all.
pub(super) const ROOTS_ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// The account that Postgres runs as: that of this process, unless that is root, which Postgres refuses.
#[derive(Debug)]
pub(super) struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
    /// Whether this process is root and has to hand its children over.
    switch: bool,
}

impl Account {
    /// Returns this process' own account or, for root, the first of [`ROOTS_ACCOUNTS`] that exists.
    pub(super) fn current() -> Result<Self, EmbeddedError> {
        let uid = geteuid();
        if !uid.is_root() {
            return Ok(Self { name: user_name(uid.as_raw()), uid, gid: getegid(), switch: false });
        }
        ROOTS_ACCOUNTS
            .into_iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Self { name: user.name, uid: user.uid, gid: user.gid, switch: true })
            .ok_or(EmbeddedError::NoAccount)
    }

    /// Returns its name, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether a file with this owner is the account's.
    pub(super) fn owns(&self, uid: u32) -> bool {
        self.uid.as_raw() == uid
    }

    /// Returns a command that runs as this account, in `directory`, in a plain environment.
    pub(super) fn command(&self, program: &Path, directory: &Path) -> Command {
        let mut command = Command::new(program);
        // If the environment has PGPORT, PGCLIENTENCODING or the like, they are meant for other servers.
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").current_dir(directory).stdin(Stdio::null());
        if self.switch {
            // The standard library drops root's supplementary groups along with its user id.
            command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
        }
        command
    }

    /// Returns whether the account can reach what is in `directory`. Starts a shell there, so that the kernel decides:
    /// a look at the mode bits would miss access control lists.
    pub(super) fn can_enter(&self, directory: &Path) -> Result<bool, EmbeddedError> {
        if !self.switch {
            return Ok(true);
        }
        let shell = Path::new("/bin/sh");
        match self.command(shell, directory).args(["-c", ":"]).status() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            Err(source) => {
                Err(EmbeddedError::CannotRun { program: shell.to_owned(), user: self.name.clone(), source })
            }
        }
    }

    /// Makes the account the owner of a directory that this process made.
    pub(super) fn take_over(&self, directory: &Path) -> io::Result<()> {
        if !self.switch {
            return Ok(());
        }
        chown(directory, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }
}

/// Returns a user's name, or the number where there is no name for it.
pub(super) fn user_name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// The signal that a child gets when this process dies. For Postgres it means an immediate shutdown, without a
/// checkpoint.
const DEATH_SIGNAL: Signal = Signal::SIGQUIT;

/// Ties the future child to this process: it is sent [`DEATH_SIGNAL`] when the thread that spawns it ends, and it
/// shares `lock`.
///
/// A child that holds the lock's descriptor keeps the lock until it and its own children are gone. So if Postgres
/// outlives this process by a moment, the next process waits for its end and does not run beside it.
pub(super) fn tie(command: &mut Command, lock: &File) -> io::Result<()> {
    // A group of its own: Ctrl-C is for this process, which drains before it stops Postgres.
    command.process_group(0);
    let lock = lock.try_clone()?;
    let parent = getpid();
    // SAFETY: between fork and exec, the closure only makes system calls, and neither allocates nor takes a lock.
    // The disposition that it sets is the default one, so that no handler of this process can run in the child.
    #[expect(unsafe_code, reason = "only the child itself can ask for a signal at its parent's death")]
    unsafe {
        command.pre_exec(move || {
            // A shell starts its background jobs with SIGQUIT ignored, and what is ignored stays so across exec:
            // the signal would be lost until Postgres, some milliseconds later, has its handlers in place.
            signal::signal(DEATH_SIGNAL, SigHandler::SigDfl)?;
            fcntl(&lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(die_with(parent)?)
        });
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn die_with(parent: Pid) -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(DEATH_SIGNAL)?;
    // If the parent died before the request above, no signal will come.
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::Error::ESRCH) }
}

/// Does nothing: other systems send no signal when a parent dies. After `kill -9` of this process, Postgres runs on,
/// and the next start reports it.
#[cfg(not(target_os = "linux"))]
fn die_with(_parent: Pid) -> nix::Result<()> {
    Ok(())
}

/// Keeps the thread that spawned a child alive; dropping it ends the thread, which the child is [tied](tie) to.
#[derive(Debug)]
pub(super) struct Guardian {
    _alive: mpsc::Sender<Infallible>,
}

/// Spawns `command` from a thread of its own, because the kernel sends the parent-death signal when the spawning
/// *thread* ends, and a runtime's threads come and go. Has to be called within a runtime, which will reap the child.
pub(super) fn spawn_guarded(command: Command) -> io::Result<(Child, Guardian)> {
    let runtime = Handle::current();
    let (spawned, receive_child) = mpsc::sync_channel(1);
    let (alive, until_dropped) = mpsc::channel::<Infallible>();
    thread::Builder::new().name("postgres-guardian".into()).spawn(move || {
        let child = {
            let _entered = runtime.enter();
            tokio::process::Command::from(command).spawn()
        };
        drop(runtime);
        if spawned.send(child).is_ok() {
            let _ = until_dropped.recv();
        }
    })?;
    let child = receive_child.recv().map_err(io::Error::other)??;
    Ok((child, Guardian { _alive: alive }))
}

/// Returns the program name of a process that is running: neither gone nor a zombie that is not reaped yet.
#[cfg(target_os = "linux")]
pub(super) fn running_program(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `12 (name) S 1 …`, where the name may itself hold parentheses and blanks.
    let (head, tail) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    (!tail.starts_with(['Z', 'X'])).then(|| name.to_owned())
}

/// Returns the program name of a process that is running: neither gone nor a zombie that is not reaped yet.
#[cfg(not(target_os = "linux"))]
pub(super) fn running_program(pid: u32) -> Option<String> {
    let output = Command::new("ps").args(["-o", "stat=,comm=", "-p", &pid.to_string()]).output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let (state, program) = line.trim().split_once(' ')?;
    let name = Path::new(program.trim()).file_name()?.to_string_lossy().into_owned();
    (!state.starts_with('Z')).then_some(name)
}

/// Returns whether process `pid` is a Postgres at work in `data_dir`, and not another process that got the number of a
/// dead one.
pub(super) fn is_postgres_of(pid: u32, data_dir: &Path) -> bool {
    let is_postgres = running_program(pid).is_some_and(|name| name == "postgres" || name == "postmaster");
    // Each Postgres works in its data directory. Where that cannot be read (a container's root may not look into
    // another user's process, and macOS has no such link), the name has to be enough.
    is_postgres && std::fs::read_link(format!("/proc/{pid}/cwd")).map_or(true, |cwd| cwd == data_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_is_not_running() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(running_program(child.id()).as_deref(), Some("sleep"));
        child.kill().unwrap();
        while running_program(child.id()).is_some() {
            thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_recycled_pid_is_told_from_postgres() {
        assert!(!is_postgres_of(std::process::id(), &env::current_dir().unwrap()));
    }
}
