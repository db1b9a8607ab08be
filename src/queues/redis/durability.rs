//! Checks what the server promises to keep, as far as its settings can be read.

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisResult};

/// A setting, the value that keeps every job, and what any other means.
const WANTED: [(&str, &str, &str); 3] = [
    ("maxmemory-policy", "noeviction", "Redis may throw jobs away when its memory is full"),
    ("appendonly", "yes", "Redis loses what it took since its last snapshot when it or its machine fails"),
    ("appendfsync", "always", "Redis may lose the jobs that it took last when its machine loses power"),
];

/// Returns what weakens the promise "a job that was taken is kept", a sentence each.
///
/// # Errors
///
/// If the connection broke. A server that does not show its settings, such as a managed one, is no error but one of the
/// sentences.
pub(super) async fn weaknesses(connection: &mut MultiplexedConnection) -> RedisResult<Vec<String>> {
    let mut weaknesses = Vec::new();
    for (setting, wanted, otherwise) in WANTED {
        let asked: RedisResult<Vec<String>> =
            redis::cmd("CONFIG").arg("GET").arg(setting).query_async(connection).await;
        match asked {
            Ok(answer) if answer.get(1).is_some_and(|value| value == wanted) => {}
            Ok(answer) => {
                let value = answer.get(1).map_or("not there", String::as_str);
                weaknesses.push(format!("{otherwise}: {setting} is {value}, not {wanted}"));
                // Without a file there is nothing to flush.
                if setting == "appendonly" {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) => {
                weaknesses.push(format!(
                    "Redis does not tell its settings ({error}): see that they are maxmemory-policy noeviction, \
                     appendonly yes and appendfsync always"
                ));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(weaknesses)
}
