//! How many files this process may have open: each connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Enough for `api.connections` and everything else; macOS refuses much more.
const ENOUGH: u64 = 65_536;

/// Raises the soft limit, which shells and service managers leave at 1,024, as far as the hard one allows. If that
/// fails, the process still runs, and refuses connections earlier.
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard.min(ENOUGH)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard.min(ENOUGH), hard)
    {
        tracing::warn!(%error, soft, "cannot raise the limit of open files");
    }
}
