//! Where a process runs, as far as another one can look there.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

/// A process as its own host knows it. `None` of it is known on a system without `/proc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The host's name.
    pub host: String,
    /// Within which its number means it: this run of the host, namespace and owner.
    pub scope: Option<String>,
    /// Its number.
    pub pid: Option<i32>,
    /// When it was started, in the host's ticks: numbers are used again.
    pub pid_started: Option<i64>,
}

impl Place {
    /// Returns the place of this process.
    pub fn here() -> Self {
        let host = read("/proc/sys/kernel/hostname").unwrap_or_default();
        let pid = i32::try_from(std::process::id()).ok();
        Self { host, scope: scope(), pid, pid_started: pid.and_then(|pid| started(pid).ok().flatten()) }
    }

    /// Returns whether a look from `self` shows that the process at `other` has ended. `false` says nothing.
    pub fn shows_gone(&self, other: &Self) -> bool {
        let same = self.scope.is_some() && self.scope == other.scope && self.host == other.host;
        let (Some(pid), Some(before)) = (other.pid, other.pid_started) else { return false };
        same && started(pid).is_ok_and(|now| now != Some(before))
    }
}

/// Another user's processes may be hidden, and another namespace's have other numbers; so neither is looked at.
fn scope() -> Option<String> {
    let boot = read("/proc/sys/kernel/random/boot_id")?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    let owner = fs::metadata("/proc/self").ok()?.uid();
    Some(format!("{boot} {} {owner}", namespace.display()))
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Returns when the process of this number was started, or `None` if there is none, or only what a parent has not
/// collected.
fn started(pid: i32) -> std::io::Result<Option<i64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // `pid (name) state …`; the name may hold anything. The start is the 22nd field, the 20th behind the name.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    match (fields.first(), fields.get(19).map(|ticks| ticks.parse())) {
        (Some(&("Z" | "X")), _) => Ok(None),
        (_, Some(Ok(ticks))) => Ok(Some(ticks)),
        _ => Err(std::io::Error::from(ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_a_process_that_this_host_can_show_to_have_ended_is_gone() {
        let here = Place::here();
        assert!(here.scope.is_some() && here.pid_started.is_some(), "{here:?}");
        assert!(!here.shows_gone(&here), "it runs");
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let there = Place { pid: Some(pid), pid_started: started(pid).unwrap(), ..here.clone() };
        assert!(!here.shows_gone(&there), "it runs");
        let later = Place { pid_started: there.pid_started.map(|ticks| ticks - 1), ..there.clone() };
        assert!(here.shows_gone(&later), "its number is another's now");
        child.kill().unwrap();
        while !here.shows_gone(&there) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(here.shows_gone(&there));

        for elsewhere in [
            Place { host: "another".to_owned(), ..there.clone() },
            Place { scope: Some("another".to_owned()), ..there.clone() },
            Place { scope: None, ..there.clone() },
            Place { pid: None, ..there.clone() },
            Place { pid_started: None, ..there },
        ] {
            assert!(!here.shows_gone(&elsewhere), "{elsewhere:?}");
        }
        assert!(!Place::default().shows_gone(&Place::default()));
    }
}
