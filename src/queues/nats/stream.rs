//! The stream: made if it is missing, refused if it would lose what was promised.

use async_nats::jetstream::Context;
use async_nats::jetstream::context::CreateStreamError;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use humantime::format_duration;

use super::Settings;

/// Why the stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The client's error includes its cause in its text.
    #[error("cannot be looked up or made: {0}")]
    Api(CreateStreamError),
    /// It may be in use elsewhere, so it is not changed.
    #[error("exists and keeps less than is promised: {}", .0.join("; "))]
    Differs(Vec<String>),
}

/// Ensures that there is a stream which takes our subjects, remembers ids and throws nothing away.
pub(super) async fn ensure(context: &Context, settings: &Settings) -> Result<(), StreamError> {
    let stream = context.get_or_create_stream(wanted(settings)).await.map_err(StreamError::Api)?;
    match differences(&stream.cached_info().config, settings) {
        none if none.is_empty() => Ok(()),
        differences => Err(StreamError::Differs(differences)),
    }
}

fn subject(settings: &Settings) -> String {
    format!("{}.>", settings.subject_prefix)
}

/// Returns the settings of a stream that is made here. It is a work queue: a job is removed when its worker has
/// acknowledged it. If its size is limited later, it refuses new jobs, which then stay in the outbox, and drops no old
/// ones.
fn wanted(settings: &Settings) -> Config {
    Config {
        name: settings.stream.clone(),
        subjects: vec![subject(settings)],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        duplicate_window: settings.duplicate_window,
        num_replicas: settings.replicas,
        ..Config::default()
    }
}

/// Returns the settings with which a stream keeps less than is promised. Its owner may choose retention and limits, as
/// long as nothing is dropped to make room.
fn differences(found: &Config, settings: &Settings) -> Vec<String> {
    let (subject, window) = (subject(settings), settings.duplicate_window);
    let limited = found.max_messages > 0 || found.max_bytes > 0;
    let limited_per_subject = found.max_messages_per_subject > 0;
    [
        (!found.subjects.contains(&subject), format!("subjects are {:?}, without {subject:?}", found.subjects)),
        (
            found.duplicate_window < window,
            format!(
                "duplicate_window is {}, shorter than nats.duplicate_window ({})",
                format_duration(found.duplicate_window),
                format_duration(window)
            ),
        ),
        (found.no_ack, "no_ack is true, so nothing is acknowledged".to_owned()),
        (found.storage != StorageType::File, "storage is not file".to_owned()),
        (found.sealed, "sealed is true".to_owned()),
        (
            limited && found.discard != DiscardPolicy::New,
            "discard is old, so a full stream drops jobs instead of refusing new ones".to_owned(),
        ),
        (
            limited_per_subject && !found.discard_new_per_subject,
            "max_msgs_per_subject drops jobs without discard_new_per_subject".to_owned(),
        ),
    ]
    .into_iter()
    .filter_map(|(differs, what)| differs.then_some(what))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_what_loses_jobs_is_a_difference() {
        let settings = Settings::default();
        let differences = |change: fn(&mut Config)| {
            let mut found = wanted(&settings);
            change(&mut found);
            differences(&found, &settings).join("; ")
        };
        assert_eq!(differences(|_| {}), "");
        assert_eq!(differences(|found| found.duplicate_window = Duration::from_secs(7 * 24 * 3600)), "");
        assert_eq!(differences(|found| found.max_messages = 10), "");
        assert_eq!(differences(|found| found.retention = RetentionPolicy::Limits), "");
        for (change, named) in [
            (
                (|found| found.duplicate_window = Duration::from_secs(120)) as fn(&mut Config),
                "duplicate_window is 2m",
            ),
            (|found| found.subjects = vec!["other.>".to_owned()], "subjects are"),
            (|found| found.no_ack = true, "no_ack"),
            (|found| found.storage = StorageType::Memory, "storage"),
            (|found| found.sealed = true, "sealed"),
            (
                |found| {
                    found.max_bytes = 1 << 20;
                    found.discard = DiscardPolicy::Old;
                },
                "discard is old",
            ),
            (|found| found.max_messages_per_subject = 1, "max_msgs_per_subject"),
        ] {
            let differences = differences(change);
            assert!(differences.contains(named), "{differences}");
        }
    }
}
